// Resources: what is listed, what is read, what is refused, and who hears that a log has grown.
package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"pgregory.net/rapid"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func read(t *testing.T, s *sdk.ClientSession, uri string) *sdk.ResourceContents {
	t.Helper()
	r, err := s.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: uri})
	if err != nil || len(r.Contents) != 1 || r.Contents[0].URI != uri {
		t.Fatalf("%s: %+v %v", uri, r, err)
	}
	return r.Contents[0]
}

func TestResources(t *testing.T) { everyWay(t, testResources) }

func testResources(t *testing.T, h *house, w way) {
	s := h.connect(t, w, "alice", nil)
	if c := s.InitializeResult().Capabilities; c.Resources == nil || !c.Resources.Subscribe || c.Resources.ListChanged {
		t.Errorf("capabilities: %+v", c.Resources)
	}
	templates, err := s.ListResourceTemplates(t.Context(), &sdk.ListResourceTemplatesParams{})
	if err != nil || len(templates.ResourceTemplates) != 2 {
		t.Errorf("templates: %+v %v", templates, err)
	}
	var uris []string
	pages := 0
	for cursor := ""; pages == 0 || cursor != ""; pages++ {
		page, err := s.ListResources(t.Context(), &sdk.ListResourcesParams{Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Resources {
			uris = append(uris, r.Name+" "+r.URI)
		}
		cursor = page.NextCursor
	}
	if pages != 3 || len(uris) != 250+125 || uris[0] != "web-0/log session://s-000/log" || uris[1] != "web-0/workspace session://s-000/workspace/" || uris[2] != "s-001/log session://s-001/log" {
		t.Errorf("%d on %d pages: %q", len(uris), pages, uris[:3])
	}

	h.write("one", "two \xff", "three")
	h.mu.Lock()
	h.log[1].Partial = true
	h.log = append(h.log, &apiv1.LogLine{Stream: apiv1.LogLine_NOTICE, Text: []byte("restored")})
	h.mu.Unlock()
	if c := read(t, s, "session://abc/log"); c.Text != "one\ntwo \uFFFDthree\n-- restored\n" || c.MIMEType != "text/plain" || c.Meta["firstLine"] != 1.0 || c.Meta["lastLine"] != 3.0 ||
		c.Meta["next"] != "session://abc/log?since=4" || c.Meta["more"] != false {
		t.Errorf("the log: %+v", c)
	}
	for name, want := range files {
		c := read(t, s, fileURI("abc", name))
		if got := c.Text + string(c.Blob); got != want || c.Meta["bytes"] != float64(len(want)) || c.Meta["checkpoint"] != 7.0 || name == "bin/tool" && c.Blob == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	for uri, want := range map[string]string{"notes.md": "text/markdown", "bin/run": "text/plain", "bin/tool": "application/octet-stream", "": "application/json"} {
		if c := read(t, s, "session://abc/workspace/"+uri); c.MIMEType != want {
			t.Errorf("%s is %s", uri, c.MIMEType)
		}
	}
	if c := read(t, s, "session://abc/workspace/notes.md?offset=2&bytes=3"); c.Text != "Not" {
		t.Errorf("a part: %+v", c)
	}
	if c := read(t, s, "session://abc/workspace/huge?offset=5&bytes=1048576"); len(c.Text) != 1<<20 {
		t.Errorf("a part of what is huge: %d bytes", len(c.Text))
	}
	testDirectories(t, s)
	for _, who := range h.callers {
		if who != "alice" {
			t.Errorf("a call was made as %q", who)
		}
	}
}

// testDirectories walks a workspace by what the directories say.
func testDirectories(t *testing.T, s *sdk.ClientSession) {
	t.Helper()
	var found []string
	var walk func(uri string)
	walk = func(uri string) {
		for uri != "" {
			var d directory
			if err := json.Unmarshal([]byte(read(t, s, uri).Text), &d); err != nil || d.Session != "abc" || d.Checkpoint != 7 {
				t.Fatalf("%s: %+v %v", uri, d, err)
			}
			for _, e := range d.Entries {
				switch {
				case e.Type == "directory" && e.Name == "bin":
					walk(e.URI)
				case e.Type == "file":
					found = append(found, e.URI)
					read(t, s, e.URI)
				}
			}
			uri = d.Next
		}
	}
	walk("session://abc/workspace")
	if want := []string{"session://abc/workspace/bin/run", "session://abc/workspace/bin/tool", "session://abc/workspace/empty", "session://abc/workspace/notes.md"}; !slices.Equal(found, want) {
		t.Errorf("found %q", found)
	}
}

func TestResourcesRefused(t *testing.T) {
	h := start(t)
	s := h.connect(t, way{true, "2025-11-25"}, "alice", nil)
	for uri, want := range map[string]string{
		"session://abc/workspace/none": "is not in the workspace", "session://xyz/log": "there is none", "session://xyz/workspace/": "", "session://xyz/workspace/notes.md": "there is none",
		"session://abc/workspace/link": "symbolic link to \"notes.md\"", "session://abc/workspace/huge": "session://abc/workspace/huge?bytes=2097152&offset=0",
		"session://abc/workspace/a/../../b": "..", "session://abc/workspace/%2e%2e/b": "..",
		"session://abc": "neither", "session://abc/": "neither", "session://abc/logs": "neither", "session://abc/workspaces": "neither", "session:abc/log": "none of a session", "session:///log": "none of a session",
		"file:///etc/passwd": "none of a session", "session://a:b@abc/log": "none of a session", "session://abc/log#x": "none of a session", "session://%zz/log": "cannot be read", "": "none of a session",
		"session://abc/log?since=x": "since", "session://abc/log?since=-1": "since", "session://abc/log?tail=10001": "tail", "session://abc/log?bytes=1": "bytes", "session://abc/log?%zz": "question mark",
		"session://abc/workspace/x?bytes=2097153": "bytes", "session://abc/workspace/x?offset=9223372036854775808": "offset", "session://abc/workspace/x?since=1": "since",
		"session://" + strings.Repeat("a", maxURIBytes) + "/log": "more than",
	} {
		if strings.HasPrefix(uri, "session://xyz/workspace/") {
			continue // the API of this test does not say whose files are whose
		}
		r, err := s.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: uri})
		var wire *jsonrpc.Error
		if !errors.As(err, &wire) || !strings.Contains(wire.Message, want) || len(wire.Data) == 0 {
			t.Errorf("%.80s: %+v %v", uri, r, err)
		}
	}
	if _, err := s.ListResources(t.Context(), &sdk.ListResourcesParams{Cursor: strings.Repeat("x", 5000)}); err == nil {
		t.Error("a cursor that nobody gave is taken")
	}
	h.revoke("alice")
	if _, err := s.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: "session://abc/log"}); err == nil {
		t.Error("read after revoking")
	}
}

