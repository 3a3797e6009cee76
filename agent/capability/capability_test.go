// What a node says it can run: keys, limits, what is declared and what is found.

package capability

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// tree makes files below a fresh root; a name that ends in / is a directory.
func tree(t *testing.T, files map[string]string) probe {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if name[len(name)-1] == '/' {
			if err := os.MkdirAll(p, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return probe{root: root}
}

func TestKeys(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"nothing":        {nil, nil},
		"nvidia":         {map[string]string{"dev/nvidia0": "", "dev/ptmx": ""}, []string{GPU, PTY}},
		"nvidia without": {map[string]string{"dev/nvidiactl": ""}, nil},
		"render node":    {map[string]string{"dev/dri/renderD128": ""}, []string{GPU}},
		"display only":   {map[string]string{"dev/dri/card0": ""}, nil},
		"amd compute":    {map[string]string{"dev/kfd": ""}, []string{GPU}},
		"cgroup 1":       {map[string]string{"sys/fs/cgroup/memory/": ""}, []string{Cgroup}},
		"cgroup 2":       {map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu", "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cgroup.kill": ""}, []string{Cgroup, CgroupV2, CgroupKill}},
		"old cgroup 2":   {map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu", "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/": ""}, []string{Cgroup, CgroupV2}},
		"hybrid, in the root group": {map[string]string{"sys/fs/cgroup/unified/cgroup.controllers": "", "proc/self/cgroup": "9:cpu:/x\n0::/\n",
			"sys/fs/cgroup/unified/child/cgroup.kill": ""}, []string{Cgroup, CgroupV2, CgroupKill}},
	} {
		t.Run(name, func(t *testing.T) {
			got := tree(t, tc.files).keys()
			want := map[string]bool{GPU: false, PTY: false, Cgroup: false, CgroupV2: false, CgroupKill: false}
			for _, k := range tc.want {
				want[k] = true
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		files       map[string]string
		cpu, memory int64
	}{
		"none": {nil, 0, 0},
		"cgroup 2": {map[string]string{"sys/fs/cgroup/cgroup.controllers": "", "proc/self/cgroup": "0::/pod\n",
			"sys/fs/cgroup/pod/cpu.max": "150000 100000\n", "sys/fs/cgroup/pod/memory.max": "1073741824\n"}, 1500, 1 << 30},
		"cgroup 2 without": {map[string]string{"sys/fs/cgroup/cgroup.controllers": "", "proc/self/cgroup": "0::/pod\n",
			"sys/fs/cgroup/pod/cpu.max": "max 100000\n", "sys/fs/cgroup/pod/memory.max": "max\n"}, 0, 0},
		"cgroup 1": {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
			"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 500, 4096},
		"cgroup 1 without": {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
			"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := tree(t, tc.files)
			if c, m := p.cpuLimitMilli(), p.memoryLimitBytes(); c != tc.cpu || m != tc.memory {
				t.Errorf("got %d and %d, want %d and %d", c, m, tc.cpu, tc.memory)
			}
		})
	}
}

func TestDeclaredWins(t *testing.T) {
	m := &Machine{CPUMilli: 4000, MemoryBytes: HighMemoryBytes, Keys: map[string]bool{GPU: true, PTY: true}}
	c := Merge(Declared{}, m)
	if !c.GetHasGpuAccess() || !c.GetHasHighMemory() || c.GetCpuMilli() != 4000 || !c.GetCustomCapabilities()[HighMemory] {
		t.Errorf("found: %v", c)
	}
	c = Merge(Declared{Custom: map[string]bool{GPU: false, "tpu": true}, CPUMilli: 1000, MemoryBytes: HighMemoryBytes - 1, MaxSessions: 5, SessionTypes: []string{"process"}}, m)
	want := map[string]bool{GPU: false, PTY: true, "tpu": true, HighMemory: false}
	if c.GetHasGpuAccess() || c.GetHasHighMemory() || c.GetCpuMilli() != 1000 || c.GetMaxConcurrentSessions() != 5 || !reflect.DeepEqual(c.GetCustomCapabilities(), want) {
		t.Errorf("declared: %v", c)
	}
}

func TestCRIU(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if why := criu(t.Context()); !strings.Contains(why, "not in the PATH") {
		t.Errorf("without the program: %q", why)
	}
	for name, c := range map[string]struct{ version, check, want string }{
		"works":       {"echo 'Version: 4.1.1'; echo 'GitID: v4.1.1'", "echo Looks good.", ""},
		"later":       {"echo 'Version: 5.0'", "exit 0", ""},
		"development": {"echo 'Version: 4.2-dev'", "exit 0", ""},
		"Debian 12":   {"echo 'Version: 3.17.1'", "exit 0", "criu is at version 3.17, and 4.1 is the oldest that works on new kernels"},
		"4.0":         {"echo 'Version: 4.0'", "exit 0", "criu is at version 4.0, and 4.1"},
		"no version":  {"echo hello", "exit 0", "criu --version does not tell a version: hello"},
		"check fails": {"echo 'Version: 4.1'", "echo noise; echo 'Error: no CAP_SYS_ADMIN' >&2; exit 1", "criu check failed (exit status 1): Error: no CAP_SYS_ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			script(t, dir, c.version, c.check)
			if why := criu(t.Context()); !strings.HasPrefix(why, c.want) || c.want == "" && why != "" {
				t.Errorf("%q, want %q", why, c.want)
			}
		})
	}
	t.Run("check hangs", func(t *testing.T) {
		script(t, dir, "echo 'Version: 4.1'", "exec /bin/sleep 60")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if why := criu(ctx); !strings.HasPrefix(why, "criu check did not end") {
			t.Errorf("%q", why)
		}
	})
}

// script makes a criu that does this when it is asked for its version, and that when it is to check the kernel.
func script(t *testing.T, dir, version, check string) {
	t.Helper()
	body := "#!/bin/sh\nif [ \"$1\" = --version ]; then\n" + version + "\nelse\n" + check + "\nfi\n"
	if err := os.WriteFile(filepath.Join(dir, "criu"), []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestWhyACapabilityIsAbsent(t *testing.T) {
	m := &Machine{Keys: map[string]bool{CRIU: false}, Absent: map[string]string{CRIU: "too old"}}
	for want, d := range map[string]Declared{
		"too old":                          {},
		"":                                 {Custom: map[string]bool{CRIU: true}},
		"the node's configuration says so": {Custom: map[string]bool{CRIU: false}},
	} {
		if got := Merge(d, m).GetAbsent()[CRIU]; got != want {
			t.Errorf("%v: %q, want %q", d.Custom, got, want)
		}
	}
}

func TestDetectHere(t *testing.T) {
	m, err := Detect(t.Context())
	if err != nil || m.CPUMilli < 100 || m.MemoryBytes < 1<<20 {
		t.Errorf("%+v, %v", m, err)
	}
}
