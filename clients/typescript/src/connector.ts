// The connector: which server to speak to, by which way, and what to do when it does not answer.

import { type Address, Addresses, type Transport } from './addresses.js';
import { backoffMs } from './backoff.js';
import { now, type Timer } from './clock.js';
import { OrchestratorError, textOf } from './errors.js';
import { HttpLink } from './http.js';
import type { Link, LinkEnd, LinkEvents, Resume } from './link.js';
import type { CallMessage, HelloAck } from './messages.js';
import type { Settings } from './options.js';
import { SocketLink } from './socket.js';

/**
 * How a client is connected:
 *
 * - `idle`: not, and nobody has asked for it; the first call or `connect` does.
 * - `connecting`: for the first time.
 * - `connected`: by WebSocket.
 * - `fallback`: by HTTP; a WebSocket is tried again and again.
 * - `reconnecting`: it was, and tries to be.
 * - `unreachable`: too many attempts have failed; it tries more rarely.
 * - `closed`: for good.
 */
export type ClientState = 'idle' | 'connecting' | 'connected' | 'fallback' | 'reconnecting' | 'unreachable' | 'closed';

/** A connection that lasted so long was a good one: attempts are counted anew. */
const stableMs = 5_000;

/** What a connector tells. */
export interface ConnectorEvents {
  onState(state: ClientState, previous: ClientState): void;
  /** There is a link; see CallTable.attach. */
  onUp(link: Link, ack: HelloAck, whole: boolean): void;
  /** There is none any more. */
  onDown(link: Link, end: LinkEnd): void;
  /** No further attempt is made until somebody asks for one. */
  onGiveUp(code: string, message: string): void;
  onRetry(attempt: number, delayMs: number, error: string): void;
  onCallMessage(message: CallMessage): void;
  onMalformed(op: string, requestId: string | undefined, why: string): void;
  onGap(): void;
}

/** Keeps a client connected. */
export class Connector {
  readonly addresses: Addresses;
  readonly #settings: Settings;
  readonly #events: ConnectorEvents;
  readonly #resume: Resume;
  #state: ClientState = 'idle';
  #link: Link | undefined;
  #since = 0; // when the link was made
  #trial: Link | undefined; // a link that is being made
  #probing = false; // there is a link by HTTP, and a WebSocket is being tried beside it
  #timer: Timer | undefined;
  #attempts = 0; // in a row
  #sockets = 0; // WebSockets in a row that could not be had, or not be held
  #refusals = 0; // of the token, since there was a link
  #probes = 0;
  #round = 0; // counts what is begun, so that what was overtaken is told from what was not
  #token: string | undefined; // the one in use
  #given: string | undefined; // the one that took the place of the option
  #why = 'no attempt was made yet';
  #waiters = new Set<{ resolve: (link: Link) => void; reject: (err: unknown) => void }>();
  readonly #ending = new Set<Promise<void>>();

  constructor(settings: Settings, events: ConnectorEvents) {
    this.#settings = settings;
    this.#events = events;
    this.addresses = new Addresses(settings.addresses);
    this.#resume = { sessionId: settings.sessionId, lastSeq: 0, lastOrder: 0, names: new Map() };
  }

  get state(): ClientState {
    return this.#state;
  }

  get link(): Link | undefined {
    return this.#link;
  }

  get sessionId(): string {
    return this.#resume.sessionId;
  }

  /** Why there is no connection, for people. */
  get why(): string {
    return this.#why;
  }

  /** The token that the present connection was made with. */
  get token(): string {
    return this.#token ?? '';
  }

