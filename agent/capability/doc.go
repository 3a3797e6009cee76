// Package capability finds out what a node can run: what its operator declares, and what the machine shows.
//
// Found in devices, the kernel and the path; each becomes a key that a session may require:
//
//	key            true when
//	gpu            there is /dev/nvidia0 …, /dev/dri/renderD…, or /dev/kfd
//	high-memory    the memory that sessions may use is at least HighMemoryBytes (32 GiB)
//	pty            /dev/ptmx can be opened
//	cgroup         a cgroup hierarchy is mounted and this process may make groups in it
//	cgroup-v2      of these the unified one
//	cgroup-kill    the kernel kills a whole cgroup at once (Linux 5.14 and later)
//	bubblewrap     bwrap is in the path
//	criu           criu is in the path, at version 4.1 or later, and "criu check" says that the kernel can do it
//
// Of criu it is also told why it is absent. All is looked at once, when the agent starts.
//
// What is declared wins: "gpu: false" hides a GPU, "tpu: true" adds a key that nobody can detect. CPU and memory are
// those of the machine, or of the container where one limits them.
package capability
