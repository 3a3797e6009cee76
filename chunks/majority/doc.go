// Package majority makes one store of several: a chunk is stored when more than half of them have it.
//
// A put goes to all members at once and is answered when a majority has the chunk; the others are given it in the background, as far
// as a bound on what waits allows. What more than half have survives the loss of any minority. A get asks the local member first,
// then the others, and gives what it found to those that lacked it.
//
// Members that were away, full or replaced are filled up by repair: for the chunks that somebody needs (chunks.Live), and only
// those, it asks every member what it lacks and copies within a budget. It must not touch what nobody needs: a question makes a
// chunk young, and a copy brings back what another member has collected.
//
//	            ┌──────────► member (local)   dir
//	Put ──all───┼──────────► member           http ──► server 2
//	            └──────────► member           http ──► server 3
//	            ◄── answered when 2 of 3 have it; the third goes on
package majority
