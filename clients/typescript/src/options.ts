// Options: what a client and a call may be told, their defaults, and the checks that refuse what cannot work.

import { type Address, parseAddress } from './addresses.js';
import type { BreakerSettings } from './breaker.js';
import { invalid } from './errors.js';
import type { Fetch, WebSocketFactory } from './websocket.js';

/** Which calls go first when room is short. */
export type Priority = 'critical' | 'high' | 'normal' | 'low';

/** The priorities, the most urgent first. */
export const priorities: readonly Priority[] = ['critical', 'high', 'normal', 'low'];

/** Where a client writes what happens to its connections. `console` is one. Tokens, arguments and answers are never written. */
export interface Logger {
  debug(message: string, fields?: Record<string, unknown>): void;
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
  error(message: string, fields?: Record<string, unknown>): void;
}

/** A token, or what gives one for each new connection. */
export type TokenSource = string | (() => string | Promise<string>);

/** What a client is told. All times are in milliseconds. */
export interface ClientOptions {
  /** The client ports of servers of one cluster, any of which will do: `host:8079` (https), or URLs. */
  addresses: readonly string[];
  /** Of `orchctl tokens create`; empty for a server without tokens, or where a certificate stands for it. */
  token: TokenSource;
  /**
   * What calls and answers belong to: 3–64 characters of `A–Z a–z 0–9 _ -`. A program that keeps it, and the request_ids of its calls, across its own restarts loses no
   * answer to them. 256 random bits by default. Two clients that use one take it from each other.
   */
  sessionId?: string | undefined;
  /** The deadline of calls that name none; 5 min by default. */
  callTimeoutMs?: number | undefined;
  /** How long an attempt to connect may take, up to the answer to its hello; 10 s by default. */
  connectTimeoutMs?: number | undefined;
  /** How long `connect`, `listTools`, `health` and `rotateToken` may take; 30 s by default. */
  requestTimeoutMs?: number | undefined;
  /** The shortest and the longest pause before a further attempt; 1 s and 30 s by default. */
  reconnectMinMs?: number | undefined;
  reconnectMaxMs?: number | undefined;
  /** Attempts in a row after which the client is `unreachable`, and tries only every `slowRetryMs`; 10, and 60 s by default. */
  reconnectAttempts?: number | undefined;
  slowRetryMs?: number | undefined;
  /** WebSockets in a row that could not be had, after which HTTP is tried, too; 3 by default, Infinity for never. */
  fallbackAfter?: number | undefined;
  /** Failures in a row after which an address is left alone, and for how long; 5 and 30 s by default. */
  breaker?: Partial<BreakerSettings> | undefined;
  /** How long a connection may be silent before it is asked whether it is there; 30 s by default. */
  pingEveryMs?: number | undefined;
  /** How long an answer to that may take; the third that is missed ends the connection. 5 s by default. */
  pingTimeoutMs?: number | undefined;
  /** Calls in flight at once; 64 by default, which is what servers allow. */
  maxInFlight?: number | undefined;
  /** Calls that wait for room or for a connection; 1000 by default. More are refused with `OVER_CAPACITY`. */
  maxQueuedCalls?: number | undefined;
  /** The largest message to a server; 1 MiB by default, which is what servers allow. */
  maxMessageBytes?: number | undefined;
  /** Characters of a stream that nobody has read yet; 4 Mi by default. What comes beyond is left out, and `streamIntact` says so. */
  maxBufferedChars?: number | undefined;
  /** Allows plain text to other hosts than this one. */
  insecure?: boolean | undefined;
  /** Opens WebSockets instead of the platform's, such as with certificates of one's own; see `@neolith/orchestrator-client/node`. */
  webSocket?: WebSocketFactory | undefined;
  /** Makes HTTP requests instead of the platform's `fetch`. */
  fetch?: Fetch | undefined;
  /** Nothing is written by default. */
  logger?: Logger | undefined;
}

/** What one call is told. */
export interface CallOptions {
  /** `normal` by default. */
  priority?: Priority | undefined;
  /** When the answer must be there, in milliseconds from now; up to 24 h at most servers. */
  deadlineMs?: number | undefined;
  /**
   * The call's name within its session: 1–128 characters of printable ASCII without spaces. A call that is repeated under it is the same call.
   * Random by default.
   */
  requestId?: string | undefined;
  /** Calls of the client's session with one key run one after the other, in the order in which they were made: 1–128 bytes of UTF-8. None by default. */
  key?: string | undefined;
  /** False leaves the call out of the replicated log: quicker, for what can simply be asked again. */
  durable?: boolean | undefined;
  /** Is told, at least every 8 s, that the call goes on. Not over HTTP. */
  onProgress?: ((message: string) => void) | undefined;
  /** Is given the parts of the answer of a tool that streams. Not over HTTP. */
  onChunk?: ((chunk: string) => void) | undefined;
  /** Cancels the call, and stops it where it runs. */
  signal?: AbortSignal | undefined;
}

