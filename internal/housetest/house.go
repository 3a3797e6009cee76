// Package housetest guards the house: it has nothing but tests about the source as a whole.
//
// Every package has one comment that introduces it, every file says what it is for, imports run downward, and some
// programs do not link what they must not. A refusal gives its reason, and how to mend it.
package housetest
