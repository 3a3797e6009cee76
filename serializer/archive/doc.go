// Package archive is a checkpoint in one file: what `orchctl sessions export` writes and `import` reads, on any cluster.
//
// The file is one tar, compressed with zstd, so that ordinary tools can look into it:
//
//	session.json     what it is, for people and for whoever decides about an import
//	chunks/<id>      the frame of each chunk (serializer/chunk): the manifest's own first, then those that it names
//	SHA256SUMS       of every file before, in the form that sha256sum checks
//	SIGNATURE        ed25519 over SHA256SUMS, and the key that made it
//
//	tar --zstd -tvf x.tar.zst; tar --zstd -xf x.tar.zst && sha256sum -c SHA256SUMS
//
// session.json is a label: the truth about the session stands in the manifest, which is one chunk or a few. docs/protocol/archive.md
// has it byte by byte.
//
// # Who may rely on what
//
// A file comes from anywhere, so a Reader believes nothing. Each chunk that it returns holds what its name says; but only io.EOF says that
// the archive is whole: that all chunks were there, each once, that the checksums are right, and that whoever Signer names signed them. So
// chunks may be stored as they come, and the session is made after io.EOF. Whether the chunks are those that the manifest
// names is for whoever commits the session to check.
//
// Both directions stream. A Reader needs memory for a frame and its content, 1 MiB each, for the window of the compression, at most 8 MiB, and for 8 bytes
// of each chunk's name, so that none comes twice (about 16 bytes with the table around them); a Writer keeps 64 bytes of each chunk for the
// checksums at the end. Nothing that an archive claims of itself makes either spend more.
//
// The package does no more than this: it knows no network and no session's life, and runs wherever orchctl does.
package archive
