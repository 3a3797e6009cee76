// The Dockerfile of the image with tools agrees with the image that it is made of. Nothing here runs it.

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestToolsAgreeWithTheAgent(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("agent-tools", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	p := programs(t)
	images, _ := readBack(t, filepath.Join(built(t, p, "-platforms", "linux/arm64"), "node-agent.tar")) // one platform alone, and not the first
	agent := images["linux/arm64"]
	copied, text := 0, string(b)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[0] != "COPY" || fields[1] != "--from=agent" {
			continue
		}
		for _, source := range fields[2 : len(fields)-1] {
			copied++
			if agent.heads[strings.TrimPrefix(source, "/")] == nil {
				t.Errorf("it copies %s, which is not in the agent's image", source)
			}
		}
	}
	if copied == 0 {
		t.Error("it copies nothing from the agent's image")
	}
	for _, want := range []string{"USER " + agent.config.Config.User + "\n", `ENTRYPOINT ["` + agent.config.Config.Entrypoint[0] + `"]`, "install -d -o 65532 -g 65532 -m 0700 /var/lib/node-agent"} {
		if !strings.Contains(text, want) {
			t.Errorf("it has no %q", want)
		}
	}
}
