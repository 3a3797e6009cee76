// The client: what programs use. It puts the parts together:
//
//   call, stream ──► CallTable ──────────── messages ──────────► Link ──► WebSocket or HTTP
//                        ▲   attach, detach                        ▲
//                        └───────────── Connector ── makes, ends ──┘
//                                           └── Addresses, breakers, backoff

import type { Transport } from './addresses.js';
import type { BreakerState } from './breaker.js';
import type { CallResult, CallWish } from './call.js';
import { now, pause } from './clock.js';
import { type ClientState, Connector } from './connector.js';
import { invalid, OrchestratorError, textOf } from './errors.js';
import { Emitter } from './events.js';
import { type AskOp, type LinkEnd, LinkEnded } from './link.js';
import type { AnswerMessage, Health, ToolInfo } from './messages.js';
import { type CallOptions, type ClientOptions, priorities, randomID, type Settings, settle } from './options.js';
import { CallStream } from './stream.js';
import { CallTable, type Unclaimed } from './table.js';
import type { ToolArguments } from './tools.js';
import { openWebSocket } from '#websocket';

/** Refusals in a row, as the server is not available, after which another server is asked. */
const elsewhereAfter = 3;
/** What a call's message has beside its arguments, at most. */
const envelopeBytes = 512;
/** How long a server may take to hear of a token that another one has just made, and how often it is asked meanwhile. */
const newTokenMs = 2_000;
const newTokenPollMs = 250;
const maxDeadlineMs = 2 ** 31 - 1;
/** The longest key of an order. */
const maxKeyBytes = 128;

/** What listeners are told. */
export interface ClientEvents {
  /** The state has changed. */
  state: { state: ClientState; previous: ClientState };
  /** There is a connection. `resumed` says that the server knew the session. */
  connected: { address: string; transport: Transport; server: string | undefined; sessionId: string; resumed: boolean };
  /** There is none any more. */
  disconnected: { address: string; transport: Transport; code: number | undefined; reason: string };
  /** The next attempt comes after a pause. */
  retry: { attempt: number; delayMs: number; reason: string };
  /** The answer to a call that was made by whoever had this session before, such as this program before its restart. */
  unclaimed: Unclaimed;
}

/** How a client does, for people and metrics. */
export interface ClientStatus {
  state: ClientState;
  sessionId: string;
  /** Where it is connected; undefined where it is not. */
  address: string | undefined;
  transport: Transport | undefined;
  /** Why it is not connected; empty when it is. */
  reason: string;
  /** Calls that wait for room or a connection. */
  queued: number;
  /** Calls that servers have. */
  inFlight: number;
  /** The circuit breakers of each address. */
  breakers: Record<string, Record<Transport, BreakerState>>;
}

/**
 * A client of the orchestrator's gateway. It holds one connection for all its calls, goes to another server when one fails, uses HTTP where no WebSocket can be
 * held, and asks again for what was in flight, so that each call has exactly one outcome.
 *
 * ```ts
 * const client = new OrchestratorClient({ addresses: ['server-1.example.org:8079'], token });
 * const session = (await client.call('session_spawn', { command: ['cat'], wait: true })).json<{ id: string }>();
 * const answer = await client.call('session_send', { id: session.id, message: 'hello' });
 * await client.close();
 * ```
 */
export class OrchestratorClient {
  readonly #settings: Settings;
  readonly #emitter: Emitter<ClientEvents>;
  readonly #connector: Connector;
  readonly #table: CallTable;
  #renewing: Promise<boolean> | undefined;