// What a log's resource shows are the last lines, or the first from a number on, within the bounds.
func TestExcerpts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		x := &excerpt{maxLines: rapid.IntRange(1, 50).Draw(rt, "lines"), first: rapid.Bool().Draw(rt, "first")}
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 100, maxLogBytes / 8, maxLogBytes / 2, 2 * maxLogBytes}), 0, 100).Draw(rt, "sizes")
		given := 0
		for i, n := range sizes {
			if !x.add(&apiv1.LogLine{Number: uint64(i + 1), Text: make([]byte, n)}) {
				break
			}
			given++
		}
		first, last := x.numbers()
		switch {
		case len(sizes) == 0:
			if first != 0 || last != 0 {
				rt.Fatalf("%d–%d of nothing", first, last)
			}
			return
		case len(x.lines) > x.maxLines || x.bytes > maxLogBytes && len(x.lines) > 1:
			rt.Fatalf("%d lines, %d bytes", len(x.lines), x.bytes)
		case int(last-first)+1 != len(x.lines):
			rt.Fatalf("%d lines are %d–%d", len(x.lines), first, last)
		case x.first && (first != 1 || x.more != (given < len(sizes))), !x.first && int(last) != len(sizes):
			rt.Fatalf("%d–%d of %d, more: %v", first, last, len(sizes), x.more)
		}
	})
}

