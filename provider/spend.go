// What was spent today, written down so that a restart does not forget it.

package provider

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/google/renameio/v2"

	"github.com/neolith/orchestrator/internal/fault"
)

// spendVersion is the form of the file.
const spendVersion = 1

// spendFile is the file's content, in JSON.
type spendFile struct {
	Version int     `json:"version"`
	Day     string  `json:"day"`
	Tenants []Spent `json:"tenants"`
}

// loadSpent reads the file. One of another day is of no use any more.
func (p *Pools) loadSpent(now time.Time) error {
	if p.spendFile == "" {
		return nil
	}
	text, err := os.ReadFile(p.spendFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Invalid, "providers: read what was spent today: %w; make it readable for this user", err)
	}
	var f spendFile
	if err := json.Unmarshal(text, &f); err != nil {
		return fault.New(fault.Invalid, "providers: %s is damaged: %w; remove it, and today's budgets begin anew", p.spendFile, err)
	}
	if f.Version != spendVersion {
		return fault.New(fault.Invalid, "providers: %s is of version %d, and this program reads %d; remove it, and today's budgets begin anew", p.spendFile, f.Version, spendVersion)
	}
	b := p.budgets
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn(now)
	if f.Day != b.day {
		return nil
	}
	for _, s := range f.Tenants[:min(len(f.Tenants), tenantsMax)] {
		b.accounts[s.Tenant] = &account{Spent: s}
	}
	b.changed = false
	return nil
}

// saveSpent writes the file when something has changed.
func (p *Pools) saveSpent(now time.Time) error {
	if p.spendFile == "" {
		return nil
	}
	b := p.budgets
	b.mu.Lock()
	changed := b.changed
	b.changed = false
	b.mu.Unlock()
	if !changed {
		return nil
	}
	text, err := json.Marshal(spendFile{Version: spendVersion, Day: dayOf(now), Tenants: b.list(now)})
	if err == nil {
		err = renameio.WriteFile(p.spendFile, text, 0o600)
	}
	if err != nil {
		b.mu.Lock()
		b.changed = true
		b.mu.Unlock()
		return fault.New(fault.Unavailable, "providers: write what was spent today: %w", err)
	}
	return nil
}
