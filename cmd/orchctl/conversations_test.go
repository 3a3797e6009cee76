// Conversations with models.

package main

import "testing"

func TestConversations(t *testing.T) {
	r := newRig(t)
	if got := r.must("conversations list -o name --filter provider=zhipuai"); got != "conversation/support:17" {
		t.Error(got)
	}
	if got := r.must("conversations list -o name --owner 'token 4f2a'"); got != "conversation/plan" {
		t.Error(got)
	}
	if got := r.must("conversations delete plan"); got != "conversation/plan deleted" {
		t.Error(got)
	}
	if got := r.must("conversations list -A -o name"); got != "conversation/support:17" {
		t.Error(got)
	}
}