// A log that is longer than an answer is read to its end by what each part says of the next.
func TestLogInParts(t *testing.T) {
	h := start(t)
	s := h.connect(t, way{true, "2025-11-25"}, "alice", nil)
	var want strings.Builder
	for i := range 2500 {
		line := fmt.Sprintf("line %d %s", i+1, strings.Repeat("x", 900))
		h.write(line)
		want.WriteString(line + "\n")
	}
	var got strings.Builder
	parts := 0
	for uri := "session://abc/log?since=1"; ; parts++ {
		c := read(t, s, uri)
		got.WriteString(c.Text)
		uri, _ = c.Meta["next"].(string)
		if c.Meta["more"] != true {
			if uri != "session://abc/log?since=2501" {
				t.Errorf("at the end: %s", uri)
			}
			break
		}
	}
	if got.String() != want.String() || parts < 2 {
		t.Errorf("%d bytes in %d parts, want %d", got.Len(), parts, want.Len())
	}
	if c := read(t, s, "session://abc/log"); c.Meta["firstLine"] != 1501.0 || c.Meta["lastLine"] != 2500.0 {
		t.Errorf("the last lines: %v", c.Meta)
	}
	if c := read(t, s, "session://abc/log?tail=2"); c.Meta["firstLine"] != 2499.0 {
		t.Errorf("two lines: %v", c.Meta)
	}
	if c := read(t, s, "session://abc/log?since=9999"); c.Text != "" || c.Blob == nil || c.Meta["next"] != "session://abc/log?since=9999" {
		t.Errorf("from beyond the end: %+v", c)
	}
}

// updates collects what a client is told of.
func updates() (*sdk.ClientOptions, chan string) {
	told := make(chan string, 100)
	return &sdk.ClientOptions{ResourceUpdatedHandler: func(_ context.Context, r *sdk.ResourceUpdatedNotificationRequest) { told <- r.Params.URI }}, told
}

func TestSubscriptions(t *testing.T) { everyWay(t, testSubscriptions) }

