// conversations: what the cluster keeps of talks with models.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func (a *app) conversationsCommand() *cobra.Command {
	return a.group("conversations", "See and delete the conversations with models that the cluster keeps",
		a.conversationsListCommand(), a.conversationsGetCommand(), a.conversationsDeleteCommand())
}

func (a *app) conversationKind() kind[*apiv1.Conversation] {
	return kind[*apiv1.Conversation]{
		noun:    "conversations",
		columns: []string{"ID", "MESSAGES", "SIZE", "PROVIDER", "MODEL", "CALLER", "AGE", "EXPIRES", "+NAMESPACE", "+OWNER", "+VERSION"},
		row: func(c *apiv1.Conversation) []string {
			return []string{
				c.GetId(), number(c.GetMessageCount()), bytesText(int64(c.GetSizeBytes())), c.GetProvider(), c.GetModel(), c.GetCaller(), a.age(c.GetUpdateTime()),
				a.expires(c), c.GetNamespace(), c.GetOwner(), number(c.GetVersion()),
			}
		},
		name: func(c *apiv1.Conversation) string { return "conversation/" + c.GetId() },
	}
}

// expires is when a conversation goes.
func (a *app) expires(c *apiv1.Conversation) string {
	left := c.GetExpireTime().AsTime().Sub(a.now())
	if left <= 0 {
		return "now"
	}
	return "in " + ageText(left)
}

func (a *app) ownerFlag(c *cobra.Command, owner *string) {
	c.Flags().StringVar(owner, "owner", "", "whose it is, as -o wide shows it; for admins, who see those of others")
}

func (a *app) conversationsListCommand() *cobra.Command {
	var l listFlags
	var all bool
	var owner string
	c := a.command("list", "List your conversations, or as an admin those of everybody", exactly(0), brief, func(ctx context.Context, _ []string) error {
		match, err := parseTerms(l.filter, "id", "provider", "model", "caller")
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		answer := &apiv1.ListConversationsResponse{}
		fetch := func() (_ []*apiv1.Conversation, err error) {
			answer.Conversations, answer.NextPageToken, err = pages(l.limit, func(size int32, token string) ([]*apiv1.Conversation, string, error) {
				r, err := cl.Models.ListConversations(ctx, &apiv1.ListConversationsRequest{Namespace: a.scope(all), Owner: owner, PageSize: size, PageToken: token})
				return keep(r.GetConversations(), 0, func(c *apiv1.Conversation) bool {
					return match.match(map[string]string{"id": c.GetId(), "provider": c.GetProvider(), "model": c.GetModel(), "caller": c.GetCaller()})
				}), r.GetNextPageToken(), err
			})
			return answer.Conversations, err
		}
		return show(ctx, a, a.conversationKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: id=TEXT*, provider=NAME, model=NAME, caller=ROLE:NAME; != negates")
	a.allFlag(c, &all)
	a.ownerFlag(c, &owner)
	return c
}

func (a *app) conversationsGetCommand() *cobra.Command {
	var owner string
	c := a.command("get ID", "Show a conversation with all that was said", exactly(1), brief, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		r, err := cl.Models.GetConversation(ctx, &apiv1.GetConversationRequest{Namespace: a.namespace(), Id: args[0], Owner: owner})
		if err != nil {
			return err
		}
		t := r.GetConversation()
		fields := []field{
			{label: "ID", value: t.GetId()}, {label: "Namespace", value: t.GetNamespace()}, {label: "Caller", value: t.GetCaller()}, {label: "Owner", value: t.GetOwner(), wide: true},
			{label: "Provider", value: t.GetProvider()}, {label: "Model", value: t.GetModel()}, {label: "Version", value: number(t.GetVersion()), wide: true},
			{label: "Size", value: fmt.Sprintf("%d messages, %s", t.GetMessageCount(), bytesText(int64(t.GetSizeBytes())))},
			{label: "Created", value: a.at(t.GetCreateTime())}, {label: "Last turn", value: a.at(t.GetUpdateTime())}, {label: "Expires", value: a.expires(t)},
		}
		if err := printOne(a, a.conversationKind(), t, fields); err != nil || a.flags.output != "table" && a.flags.output != "wide" {
			return err
		}
		return a.printMessages(t.GetMessages())
	})
	a.ownerFlag(c, &owner)
	c.ValidArgsFunction = a.completeConversations
	return c
}

// printMessages prints what was said, line by line as it was said.
func (a *app) printMessages(messages []*apiv1.ChatMessage) error {
	var b strings.Builder
	for _, m := range messages {
		fmt.Fprintf(&b, "\n%s:\n", m.GetRole())
		for line := range strings.Lines(m.GetText()) {
			indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
			b.WriteString("  " + strings.ReplaceAll(indent, "\t", "    ") + clean(line) + "\n")
		}
	}
	_, err := io.WriteString(a.out(), b.String())
	return err
}

func (a *app) conversationsDeleteCommand() *cobra.Command {
	var owner, key string
	c := a.command("delete ID", "Forget a conversation", exactly(1), brief, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		r, err := cl.Models.DeleteConversation(ctx, &apiv1.DeleteConversationRequest{Namespace: a.namespace(), Id: args[0], Owner: owner, IdempotencyKey: key})
		if err != nil {
			return err
		}
		return a.printDone(r, "conversation/"+args[0], "conversation/"+args[0]+" deleted")
	})
	a.ownerFlag(c, &owner)
	keyFlag(c, &key, "has no further effect")
	c.ValidArgsFunction = a.completeConversations
	return c
}

// completeConversations offers the conversations that the caller sees.
func (a *app) completeConversations(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.ask(cmd, func(ctx context.Context) (out []cobra.Completion, err error) {
		if len(args) > 0 {
			return nil, nil
		}
		r, err := a.client.Models.ListConversations(ctx, &apiv1.ListConversationsRequest{Namespace: a.namespace(), PageSize: completionMax})
		for _, c := range r.GetConversations() {
			out = append(out, cobra.CompletionWithDesc(c.GetId(), fmt.Sprintf("%s, %d messages", c.GetCaller(), c.GetMessageCount())))
		}
		return out, err
	})
}
