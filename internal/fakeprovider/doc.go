// Package fakeprovider is a model provider for tests: it speaks the two dialects that providers speak, and misbehaves on request.
//
// A Server answers OpenAI's chat completions (POST …/chat/completions) and Anthropic's messages (POST …/messages), whole or as a
// stream of server-sent events, and lists its models (GET …/models). Without a script it echoes the last message. A script says what
// becomes of the next calls, one Step each:
//
//	fake := fakeprovider.New()
//	fake.Script(fakeprovider.Step{Status: 429, RetryAfter: "2"}, fakeprovider.Step{Hang: true})
//
// It records every call as it arrives, before it does anything else, so that a test can prove that none was doubled, and counts those
// whose client went away, so that a test can prove that a cancelled call ended here too.
//
// It is an http.Handler. Start serves it on loopback; Memory gives a network within the process, for tests under simulated time.
package fakeprovider