/** The options of a client with all defaults filled in. */
export interface Settings {
  addresses: readonly Address[];
  token: TokenSource;
  sessionId: string;
  callTimeoutMs: number;
  connectTimeoutMs: number;
  requestTimeoutMs: number;
  reconnect: { minMs: number; maxMs: number };
  reconnectAttempts: number;
  slowRetryMs: number;
  fallbackAfter: number;
  pingEveryMs: number;
  pingTimeoutMs: number;
  maxInFlight: number;
  maxQueuedCalls: number;
  maxMessageBytes: number;
  maxBufferedChars: number;
  webSocket: WebSocketFactory;
  fetch: Fetch;
  logger: Logger;
}

const nothing = (): void => {};
const silent: Logger = { debug: nothing, info: nothing, warn: nothing, error: nothing };

/** Timers take no more. */
const maxTimerMs = 2 ** 31 - 1;

/** Checks options and fills in the defaults. Throws `INVALID_REQUEST` with the option as its field. */
export function settle(o: ClientOptions, openWebSocket: WebSocketFactory): Settings {
  const number = (field: keyof ClientOptions, value: number | undefined, byDefault: number, most: number): number => {
    const v = value ?? byDefault;
    if (typeof v !== 'number' || !(v >= 1 && v <= most)) throw invalid(field, `${String(v)} is not in 1–${most}`);
    return v;
  };
  const ms = (field: keyof ClientOptions, byDefault: number) => number(field, o[field] as number | undefined, byDefault, maxTimerMs);
  const whole = (field: keyof ClientOptions, byDefault: number, most = Number.MAX_SAFE_INTEGER) => number(field, o[field] as number | undefined, byDefault, most);

  const breaker = { failures: o.breaker?.failures ?? 5, openMs: o.breaker?.openMs ?? 30_000 };
  if (!(breaker.failures >= 1) || !(breaker.openMs >= 1 && breaker.openMs <= maxTimerMs)) throw invalid('breaker', 'failures and openMs must be at least 1');
  if (!Array.isArray(o.addresses) || o.addresses.length === 0) throw invalid('addresses', 'are missing; name the client port of one server at least');
  if (typeof o.token !== 'string' && typeof o.token !== 'function') throw invalid('token', 'is neither a string nor a function that gives one');
  if (o.sessionId !== undefined && !/^[A-Za-z0-9_-]{3,64}$/.test(o.sessionId)) throw invalid('sessionId', 'is not 3–64 characters of A–Z a–z 0–9 _ -');
  const { logger = silent } = o;
  const reconnect = { minMs: ms('reconnectMinMs', 1_000), maxMs: ms('reconnectMaxMs', 30_000) };
  if (reconnect.minMs > reconnect.maxMs) throw invalid('reconnectMinMs', 'is more than reconnectMaxMs');
  return {
    addresses: o.addresses.map((a: unknown) => parseAddress(String(a), o.insecure ?? false, breaker)),
    token: o.token,
    sessionId: o.sessionId ?? randomID(),
    callTimeoutMs: ms('callTimeoutMs', 300_000),
    connectTimeoutMs: ms('connectTimeoutMs', 10_000),
    requestTimeoutMs: ms('requestTimeoutMs', 30_000),
    reconnect,
    reconnectAttempts: whole('reconnectAttempts', 10),
    slowRetryMs: ms('slowRetryMs', 60_000),
    fallbackAfter: whole('fallbackAfter', 3, Infinity),
    pingEveryMs: ms('pingEveryMs', 30_000),
    pingTimeoutMs: ms('pingTimeoutMs', 5_000),
    maxInFlight: whole('maxInFlight', 64),
    maxQueuedCalls: whole('maxQueuedCalls', 1_000),
    maxMessageBytes: whole('maxMessageBytes', 1 << 20),
    maxBufferedChars: whole('maxBufferedChars', 4 << 20),
    webSocket: o.webSocket ?? openWebSocket,
    fetch: o.fetch ?? ((url, init) => fetch(url, init)),
    logger,
  };
}

/** 256 random bits as 43 characters that may stand anywhere. */
export function randomID(): string {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
  let id = '';
  let bits = 0;
  let held = 0;
  for (const byte of crypto.getRandomValues(new Uint8Array(32))) {
    bits = (bits << 8) | byte;
    for (held += 8; held >= 6; held -= 6) id += alphabet[(bits >> (held - 6)) & 63];
    bits &= (1 << held) - 1;
  }
  return id + alphabet[(bits << (6 - held)) & 63];
}
