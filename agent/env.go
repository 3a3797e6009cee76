// What a session sees of the world: its environment, and the secrets in it.

package agent

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

const (
	sessionPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// maxSecretBytes bounds one secret: the kernel takes no longer string into an environment than 128 KiB.
	maxSecretBytes = 64 << 10
)

var envNameRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// environment is the whole environment of a session's process, sorted. Of the agent's own it holds nothing. What the
// spec sets wins over PATH, HOME and TERM; a secret wins over the spec; nobody overrides ORCH_*.
func environment(id, node, workspace string, epoch uint32, spec *session.Spec, secretsDir string) ([]string, error) {
	vars := map[string]string{"PATH": sessionPath, "HOME": workspace, "TERM": "dumb"}
	if spec.Protocol == session.ProtocolRaw {
		vars["TERM"] = "xterm-256color"
	}
	for _, p := range spec.Env {
		vars[p.Key] = p.Value
	}
	secrets, err := readSecrets(secretsDir, spec.Secrets)
	if err != nil {
		return nil, err
	}
	for k, v := range secrets {
		vars[k] = v
	}
	name := spec.Name
	if name == "" {
		name = id
	}
	vars["ORCH_SESSION_ID"] = id
	vars["ORCH_SESSION_NAME"] = name
	vars["ORCH_SESSION_EPOCH"] = strconv.FormatUint(uint64(epoch), 10)
	vars["ORCH_NODE"] = node
	vars["ORCH_WORKSPACE"] = workspace

	env := make([]string, 0, len(vars))
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env, nil
}

// readSecrets returns the named secrets: each is a file of that name in dir, and becomes the variable of that name.
func readSecrets(dir string, names []string) (map[string]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if dir == "" {
		return nil, fault.New(fault.FailedPrecondition, "secret %s: this node has no secrets; set secrets_dir in the node-agent's configuration and put a file of that name there", names[0])
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "secret %s: open the secrets directory: %w; create it, readable for the node-agent only", names[0], err)
	}
	defer root.Close()
	out := make(map[string]string, len(names))
	for _, n := range names {
		if !envNameRE.MatchString(n) || strings.HasPrefix(n, "ORCH_") {
			return nil, fault.New(fault.Invalid, "secret %q: cannot be the name of a variable; use letters, digits and '_', not beginning with a digit or ORCH_", clip(n))
		}
		v, err := readSecret(root, n)
		if err != nil {
			return nil, err
		}
		out[n] = v
	}
	return out, nil
}

func readSecret(root *os.Root, name string) (string, error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.FailedPrecondition, "secret %s: is not on this node; put it into the file %s/%s", name, root.Name(), name)
	}
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "secret %s: %w; make it readable for the node-agent", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "secret %s: %w; make it a plain file", name, err)
	}
	if len(b) > maxSecretBytes {
		return "", fault.New(fault.FailedPrecondition, "secret %s: is more than %d bytes; put large content into the workspace", name, maxSecretBytes)
	}
	if slices.Contains(b, 0) {
		return "", fault.New(fault.FailedPrecondition, "secret %s: holds a NUL byte, which a variable cannot; encode it", name)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}
