// Package e2e tests the programs as users run them: real processes, real disks, real kills. It builds them first.
package e2e
