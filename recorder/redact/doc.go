// Package redact takes secrets out of text: tool calls, model calls and messages carry passwords, keys and tokens, and a record of
// them must not.
//
// Built in are
//
//   - values of keys that name a secret: password, passwd, pwd, passphrase, secret, token, api_key, access_key, private_key, credentials,
//     authorization, cookie and what contains or ends like these, in JSON (also JSON quoted in JSON, to any depth), YAML, headers, query
//     strings, environment files, XML elements and command lines (--password x). Names of counts (max_tokens) are none;
//   - bearer tokens; keys that begin with sk-, orch_, ghp_ (and its kin), github_pat_, glpat-, xoxb- (and its kin), AIza; AWS key ids; JSON
//     Web Tokens; private keys in PEM; passwords in URLs.
//
// A redactor errs towards taking out too much. What was there is replaced by [REDACTED], and counted.
//
// Text is cut to a bound in the same go, since a secret of which the cut leaves a half would not be known any more: Text looks at Beyond
// more bytes than it keeps.
//
// The built-in rules are one pass over the bytes, without regular expressions: recording must keep up with the work.
package redact
