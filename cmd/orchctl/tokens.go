// tokens: who may speak to the cluster, and as what.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) tokensCommand() *cobra.Command {
	return a.group("tokens", "Make, see and revoke the tokens by which people, programs and nodes are known",
		a.tokensCreateCommand(), a.tokensListCommand(), a.tokensRevokeCommand())
}

func (a *app) tokenKind() kind[*apiv1.Token] {
	return kind[*apiv1.Token]{
		noun:    "tokens",
		columns: []string{"ID", "NAME", "ROLE", "NAMESPACE", "AGE", "EXPIRES"},
		row: func(t *apiv1.Token) []string {
			expires := "never"
			if t.GetExpireTime() != nil {
				if left := t.GetExpireTime().AsTime().Sub(a.now()); left > 0 {
					expires = "in " + ageText(left)
				} else {
					expires = "expired"
				}
			}
			return []string{t.GetId(), t.GetName(), t.GetRole(), first(t.GetNamespace(), "(all)"), a.age(t.GetCreateTime()), expires}
		},
		name: (*apiv1.Token).GetId,
	}
}

func (a *app) tokensCreateCommand() *cobra.Command {
	var role string
	var ttl time.Duration
	c := a.command("create NAME --role ROLE", "Make a token and print its secret, once; -n binds it to a namespace", exactly(1), brief, func(ctx context.Context, args []string) error {
		if role == "" {
			return fault.New(fault.Invalid, "--role is missing; give admin, operator, client, node or viewer")
		}
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		req := &apiv1.CreateTokenRequest{Name: args[0], Role: role, Namespace: a.flags.namespace}
		if ttl != 0 {
			req.Ttl = durationpb.New(ttl)
		}
		r, err := cl.Tokens.CreateToken(ctx, req)
		if err != nil {
			return err
		}
		t := r.GetToken()
		switch a.flags.output {
		case "json", "yaml":
			return a.printMessage(r)
		case "name":
			_, err := fmt.Fprintln(a.out(), t.GetId())
			return err
		}
		a.note(fmt.Sprintf("token/%s (%s, %s) created; its secret is shown this once:", t.GetId(), t.GetName(), t.GetRole()))
		_, err = fmt.Fprintln(a.out(), r.GetSecret())
		return err
	})
	c.Flags().StringVar(&role, "role", "", "admin, operator, client, node or viewer")
	c.Flags().DurationVar(&ttl, "ttl", 0, "the time after which it is no longer good; 0 for never")
	a.complete(c, "role", "admin", "operator", "client", "node", "viewer")
	return c
}

func (a *app) tokensListCommand() *cobra.Command {
	var l listFlags
	c := a.command("list", "List tokens, without their secrets", exactly(0), brief, func(ctx context.Context, _ []string) error {
		match, err := parseTerms(l.filter, "id", "name", "role", "namespace")
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		answer := &apiv1.ListTokensResponse{}
		fetch := func() ([]*apiv1.Token, error) {
			r, err := cl.Tokens.ListTokens(ctx, &apiv1.ListTokensRequest{})
			answer.Tokens = keep(r.GetTokens(), l.limit, func(t *apiv1.Token) bool {
				return match.match(map[string]string{"id": t.GetId(), "name": t.GetName(), "role": t.GetRole(), "namespace": t.GetNamespace()})
			})
			return answer.Tokens, err
		}
		return show(ctx, a, a.tokenKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: role=client, name=PREFIX*, namespace=N; != negates")
	return c
}

func (a *app) tokensRevokeCommand() *cobra.Command {
	return a.command("revoke TOKEN", "End a token at once; it is named by its id, a unique prefix of that, or its name", exactly(1), brief, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		l, err := cl.Tokens.ListTokens(ctx, &apiv1.ListTokensRequest{})
		if err != nil {
			return err
		}
		var ids []string
		for _, t := range l.GetTokens() {
			if t.GetId() == args[0] {
				ids = []string{t.GetId()}
				break
			}
			if t.GetName() == args[0] || strings.HasPrefix(t.GetId(), args[0]) {
				ids = append(ids, t.GetId())
			}
		}
		id, err := unique("token", "tokens list", args[0], ids)
		if err != nil {
			return err
		}
		r, err := cl.Tokens.RevokeToken(ctx, &apiv1.RevokeTokenRequest{Id: id})
		if err != nil {
			return err
		}
		return a.printDone(r, id, "token/"+id+" revoked")
	})
}
