// Views of calls and clients.

package state

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"slices"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
)

// Call returns the call with the key.
func (v *View) Call(k queue.Key) *queue.Call {
	return first[queue.Call](v.txn, tableCalls, byID, callKeyBytes(k))
}

// CallsOf yields all calls of a client that are kept, in the order in which they were taken.
func (v *View) CallsOf(k queue.ClientKey) iter.Seq[*queue.Call] {
	return func(yield func(*queue.Call) bool) {
		var all []*queue.Call
		prefixed(v.txn, tableCalls, clientKeyBytes(k, 0), func(c *queue.Call) bool {
			all = append(all, c)
			return true
		})
		slices.SortFunc(all, func(a, b *queue.Call) int { return cmp.Compare(a.Number, b.Number) })
		for _, c := range all {
			if !yield(c) {
				return
			}
		}
	}
}

// CallsOn yields the calls of a server that are not over: the more urgent first, then in the order in which they were taken.
func (v *View) CallsOn(server string) iter.Seq[*queue.Call] {
	return callsOf(v.txn, setID{setCallsOn, server})
}

// CallServers yields the servers that have calls which are not over, by id.
func (v *View) CallServers() iter.Seq[string] {
	return func(yield func(string) bool) {
		after := setID{kind: setCallsOn}
		for {
			it, err := v.txn.LowerBound(tableSets, byID, append(after.bytes(""), 1))
			must(err)
			c, ok := it.Next().(*chunk)
			for ok && c.setID == after { // its other chunks
				c, ok = it.Next().(*chunk)
			}
			if !ok || c.kind != setCallsOn || !yield(c.owner) {
				return
			}
			after = c.setID
		}
	}
}

// Calls yields the calls with larger numbers, in the order in which they were taken.
func (v *View) Calls(afterNumber uint64) iter.Seq[*queue.Call] {
	return func(yield func(*queue.Call) bool) {
		from(v.txn, tableCalls, byNumber, binary.BigEndian.AppendUint64(nil, afterNumber), func(c *queue.Call) bool {
			return c.Number == afterNumber || yield(c)
		})
	}
}

// CallsDue yields the calls that are not over, the one with the next deadline first.
func (v *View) CallsDue() iter.Seq[*queue.Call] { return callsOf(v.txn, setID{kind: setCallsDue}) }

// DeadCalls yields dead calls, those that died first first: of a namespace (empty: of all), behind the one with the token (empty: from
// the first).
func (v *View) DeadCalls(namespace string, after DeadToken) iter.Seq[*queue.Call] {
	return func(yield func(*queue.Call) bool) {
		for key := range (setID{kind: setCallsDead}).all(v.txn) {
			if key <= string(after) {
				continue
			}
			c := callByNumber(v.txn, callNumber(key))
			if (namespace == "" || c.Namespace() == namespace) && !yield(c) {
				return
			}
		}
	}
}

// DeadToken is the place of a dead call among all of them.
type DeadToken string

// DeadTokenOf returns a dead call's place.
func DeadTokenOf(c *queue.Call) DeadToken { return DeadToken(callStandingOf(c, 0).dead) }

// String writes the place so that ParseDeadToken reads it.
func (t DeadToken) String() string { return hex.EncodeToString([]byte(t)) }

// ParseDeadToken reads what String wrote; nothing is the place before the first.
func ParseDeadToken(s string) (DeadToken, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 0 && len(b) != 16 {
		return "", fault.New(fault.Invalid, "page_token: is not one that a page gave").WithField("page_token")
	}
	return DeadToken(b), nil
}

// Client returns the client's session.
func (v *View) Client(k queue.ClientKey) *queue.Client {
	if row := first[clientRow](v.txn, tableClients, byID, clientKeyBytes(k, 0)); row != nil {
		return &row.Client
	}
	return nil
}

// Clients yields all clients' sessions, by owner and session.
func (v *View) Clients() iter.Seq[*queue.Client] {
	return func(yield func(*queue.Client) bool) {
		prefixed(v.txn, tableClients, nil, func(r *clientRow) bool { return yield(&r.Client) })
	}
}
