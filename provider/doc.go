// Package provider calls language models through pools of connections, one pool for each provider.
//
// A provider is an API of one of two dialects (OpenAI's chat completions, Anthropic's messages) at one or several endpoints, each a
// URL with a key. Its pool holds between min and max slots; a slot is one keep-alive connection and carries one call at a time. Slots are
// opened before they are needed (up to min), kept warm, and closed when they have been idle (down to min). How many calls are under way
// at most (max_in_flight) may be fewer than max: what a provider bears, and the other slots are left to health checks.
//
//	Chat, Stream ──► budget ──► provider, in order ──► endpoint ──────────► slot ──► HTTP
//	                 (tenant)   (pool after pool)      (breaker, rate       (puddle)
//	                                                    limits, balance)
//
// A call goes to the first provider, in the configuration's order, that has the model, and there to the endpoint with the fewest calls
// for its weight among those whose breaker lets it through and whose rate limits have room. What is refused goes to the next endpoint,
// and then to the next provider.
//
// # What is repeated
//
// A model may have worked, and been paid for, although no answer came. A call is therefore tried elsewhere only when it certainly did
// not happen: no connection came about, or the answer was a refusal (429, 503, 529, a key or a model that is not known) or a plain
// failure (500), before any piece of an answer. A connection that broke, an answer that never came, was cut or was no answer leaves it
// unsure: the caller is told so, and repeats if it likes, or says beforehand that it does not mind (Request.RepeatUnsure).
//
// # Money
//
// Tokens and their price are counted by provider and, for each UTC day, by tenant. A budget refuses a tenant's calls before they are made,
// with the time from which they are taken again: it sets aside what the call can cost at most, and settles with what it did cost.
// What was spent outlives a restart where Options.SpendFile is given.
//
// # Keys
//
// Keys are read from files, and again when they change. They are sent to their endpoint and nowhere else: a redirect is not
// followed, and text that a provider sends back is searched for them before it is shown.
package provider
