// The providers of models, and what they can be asked.

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

func (a *app) providersCommand() *cobra.Command {
	return a.group("providers", "See the pools of connections to providers of models, and the models", a.listProvidersCommand(), a.modelsCommand())
}

func (a *app) providerKind() kind[*apiv1.Provider] {
	return kind[*apiv1.Provider]{
		noun:    "providers",
		columns: []string{"SERVER", "NAME", "HEALTHY", "BREAKER", "CONNECTIONS", "BUSY", "WAITING", "CALLS", "FAILED", "TOKENS", "COST", "LAST-ERROR", "+MODELS", "+LEFT"},
		row: func(p *apiv1.Provider) []string {
			return []string{
				p.GetServer(), p.GetName(), fmt.Sprint(p.GetHealthy()), p.GetBreaker(), fmt.Sprintf("%d/%d", p.GetOpen(), p.GetMax()), busyText(p), number(p.GetWaiting()),
				number(p.GetCalls()), number(p.GetFailed()), number(p.GetInputTokens() + p.GetOutputTokens()), fmt.Sprintf("$%.2f", p.GetCostUsd()), p.GetLastError(),
				strings.Join(p.GetModels(), ","), leftText(p),
			}
		},
		name: func(p *apiv1.Provider) string { return "provider/" + p.GetServer() + "/" + p.GetName() },
	}
}

// busyText is how many calls are under way, of as many as may be; an older server does not say the latter.
func busyText(p *apiv1.Provider) string {
	if p.GetMaxInFlight() == 0 {
		return number(p.GetInUse())
	}
	return fmt.Sprintf("%d/%d", p.GetInUse(), p.GetMaxInFlight())
}

// leftText is what may still be sent in this minute; empty where that is not known.
func leftText(p *apiv1.Provider) string {
	var parts []string
	if p.GetRequestsLeft() >= 0 {
		parts = append(parts, fmt.Sprintf("%d requests", p.GetRequestsLeft()))
	}
	if p.GetTokensLeft() >= 0 {
		parts = append(parts, fmt.Sprintf("%d tokens", p.GetTokensLeft()))
	}
	return strings.Join(parts, ", ")
}

func (a *app) listProvidersCommand() *cobra.Command {
	var l listFlags
	c := a.command("list", "List the pools of all servers, with what they do now", exactly(0), brief, func(ctx context.Context, _ []string) error {
		match, err := parseTerms(l.filter, "server", "name", "healthy", "breaker")
		cl, err2 := a.connect(ctx)
		if err := errors.Join(err, err2, l.check()); err != nil {
			return err
		}
		answer := &apiv1.ListProvidersResponse{}
		fetch := func() ([]*apiv1.Provider, error) {
			r, err := cl.Models.ListProviders(ctx, &apiv1.ListProvidersRequest{})
			a.noteMissing(r.GetMissing())
			answer.Missing = r.GetMissing()
			answer.Providers = keep(r.GetProviders(), l.limit, func(p *apiv1.Provider) bool {
				return match.match(map[string]string{"server": p.GetServer(), "name": p.GetName(), "healthy": fmt.Sprint(p.GetHealthy()), "breaker": p.GetBreaker()})
			})
			return answer.Providers, err
		}
		return show(ctx, a, a.providerKind(), &l, fetch, answer)
	})
	l.add(c, "terms joined by commas: server=ID, name=NAME, healthy=false, breaker=open; != negates")
	return c
}

func (a *app) modelKind() kind[*apiv1.Model] {
	price := func(p float64) string {
		if p == 0 {
			return ""
		}
		return fmt.Sprintf("$%g", p)
	}
	return kind[*apiv1.Model]{
		noun:    "models",
		columns: []string{"NAME", "PROVIDER", "DEFAULT", "IN/MTOKEN", "OUT/MTOKEN"},
		row: func(m *apiv1.Model) []string {
			return []string{m.GetName(), m.GetProvider(), fmt.Sprint(m.GetDefault()), price(m.GetInputPrice()), price(m.GetOutputPrice())}
		},
		name: func(m *apiv1.Model) string { return "model/" + m.GetProvider() + "/" + m.GetName() },
	}
}

func (a *app) modelsCommand() *cobra.Command {
	return a.command("models", "List the models that can be asked", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		r, err := cl.Models.ListModels(ctx, &apiv1.ListModelsRequest{})
		if err != nil {
			return err
		}
		return printList(a, a.modelKind(), r.GetModels(), r)
	})
}
