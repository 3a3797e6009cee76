// The toy as a real program: what the suite's sessions run where sessions are processes.

package drivertest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ToyArg as the first argument makes a test binary that calls ToyIfRequested a toy.
const ToyArg = "__toy"

// ToyIfRequested turns the test binary into a toy when its first argument is ToyArg, and then does not return.
//
// Beyond what package fake documents it understands
//
//	spawn           starts a process that detaches itself twice over, ignores SIGTERM and sleeps for an hour; answers its pid
//	env KEY         answers with the variable
//	close           closes its stdout's line without a newline and exits 0
//	deaf            answers, and never reads its input again
//	flood N         writes N lines of 100 bytes to stdout before it answers
//
// With "json" as the second argument it speaks the json protocol.
func ToyIfRequested() {
	if len(os.Args) > 1 && os.Args[1] == ToyArg {
		toy(len(os.Args) > 2 && os.Args[2] == "json")
		os.Exit(0)
	}
}

func toy(speaksJSON bool) {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	count, sum := 0, int64(0)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		text, answer := strings.TrimSuffix(line, "\n"), func(s string) { fmt.Println(s) }
		if speaksJSON {
			var m struct{ ID, Text string }
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				fmt.Fprintln(os.Stderr, "bad message:", err)
				os.Exit(9)
			}
			text = m.Text
			answer = func(s string) {
				b, _ := json.Marshal(map[string]string{"type": "result", "id": m.ID, "text": s})
				fmt.Println(`{"type":"progress"}`)
				fmt.Println(string(b))
			}
		}
		count++
		word, rest, _ := strings.Cut(text, " ")
		n, _ := strconv.Atoi(strings.SplitN(rest, " ", 2)[0])
		switch word {
		case "exit":
			os.Exit(n)
		case "die":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case "hang":
			continue
		case "ignore-term":
			signal.Ignore(syscall.SIGTERM)
		case "say":
			_, what, _ := strings.Cut(rest, " ")
			for range n {
				fmt.Fprintln(os.Stderr, what)
			}
			time.Sleep(20 * time.Millisecond) // two pipes have no order between them: let the first be read
		case "long":
			answer(strings.Repeat("x", n))
			continue
		case "spawn":
			answer(spawn())
			continue
		case "env":
			answer(os.Getenv(rest))
			continue
		case "close":
			fmt.Print("no newline")
			return
		case "deaf":
			answer("deaf")
			time.Sleep(time.Hour)
		case "flood":
			out := bufio.NewWriter(os.Stderr)
			for i := range n {
				fmt.Fprintf(out, "%099d\n", i)
			}
			out.Flush()
		}
		if v, err := strconv.ParseInt(text, 10, 64); err == nil {
			sum += v
			answer(fmt.Sprintf("sum %d", sum))
			continue
		}
		answer(fmt.Sprintf("ok %d", count))
	}
}

// spawn forks a shell that forks a sleeper in a session of its own and ends: the classic daemon.
func spawn() string {
	cmd := exec.Command("/bin/sh", "-c", `setsid sh -c 'trap "" TERM HUP; echo $$; exec >/dev/null 2>&1 </dev/null; while :; do sleep 3600; done' & exit 0`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err.Error()
	}
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	pid, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	_ = cmd.Wait()
	return strings.TrimSpace(pid)
}