  /** Begins to connect, unless that goes on. */
  start(): void {
    if (this.#state !== 'idle') return;
    this.#attempts = this.#refusals = 0;
    this.#become('connecting');
    void this.#attempt();
  }

  /** Tries at once, where it would wait. */
  hurry(): void {
    this.start();
    if (this.#timer === undefined || this.#link !== undefined) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    void this.#attempt();
  }

  /** The link, as soon as there is one. Rejects when the connector gives up, and when the time is over. */
  up(timeoutMs: number): Promise<Link> {
    if (this.#link !== undefined) return Promise.resolve(this.#link);
    if (this.#state === 'closed') return Promise.reject(new OrchestratorError('CLOSED', 'the client is closed'));
    this.start();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => waiter.reject(new OrchestratorError('TIMEOUT', `no connection within ${Math.round(timeoutMs)} ms: ${this.#why}`)), timeoutMs);
      const done = () => {
        clearTimeout(timer);
        this.#waiters.delete(waiter);
      };
      const waiter = {
        resolve: (link: Link) => (done(), resolve(link)),
        reject: (err: unknown) => (done(), reject(err)),
      };
      this.#waiters.add(waiter);
    });
  }

  /** Leaves the present server for the next. */
  leave(why: string): void {
    const link = this.#link;
    if (link === undefined) return;
    this.#close(link);
    this.#down(link, { kind: 'elsewhere', message: why });
  }

  /** Goes on with another token; where a link needs it, it is made anew. */
  replaceToken(token: string, anew: boolean): void {
    this.#token = token;
    this.#given = token;
    if (!anew) return;
    this.leave('the token was replaced');
    this.hurry();
  }

  /** Asks for the token. */
  async fetchToken(): Promise<string> {
    const { token } = this.#settings;
    const got = typeof token === 'function' ? await token() : (this.#given ?? token);
    if (typeof got !== 'string') throw new OrchestratorError('UNAUTHORIZED', 'token: the function gave no string');
    return got;
  }

  /** Ends everything. */
  async close(): Promise<void> {
    this.#round++;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#become('closed');
    this.#dropTrial();
    if (this.#link !== undefined) this.#close(this.#link);
    this.#link = undefined;
    this.#rejectWaiters('CLOSED', 'the client is closed');
    await Promise.all(this.#ending);
  }

  #dropTrial(): void {
    const trial = this.#trial;
    if (trial === undefined) return;
    this.#trial = undefined;
    trial.address.breakers[trial.transport].abandoned();
    this.#close(trial);
  }

  #close(link: Link): void {
    const ending = link.close();
    this.#ending.add(ending);
    void ending.finally(() => this.#ending.delete(ending));
  }

  #become(state: ClientState): void {
    if (this.#state === state || this.#state === 'closed') return;
    const previous = this.#state;
    this.#state = state;
    this.#events.onState(state, previous);
  }

  /** What is tried at an address, in order: HTTP too once WebSockets have failed, or are not to be tried anywhere for a while. */
  #ways(): Transport[] {
    const { fallbackAfter } = this.#settings;
    const socketsFail = this.#sockets >= fallbackAfter || (fallbackAfter !== Infinity && this.addresses.admitsAt(['websocket'], now()) > now());
    return socketsFail ? ['http', 'websocket'] : ['websocket'];
  }

  /** One attempt: one address, or all when it tries rarely; by WebSocket, and by HTTP too once WebSockets have failed. */
  async #attempt(): Promise<void> {
    if (this.#state === 'closed') return; // by who was told of a new state
    const round = ++this.#round;
    const current = () => round === this.#round;
    const { fallbackAfter, reconnectAttempts } = this.#settings;
    const several = this.#attempts >= reconnectAttempts ? this.addresses.all.length : 1;
    for (let i = 0; i < several; i++) {
      const ways = this.#ways();
      const address = this.addresses.next(ways, now());
      if (address === undefined) break;
      for (const way of ways) {
        if (!address.breakers[way].admits(now())) continue;
        const end = await this.#open(address, way, current);
        if (end === undefined || !current()) return;
        this.#why = `${address.name}: ${end.message}`;
        if (end.kind === 'unauthorized') {
          if (++this.#refusals >= this.addresses.all.length) return this.#giveUp('UNAUTHORIZED', `no server takes the token; ${this.#why}`);
          break; // the other way would not take it either
        }
        if (way === 'websocket' && ++this.#sockets === fallbackAfter) return void this.#attempt(); // by HTTP, at once
      }
    }
    this.#retry();
  }

  /** Tries to have a link. Resolves with why there is none, or nothing when there is. */
  async #open(address: Address, way: Transport, current: () => boolean): Promise<LinkEnd | undefined> {
    const breaker = address.breakers[way];
    let token: string;
    try {
      token = await this.fetchToken();
    } catch (err) {
      return { kind: 'lost', message: `the token could not be had: ${textOf(err)}` };
    }
    if (!current()) return { kind: 'lost', message: 'overtaken' };
    breaker.begin(now());
    this.#settings.logger.debug('connecting', { address: address.name, transport: way });
    return new Promise((resolve) => {
      const events: LinkEvents = {
        onOpen: (ack, whole) => {
          breaker.succeeded();
          this.#trial = undefined;
          resolve(undefined);
          this.#token = token;
          this.#up(link, ack, whole);
        },
        onEnd: (end) => {
          if (this.#link === link) return this.#down(link, end);
          breaker.failed(now());
          if (this.#trial === link) this.#trial = undefined;
          this.#settings.logger.debug('not connected', { address: address.name, transport: way, why: end.message });
          resolve(end);
        },
        onCallMessage: (m) => this.#link === link && this.#events.onCallMessage(m),
        onMalformed: (op, id, why) => this.#link === link && this.#events.onMalformed(op, id, why),
        onGap: () => this.#link === link && this.#events.onGap(),
      };
      const Kind = way === 'websocket' ? SocketLink : HttpLink;
      const link: Link = new Kind(address, token, this.#settings, this.#resume, events);
      this.#trial = link;
    });
  }

  #up(link: Link, ack: HelloAck, whole: boolean): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const former = this.#link;
    if (former !== undefined) {
      // A WebSocket takes over from HTTP.
      this.#link = undefined;
      this.#close(former);
      this.#events.onDown(former, { kind: 'elsewhere', message: 'there is a WebSocket again' });
    }
    this.#link = link;
    this.#since = now();
    this.#refusals = 0;
    this.#probing = false;
    this.#why = '';
    this.#become(link.transport === 'websocket' ? 'connected' : 'fallback');
    if (this.#link !== link) return;
    this.#events.onUp(link, ack, whole);
    if (this.#link !== link) return;
    for (const waiter of [...this.#waiters]) waiter.resolve(link);
    if (link.transport === 'http') {
      this.#probes = 0;
      this.#probeLater();
    }
  }

  #down(link: Link, end: LinkEnd): void {
    const lasted = now() - this.#since >= stableMs;
    if (lasted) this.#attempts = 0;
    if (link.transport === 'websocket' && end.kind !== 'elsewhere') this.#sockets = lasted ? 0 : this.#sockets + 1;
    if (end.kind === 'lost' && (!lasted || link.transport === 'http')) link.address.breakers[link.transport].failed(now());
    this.#round++; // what is being tried beside it is overtaken
    this.#dropTrial();
    this.#probing = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#why = `${link.address.name}: ${end.message}`;
    this.#link = undefined;
    this.#events.onDown(link, end);
    if (this.#state === 'closed') return;
    if (end.kind === 'taken-over') return this.#giveUp('PROTOCOL_ERROR', `another connection has taken the session; use a sessionId for each client (${this.#why})`);
    this.#retry();
  }

  #giveUp(code: string, message: string): void {
    this.#attempts = this.#refusals = 0;
    this.#become('idle');
    this.#rejectWaiters(code, message);
    this.#events.onGiveUp(code, message);
  }

  #rejectWaiters(code: string, message: string): void {
    for (const waiter of [...this.#waiters]) waiter.reject(new OrchestratorError(code, message));
  }

  /** Comes back later. */
  #retry(): void {
    const { reconnect, reconnectAttempts, slowRetryMs } = this.#settings;
    this.#attempts++;
    const slow = this.#attempts >= reconnectAttempts;
    this.#become(slow ? 'unreachable' : this.#state === 'connecting' ? 'connecting' : 'reconnecting');
    if (this.#state === 'closed') return;
    const random = Math.random();
    let delay = slow ? slowRetryMs / 2 + (random * slowRetryMs) / 2 : backoffMs(this.#attempts, reconnect, random);
    // Where all addresses are left alone for a while, so long.
    const admitted = this.addresses.admitsAt(this.#ways(), now()) - now();
    if (Number.isFinite(admitted)) delay = Math.max(delay, admitted);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#attempt();
    }, delay);
    this.#events.onRetry(this.#attempts, delay, this.#why);
  }

  /** While HTTP serves, a WebSocket is tried: soon, and then more rarely. */
  #probeLater(): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#probe();
    }, backoffMs(++this.#probes + 1, this.#settings.reconnect, Math.random()));
  }

  async #probe(): Promise<void> {
    const link = this.#link;
    if (link === undefined || this.#probing) return;
    this.#probing = true;
    // First where HTTP is: calls in flight go on there.
    const { all } = this.addresses;
    const address = all[(all.indexOf(link.address) + this.#probes - 1) % all.length]!;
    const round = ++this.#round;
    const admitted = address.breakers.websocket.admits(now());
    const end = admitted ? await this.#open(address, 'websocket', () => round === this.#round) : { message: 'left alone' };
    if (round !== this.#round || end === undefined) return;
    this.#probing = false;
    this.#probeLater();
  }
}
