// Roles, and the rights each has.

package auth

import (
	"slices"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
)

// Role is what a token or a certificate makes its holder.
type Role string

// The roles.
const (
	Admin    Role = "admin"
	Operator Role = "operator"
	Client   Role = "client"
	Node     Role = "node"
	Viewer   Role = "viewer"
	// Server is the role of servers' certificates; no token has it.
	Server Role = "server"
)

// TokenRoles are the roles a token may have, the mightiest first.
var TokenRoles = []Role{Admin, Operator, Client, Viewer, Node}

// ParseRole reads the role of a token. Errors are of kind fault.Invalid and list the roles.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(TokenRoles, r) {
		return r, nil
	}
	return "", fault.New(fault.Invalid, "role: %.64q is not a role; use %s", s, joinRoles(TokenRoles)).WithField("role")
}

// Right is a kind of doing. The table of methods names one for each method.
type Right uint8

// The rights.
const (
	Public     Right = iota + 1 // anybody, without a token
	Read                        // look at what is
	Use                         // run sessions and talk to them
	Operate                     // keep the cluster running
	Administer                  // decide who and what belongs to it
	LinkNode                    // be a node
	Relay                       // be a server
)

// rights is the whole of who may do what. Public is everybody's.
var rights = map[Role][]Right{
	Viewer:   {Read},
	Client:   {Read, Use},
	Operator: {Read, Use, Operate},
	Admin:    {Read, Use, Operate, Administer, LinkNode},
	Node:     {LinkNode},
	Server:   {Relay},
}

// Has reports whether the role has the right.
func (r Role) Has(right Right) bool {
	return right == Public || slices.Contains(rights[r], right)
}

// rolesWith names the roles of tokens that have a right, for the remedy in a refusal.
func rolesWith(right Right) []Role {
	var with []Role
	for _, r := range TokenRoles {
		if r.Has(right) {
			with = append(with, r)
		}
	}
	slices.Reverse(with) // the least that is enough comes first
	return with
}

func joinRoles(roles []Role) string {
	s := make([]string, len(roles))
	for i, r := range roles {
		s[i] = string(r)
	}
	if len(s) < 2 {
		return strings.Join(s, "")
	}
	return strings.Join(s[:len(s)-1], ", ") + " or " + s[len(s)-1]
}
