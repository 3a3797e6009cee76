// Progress on standard error: a spinner or a bar on a terminal, plain lines elsewhere for what is meant to take long.

package main

import (
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

const (
	progressAfter = time.Second
	progressEvery = 100 * time.Millisecond
	reachTimeout  = 5 * time.Second
)

// progress shows what is going on once it has taken a second. A nil progress shows nothing.
type progress struct {
	a     *app
	plain bool // lines instead of a spinner
	done  chan struct{}
	wg    sync.WaitGroup
	once  sync.Once

	mu   sync.Mutex
	text string
	new  bool // text has not been printed as a plain line
}

// newProgress starts to show; stop ends it. long says that this is meant to take its time.
func (a *app) newProgress(text string, long bool) *progress {
	terminal := isTerminal(a.stderr)
	if a.flags.quiet || !terminal && !long {
		return nil
	}
	p := &progress{a: a, plain: !terminal, text: text, new: true, done: make(chan struct{})}
	p.wg.Go(p.run)
	return p
}

// say changes the text.
func (p *progress) say(text string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.text != text {
		p.text, p.new = clean(text), true
	}
}

// stop ends it and leaves no trace of the spinner. It may be called again.
func (p *progress) stop() {
	if p == nil {
		return
	}
	p.once.Do(func() { close(p.done); p.wg.Wait() })
}

func (p *progress) run() {
	wait := time.NewTimer(p.a.patience)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-p.done:
		return
	}
	every := progressEvery
	if p.plain {
		every = p.a.patience
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	spinner := p.spinner()
	for {
		p.mu.Lock()
		text, fresh := p.text, p.new
		p.new = false
		p.mu.Unlock()
		switch {
		case spinner != nil:
			spinner.Describe(text)
			_ = spinner.Add(1) // decoration
		case fresh:
			_, _ = io.WriteString(p.a.stderr, text+" …\n")
		}
		select {
		case <-tick.C:
		case <-p.done:
			if spinner != nil {
				_ = spinner.Finish()
			}
			return
		}
	}
}

func (p *progress) spinner() *progressbar.ProgressBar {
	if p.plain {
		return nil
	}
	return progressbar.NewOptions64(-1, progressbar.OptionSetWriter(p.a.stderr), progressbar.OptionSpinnerType(14),
		progressbar.OptionClearOnFinish(), progressbar.OptionSetElapsedTime(true), progressbar.OptionThrottle(progressEvery/2))
}

// bar counts bytes that go through it: with rate and time left on a terminal. The total is -1 when it is not known.
func (a *app) bar(text string, total int64) (io.Writer, func()) {
	a.busy.stop()
	if a.flags.quiet || !isTerminal(a.stderr) {
		return io.Discard, func() {}
	}
	b := progressbar.NewOptions64(total, progressbar.OptionSetWriter(a.stderr), progressbar.OptionSetDescription(text),
		progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionSetPredictTime(true),
		progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(progressEvery))
	return b, func() { _ = b.Finish() }
}
