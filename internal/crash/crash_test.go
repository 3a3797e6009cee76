// A process behind something that looks like a shim goes with it; what has ended is no error.

package crash

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"os"
)

func TestShimsGoWithTheirSessions(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	shim := filepath.Join(t.TempDir(), "shim")
	if err := os.Symlink(sh, shim); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shim, "-c", "sleep 1000 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := Node(0, []int{child}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the parent called shim ended with %v", err)
	}
	if err := Node(cmd.Process.Pid, nil); err != nil {
		t.Fatalf("what has ended: %v", err)
	}
}
