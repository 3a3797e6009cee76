// The node link as a node in another language sees it: a WebSocket, JSON, and nothing of ours.
package stories

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rogpeppe/go-internal/testscript"
)

// linkPatience is how long a foreign node waits for a frame.
const linkPatience = 20 * time.Second

// link dials the node link, with the token of a file (none for -) and a subprotocol (none for -), and does what it is told:
// TEXT is sent, <TYPE waits for a frame of the type, and <close for the end of the link. What comes is printed, one a line.
func link(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "link", args, 2)
	header := http.Header{}
	if args[0] != "-" {
		header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[0])))
	}
	d := websocket.Dialer{HandshakeTimeout: linkPatience}
	if args[1] != "-" {
		d.Subprotocols = []string{args[1]}
	}
	say := func(format string, a ...any) {
		_, err := fmt.Fprintf(ts.Stdout(), format+"\n", a...)
		ts.Check(err)
	}
	ws, answer, err := d.Dial("ws://"+ts.Getenv("LINK")+"/v1/link", header)
	if err != nil {
		if answer == nil {
			ts.Fatalf("dial the link: %v", err)
		}
		body, _ := io.ReadAll(answer.Body)
		say("refused %d %s", answer.StatusCode, strings.TrimSpace(string(body)))
		return
	}
	defer ws.Close()
	for _, step := range args[2:] {
		want, read := strings.CutPrefix(step, "<")
		if !read {
			ts.Check(ws.WriteMessage(websocket.TextMessage, []byte(step)))
			continue
		}
		for {
			ts.Check(ws.SetReadDeadline(time.Now().Add(linkPatience)))
			_, b, err := ws.ReadMessage()
			var closed *websocket.CloseError
			switch {
			case errors.As(err, &closed):
				say("closed %d %s", closed.Code, closed.Text)
			case err != nil:
				ts.Fatalf("wait for %s: %v", want, err)
			default:
				say("%s", b)
			}
			var frame struct{ Type string }
			if err != nil {
				if want == "close" {
					return
				}
				ts.Fatalf("the link ended before %s came", want)
			}
			if json.Unmarshal(b, &frame) == nil && frame.Type == want {
				break
			}
		}
	}
}