func testSubscriptions(t *testing.T, h *house, w way) {
	o, told := updates()
	s := h.connect(t, w, "alice", o)
	const uri = "session://abc/log?tail=10" // is told as it was given
	if err := s.Subscribe(t.Context(), &sdk.SubscribeParams{URI: uri}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is followed", func() bool { return h.handler.Stats().Subscriptions == 1 })
	start := time.Now()
	for i := range 2 {
		h.write("more")
		if got := <-told; got != uri {
			t.Errorf("told of %s", got)
		}
		if d := time.Since(start); i == 1 && d < notifyEvery/2 {
			t.Errorf("told twice within %s", d)
		}
	}
	if err := s.Unsubscribe(t.Context(), &sdk.UnsubscribeParams{URI: uri}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is not followed", func() bool { return h.handler.Stats().Subscriptions == 0 })
	h.write("unheard")
	if err := s.Subscribe(t.Context(), &sdk.SubscribeParams{URI: "session://abc/log"}); err != nil { // is left to the end of the session
		t.Fatal(err)
	}
	eventually(t, "it is followed again", func() bool { return h.handler.Stats().Subscriptions == 1 })
	h.write("heard")
	if got := <-told; got != "session://abc/log" {
		t.Errorf("then told of %s", got)
	}
	_ = s.Close()
	eventually(t, "the session is gone", func() bool { return h.handler.Stats() == Stats{} })
}

// Nobody hears of what is another's, though both call it the same; who may no longer read hears no more; and there are bounds.
func TestSubscriptionsAreOnesOwn(t *testing.T) {
	h := start(t)
	w := way{true, "2025-11-25"}
	o, told := updates()
	alice := h.connect(t, w, "alice", o)
	o, strange := updates()
	bob := h.connect(t, w, "bob", o)
	if err := bob.Subscribe(t.Context(), &sdk.SubscribeParams{URI: "session://abc/log"}); err == nil {
		t.Error("bob may hear of alice's session")
	}
	for _, uri := range []string{"session://abc/workspace/", "session://abc/nothing", "x"} {
		if err := alice.Subscribe(t.Context(), &sdk.SubscribeParams{URI: uri}); err == nil {
			t.Errorf("%s can be subscribed to", uri)
		}
	}
	for range 2 { // twice is once
		if err := alice.Subscribe(t.Context(), &sdk.SubscribeParams{URI: "session://abc/log"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := h.handler.Stats().Subscriptions; n != 1 {
		t.Errorf("%d subscriptions", n)
	}
	h.write("news")
	<-told
	for i := 1; i < maxSessionSubscription; i++ {
		if err := alice.Subscribe(t.Context(), &sdk.SubscribeParams{URI: fmt.Sprintf("session://abc/log?tail=%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	var refused *jsonrpc.Error
	if err := alice.Subscribe(t.Context(), &sdk.SubscribeParams{URI: "session://abc/log?tail=99"}); !errors.As(err, &refused) || refused.Code != codeRefused {
		t.Errorf("one too many: %v", err)
	}
	if len(strange) != 0 {
		t.Errorf("bob was told of %s", <-strange)
	}
	if err := alice.Unsubscribe(t.Context(), &sdk.UnsubscribeParams{URI: "session://abc/log?tail=77"}); err != nil {
		t.Errorf("unsubscribing from what is not: %v", err)
	}
	// All numbers are taken; then they are free again.
	many := []*sdk.ClientSession{alice}
	for i := 1; i < maxSubscriptions/maxSessionSubscription; i++ {
		s := h.connect(t, w, "alice", nil)
		for k := range maxSessionSubscription {
			if err := s.Subscribe(t.Context(), &sdk.SubscribeParams{URI: fmt.Sprintf("session://abc/log?tail=%d", k)}); err != nil {
				t.Fatal(err)
			}
		}
		many = append(many, s)
	}
	last := h.connect(t, w, "alice", nil)
	if err := last.Subscribe(t.Context(), &sdk.SubscribeParams{URI: "session://abc/log"}); !errors.As(err, &refused) || refused.Code != codeRefused {
		t.Errorf("one too many of all: %v", err)
	}
	for _, s := range many {
		_ = s.Close()
	}
	eventually(t, "there is room", func() bool { return h.handler.Stats().Subscriptions == 0 })
	if err := last.Subscribe(t.Context(), &sdk.SubscribeParams{URI: "session://abc/log"}); err != nil {
		t.Error(err)
	}
	h.handler.watched.mu.Lock()
	defer h.handler.watched.mu.Unlock()
	if n := len(h.handler.watched.watched); n != 1 {
		t.Errorf("%d sessions are watched", n)
	}
}

// Who unsubscribes and subscribes in one breath hears of what it wants now.
func TestSubscribingInOneBreath(t *testing.T) {
	h := start(t)
	ws := h.initialized(t)
	send(t, ws, `{"jsonrpc":"2.0","id":"0","method":"resources/subscribe","params":{"uri":"session://abc/log"}}`)
	if r, _ := next(t, ws); r.Error != nil {
		t.Fatalf("%+v", r)
	}
	last := ""
	for i := range 50 {
		was := last
		last = fmt.Sprintf("?tail=%d", i+1)
		send(t, ws, `{"jsonrpc":"2.0","id":"u%d","method":"resources/unsubscribe","params":{"uri":"session://abc/log%s"}}`, i, was)
		send(t, ws, `{"jsonrpc":"2.0","id":"s%d","method":"resources/subscribe","params":{"uri":"session://abc/log%s"}}`, i, last)
		for range 2 {
			if r, _ := next(t, ws); r.Error != nil {
				t.Fatalf("%+v", r)
			}
		}
	}
	h.write("news")
	if r, _ := next(t, ws); r.Method != updatedMethod {
		t.Errorf("%+v", r)
	}
	if n := h.handler.Stats().Subscriptions; n != 1 {
		t.Errorf("%d subscriptions", n)
	}
	// The two may run beside one another: the number that one gives back is not what the other takes.
	var numbers subscriptions
	numbers.init()
	session := new(sdk.ServerSession)
	for range 2 * maxSubscriptions {
		one, _, _, err := numbers.add(session, "one", nil)
		if err != nil {
			t.Fatal(err)
		}
		numbers.remove(session, "one")
		two, _, _, err := numbers.add(session, "two", nil)
		if err != nil || two.number == one.number {
			t.Fatalf("%d after %d: %v", two.number, one.number, err)
		}
		numbers.remove(session, "two")
	}
}

// A session that ends is told of once more; a log whose reader was revoked is not.
func TestSubscriptionsEnd(t *testing.T) {
	h := start(t)
	o, told := updates()
	s := h.connect(t, way{true, "2025-11-25"}, "alice", o)
	if err := s.Subscribe(t.Context(), &sdk.SubscribeParams{URI: "session://abc/log"}); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	h.write("the last")
	if got := <-told; got != "session://abc/log" {
		t.Errorf("told of %s", got)
	}
	h.handler.watched.mu.Lock()
	var one *subscription
	for _, x := range h.handler.watched.slots {
		if x != nil {
			one = x
		}
	}
	h.handler.watched.mu.Unlock()
	<-one.ended
}