  /** Throws `INVALID_REQUEST` for options that cannot work. It connects with the first call, or by {@link connect}. */
  constructor(options: ClientOptions) {
    const settings = (this.#settings = settle(options, openWebSocket));
    const { logger } = settings;
    this.#emitter = new Emitter((thrown) => logger.error('a listener of the client has thrown', { thrown: thrown instanceof Error ? thrown.name : typeof thrown }));
    this.#table = new CallTable(settings, {
      onUnclaimed: (outcome) => this.#emitter.emit('unclaimed', outcome),
      onUnavailable: (inARow) => {
        if (inARow >= elsewhereAfter && settings.addresses.length > 1) this.#connector.leave('the server is not available');
      },
      renewToken: () => (this.#renewing ??= this.#renewToken().finally(() => (this.#renewing = undefined))),
      whyNot: () => this.#connector.why,
    });
    this.#connector = new Connector(settings, {
      onState: (state, previous) => this.#emitter.emit('state', { state, previous }),
      onUp: (link, ack, whole) => {
        const { transport, address } = link;
        logger.info('connected', { address: address.name, transport, server: ack.server, resumed: ack.resumed });
        this.#table.attach(link, ack.resumed, whole);
        this.#emitter.emit('connected', { address: address.name, transport, server: ack.server, sessionId: ack.sessionId, resumed: ack.resumed });
      },
      onDown: (link, end) => this.#down(link.address.name, link.transport, end),
      onGiveUp: (code, message) => this.#table.rejectAll(code, message),
      onRetry: (attempt, delayMs, reason) => {
        logger.warn('not connected', { attempt, delayMs: Math.round(delayMs), reason });
        this.#emitter.emit('retry', { attempt, delayMs, reason });
      },
      onCallMessage: (m) => this.#table.onMessage(m),
      onMalformed: (op, id, why) => this.#table.onMalformed(op, id, why),
      onGap: () => this.#table.askAgain(),
    });
  }

  #down(address: string, transport: Transport, end: LinkEnd): void {
    this.#settings.logger.info('disconnected', { address, transport, reason: end.message });
    if (end.kind === 'too-large') this.#table.rejectTooLarge(end.message);
    this.#table.detach();
    this.#emitter.emit('disconnected', { address, transport, code: end.code, reason: end.message });
  }

  /** How it is connected. */
  get state(): ClientState {
    return this.#connector.state;
  }

  /** What its calls and answers belong to. */
  get sessionId(): string {
    return this.#connector.sessionId;
  }

  /** How it does, in full. */
  status(): ClientStatus {
    const { queued, inFlight } = this.#table.counts;
    const { link, state, sessionId, why, addresses } = this.#connector;
    return { state, sessionId, address: link?.address.name, transport: link?.transport, reason: why, queued, inFlight, breakers: addresses.states(now()) };
  }

  /**
   * Has a listener told what happens, from now on. What a listener throws is logged and changes nothing.
   *
   * @returns a function that ends it.
   */
  on<K extends keyof ClientEvents>(event: K, listener: (event: ClientEvents[K]) => void): () => void {
    return this.#emitter.on(event, listener);
  }

  /**
   * Connects now, and not with the first call; tries at once where it would wait. Rejects with `UNAUTHORIZED` when no server takes the token, and with `TIMEOUT` when there is
   * no connection by then; it goes on trying all the same.
   */
  async connect(options: { timeoutMs?: number } = {}): Promise<void> {
    this.#connector.hurry();
    await this.#connector.up(options.timeoutMs ?? this.#settings.requestTimeoutMs);
  }

  /**
   * Calls a tool. Whatever happens to connections and servers meanwhile, it has one outcome: the answer, or an {@link OrchestratorError}. `OVER_CAPACITY` and
   * `SERVICE_UNAVAILABLE` are tried again as long as the deadline allows; other errors are for the caller. After a `TIMEOUT` the call can be made again under the same
   * `requestId`, without a second effect. When the signal is aborted, it rejects at once with the signal's reason, and the call is cancelled where it runs.
   */
  call<N extends keyof ToolArguments>(name: N, args: ToolArguments[N], options?: CallOptions): Promise<CallResult>;
  call(name: string, args?: Record<string, unknown>, options?: CallOptions): Promise<CallResult>;
  async call(name: string, args: object = {}, options: CallOptions = {}): Promise<CallResult> {
    if (this.state === 'closed') throw new OrchestratorError('CLOSED', 'the client is closed');
    const wish = this.#wish(name, args, options);
    const result = this.#table.add(wish, options.signal);
    this.#connector.start();
    return result;
  }

  /**
   * Calls a tool that streams, and has its chunks read one by one. The argument `stream: true` is added unless `args` says otherwise.
   */
  stream<N extends keyof ToolArguments>(name: N, args: ToolArguments[N], options?: Omit<CallOptions, 'onChunk'>): CallStream;
  stream(name: string, args?: Record<string, unknown>, options?: Omit<CallOptions, 'onChunk'>): CallStream;
  stream(name: string, args: object = {}, options: Omit<CallOptions, 'onChunk'> = {}): CallStream {
    const requestId = options.requestId ?? randomID();
    const begin = (onChunk: (chunk: string) => void, signal: AbortSignal) =>
      this.call(name, { stream: true, ...args }, { ...options, requestId, onChunk, signal });
    return new CallStream(requestId, this.#settings.maxBufferedChars, begin, options.signal);
  }

  /** The tools that there are. */
  async listTools(): Promise<ToolInfo[]> {
    const m = await this.#ask('list_tools');
    if (m.op !== 'list_tools_res' || m.tools === undefined) throw new OrchestratorError('PROTOCOL_ERROR', `the server answered list_tools with ${m.op}`);
    return m.tools;
  }

  /** How the server does that this client is connected to. */
  async health(): Promise<Health> {
    const m = await this.#ask('health');
    if (m.op !== 'health_res' || m.health === undefined) throw new OrchestratorError('PROTOCOL_ERROR', `the server answered health with ${m.op}`);
    return m.health;
  }

  /**
   * Goes on with another token, which must be of the same holder for calls in flight to go on; then the former one may be revoked. Without an argument, the token is asked of
   * the function that was given as `token`.
   */
  async rotateToken(next?: string): Promise<void> {
    if (next === undefined && typeof this.#settings.token !== 'function') throw invalid('next', 'is missing; give the new token, or a function as token');
    const token = next ?? (await this.#connector.fetchToken());
    await this.#rotate(token);
  }

  /** Ends the connection. Calls without an outcome reject with `CLOSED`; at the server they go on, and a client with the same `sessionId` is given their answers. */
  async close(): Promise<void> {
    const ended = this.#connector.close();
    this.#table.rejectAll('CLOSED', 'the client was closed before the answer came');
    this.#table.detach();
    await ended;
  }

  /** Checks a call. */
  #wish(name: string, args: object, o: CallOptions): CallWish {
    const requestId = o.requestId ?? randomID();
    if (typeof name !== 'string' || name === '') throw invalid('name', 'is missing; listTools tells the names');
    if (typeof requestId !== 'string' || !/^[!-~]{1,128}$/.test(requestId) || /^\.{1,2}$/.test(requestId)) {
      throw invalid('requestId', 'is not 1–128 characters of printable ASCII without spaces');
    }
    const priority = o.priority ?? 'normal';
    if (!priorities.includes(priority)) throw invalid('priority', `is not one of ${priorities.join(', ')}`);
    const deadlineMs = o.deadlineMs ?? this.#settings.callTimeoutMs;
    if (typeof deadlineMs !== 'number' || !(deadlineMs >= 1 && deadlineMs <= maxDeadlineMs)) throw invalid('deadlineMs', `${String(deadlineMs)} is not in 1–${maxDeadlineMs}`);
    const { key } = o;
    if (key !== undefined && (typeof key !== 'string' || key === '' || new TextEncoder().encode(key).length > maxKeyBytes)) throw invalid('key', `is not 1–${maxKeyBytes} bytes`);
    let text: string | undefined;
    try {
      text = JSON.stringify(args);
    } catch (err) {
      throw invalid('arguments', `cannot be written as JSON: ${textOf(err)}`);
    }
    if (text === undefined || !text.startsWith('{')) throw invalid('arguments', 'are not an object');
    const { maxMessageBytes } = this.#settings;
    const bytes = text.length * 3 < maxMessageBytes ? 0 : new TextEncoder().encode(text).length;
    const envelope = envelopeBytes + (key === undefined ? 0 : new TextEncoder().encode(JSON.stringify(key)).length);
    if (bytes + envelope > maxMessageBytes) throw invalid('arguments', `are ${bytes} bytes; a message is at most ${maxMessageBytes} (maxMessageBytes)`);
    return { requestId, tool: name, arguments: text, priority, deadline: now() + deadlineMs, durable: o.durable !== false, key, onProgress: o.onProgress, onChunk: o.onChunk };
  }

  /** Asks something other than a call, on this connection or the next, until there is an answer or the time is over. */
  async #ask(op: AskOp, fields: () => Record<string, string> = () => ({})): Promise<AnswerMessage> {
    const by = now() + this.#settings.requestTimeoutMs;
    for (;;) {
      const link = await this.#connector.up(Math.max(1, by - now()));
      try {
        return await link.ask(op, fields(), Math.max(1, by - now()));
      } catch (err) {
        if (err instanceof LinkEnded) continue;
        const retry = err instanceof OrchestratorError && (err.code === 'OVER_CAPACITY' || err.code === 'SERVICE_UNAVAILABLE') ? err.retryAfterMs : undefined;
        if (retry === undefined || now() + retry >= by) throw err;
        await pause(Math.max(retry, 20));
      }
    }
  }

  async #rotate(token: string): Promise<void> {
    const patience = now() + newTokenMs;
    for (;;) {
      try {
        await this.#ask('rotate_token', () => ({ old: this.#connector.token, new: token }));
        return this.#connector.replaceToken(token, this.#connector.link?.transport === 'http');
      } catch (err) {
        const code = err instanceof OrchestratorError ? err.code : undefined;
        // The session has been given to the new token already, on a connection that broke before it said so.
        if (code === 'DUPLICATE') return this.#connector.replaceToken(token, true);
        if (code !== 'UNAUTHORIZED' || now() >= patience) throw err;
      }
      await pause(newTokenPollMs);
    }
  }

  /** A call was refused as its token is not good any more: a function may give a better one. */
  async #renewToken(): Promise<boolean> {
    if (typeof this.#settings.token !== 'function') return false;
    try {
      const token = await this.#connector.fetchToken();
      if (token === this.#connector.token) return false;
      await this.#rotate(token);
      return true;
    } catch (err) {
      this.#settings.logger.warn('the token could not be replaced', { code: err instanceof OrchestratorError ? err.code : 'token function' });
      return false;
    }
  }
}
