// Command roots prints the certificate authorities that Mozilla trusts, as a PEM bundle.
//
// Images carry them, so that a server reaches a bucket by TLS. They come with a Go module at a pinned version, and not
// from the machine that builds: the same source gives the same image.
package main

import (
	"bufio"
	"encoding/pem"
	"fmt"
	"os"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

func main() {
	out := bufio.NewWriter(os.Stdout)
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue // it is trusted only for some certificates, which a PEM file cannot say
		}
		if err := pem.Encode(out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			fail(err)
		}
	}
	if err := out.Flush(); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "roots: print the bundle:", err)
	os.Exit(1)
}
