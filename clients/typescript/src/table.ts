// The calls of a client: those that wait for room, those in flight, those that are asked for again, and each one's one outcome.

import { Call, CallResult, type CallWish } from './call.js';
import { now, type Timer } from './clock.js';
import { OrchestratorError } from './errors.js';
import type { Cancel, Link } from './link.js';
import type { CallMessage, EndMessage, WireError } from './messages.js';
import { priorities, type Settings } from './options.js';

/** How much longer than its deadline a call in flight waits for the server's own word about it. */
const answerGraceMs = 2_000;
/** Outcomes that are remembered by request_id, so that one that comes twice is told from one of an earlier run of the program. */
const maxRemembered = 1_000;
/** Cancels that wait for a connection. */
const maxAbandoned = 1_000;
/** How soon a link that had too much to write is looked at again. */
const readyPollMs = 20;
/** The pauses after refusals, where the server names no longer ones. */
const refusalMinMs = 20;
const refusalMaxMs = 5_000;

/** An outcome that came, of a call that this client did not make: the one before it that had the session did. */
export type Unclaimed = { requestId: string } & ({ result: CallResult; error?: undefined } | { result?: undefined; error: OrchestratorError });

/** What a table tells the rest of the client. */
export interface TableEvents {
  onUnclaimed(outcome: Unclaimed): void;
  /** A call was refused as the server is not available; how many in a row. */
  onUnavailable(inARow: number): void;
  /** A call was refused as its token is not good. Resolves whether there is a better one now. */
  renewToken(): Promise<boolean>;
  /** Why there is no connection, for messages to people. */
  whyNot(): string;
}

/** The calls of one client. */
export class CallTable {
  readonly #settings: Settings;
  readonly #events: TableEvents;
  readonly #calls = new Map<string, Call>();
  /** Calls that wait for room, in the order in which they go: priority, then age. */
  readonly #queue: Call[] = [];
  #sent = 0;
  #link: Link | undefined;
  #ordinal = 0;
  #unavailable = 0; // refusals in a row
  #readyTimer: Timer | undefined;
  readonly #settled = new Set<string>();
  readonly #abandoned = new Map<string, Cancel>(); // cancels that are not known to have been heard

  constructor(settings: Settings, events: TableEvents) {
    this.#settings = settings;
    this.#events = events;
  }

  /** How many calls wait for room, are asked for, and have no outcome yet. */
  get counts(): { queued: number; inFlight: number; open: number } {
    return { queued: this.#queue.length, inFlight: this.#sent, open: this.#calls.size };
  }

  /** Makes a call. Rejects at once what cannot be made. */
  add(wish: CallWish, signal?: AbortSignal): Promise<CallResult> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    const { requestId } = wish;
    const refuse = (code: string, message: string, retryAfterMs?: number) => Promise.reject(new OrchestratorError(code, message, { requestId, retryAfterMs }));
    if (this.#calls.has(requestId)) return refuse('DUPLICATE', 'requestId: a call of this name is in flight; give each call one of its own');
    if ((this.#abandoned.get(requestId)?.until ?? 0) > now()) return refuse('DUPLICATE', 'requestId: a call of this name is being cancelled; give each call one of its own');
    if (this.#calls.size >= this.#settings.maxQueuedCalls + this.#settings.maxInFlight) {
      return refuse('OVER_CAPACITY', `${this.#calls.size} calls wait already; wait for some of them, or raise maxQueuedCalls`, 1_000);
    }
    return new Promise((resolve, reject) => {
      const call = new Call(wish, this.#ordinal++, resolve, reject);
      this.#calls.set(requestId, call);
      this.#settled.delete(requestId); // it is asked for again on purpose
      call.deadlineTimer = setTimeout(() => this.#late(call), call.leftMs);
      if (signal !== undefined) {
        const abort = () => this.#abort(call, signal.reason);
        signal.addEventListener('abort', abort);
        call.stopListening = () => signal.removeEventListener('abort', abort);
      }
      this.#enqueue(call);
      this.#pump();
    });
  }

  /**
   * Goes on over a link.
   *
   * @param resumed - the server knows the session: what it says of calls that were asked for before comes by itself, and only what is still missing then is asked for again.
   * @param whole - it says again what was not seen, so that streams go on without holes.
   */
  attach(link: Link, resumed: boolean, whole: boolean): void {
    this.#link = link;
    this.#unavailable = 0;
    const lost = [...this.#calls.values()].filter((c) => c.state === 'lost');
    if (!whole) for (const call of lost) call.streamIntact = false;
    this.#sayCancels(link);
    const again = () => {
      if (this.#link !== link) return;
      for (const call of lost) if (call.state === 'lost') this.#enqueue(call);
      this.#pump();
    };
    // The answer to a ping comes behind all that the client missed.
    if (resumed && lost.length > 0) void link.ask('ping', {}, this.#settings.connectTimeoutMs).then(again, again);
    else again();
    this.#pump();
  }

  /** The link has ended: what was asked for on it will be again, on the next. */
  detach(): void {
    this.#link = undefined;
    clearTimeout(this.#readyTimer);
    this.#readyTimer = undefined;
    for (const call of this.#calls.values()) {
      if (call.state !== 'sent') continue;
      call.state = 'lost';
      call.acked = false;
    }
    this.#sent = 0;
  }

  /** Asks again for everything in flight: some of what the server said is missing. */
  askAgain(): void {
    for (const call of this.#calls.values()) {
      if (call.state !== 'sent') continue;
      this.#sent--;
      call.streamIntact = false;
      this.#enqueue(call);
    }
    this.#pump();
  }

  /** Ends the call that made a server close the connection: the first that it had not taken. */
  rejectTooLarge(message: string): void {
    const first = [...this.#calls.values()].filter((c) => c.state === 'sent' && !c.acked).sort((a, b) => a.sentAs - b.sentAs)[0];
    if (first !== undefined) this.#reject(first, new OrchestratorError('INVALID_REQUEST', `arguments: ${message}`, { requestId: first.wish.requestId, field: 'arguments' }));
  }

  /** Ends all calls. */
  rejectAll(code: string, message: string): void {
    for (const call of [...this.#calls.values()]) this.#reject(call, new OrchestratorError(code, message, { requestId: call.wish.requestId }));
    this.#abandoned.clear();
  }

  /** Takes a message that belongs to a call. */
  onMessage(m: CallMessage): void {
    const call = this.#calls.get(m.requestId);
    switch (m.op) {
      case 'call_tool_ack':
        if (call !== undefined) call.acked = true;
        return;
      case 'progress':
        if (call !== undefined) this.#tell(call.wish.onProgress, m.message);
        return;
      case 'stream_chunk':
        if (call !== undefined) this.#tell(call.wish.onChunk, m.chunk);
        return;
      case 'stream_complete':
        if (call !== undefined && m.truncated) call.streamIntact = false;
        return;
      default:
        if (call !== undefined) this.#ended(call, m);
        else this.#strange(m);
    }
  }

  /** A message about a call could not be read: an end is an end all the same. */
  onMalformed(op: string, requestId: string | undefined, why: string): void {
    const call = requestId === undefined ? undefined : this.#calls.get(requestId);
    if (call === undefined) return;
    if (op === 'stream_chunk' || op === 'stream_complete') call.streamIntact = false;
    if (op !== 'call_tool_res' && op !== 'cancelled') return;
    this.#reject(call, new OrchestratorError('PROTOCOL_ERROR', `the server's ${op} is malformed: ${why}`, { requestId }));
  }

  #tell(listener: ((text: string) => void) | undefined, text: string): void {
    try {
      listener?.(text);
    } catch (thrown) {
      this.#settings.logger.error('a listener of a call has thrown', { thrown: thrown instanceof Error ? thrown.name : typeof thrown });
    }
  }

  #ended(call: Call, m: EndMessage): void {
    if (m.op === 'cancelled') {
      const { error } = m;
      if (error !== undefined) return; // an earlier cancel of the same name found nothing
      return this.#reject(call, new OrchestratorError('CANCELLED', 'the call was cancelled', { requestId: m.requestId }));
    }
    if (m.error === undefined) {
      this.#unavailable = 0;
      if (!this.#settle(call)) return;
      return call.resolve(resultOf(m, call.streamIntact));
    }
    this.#refused(call, m.error);
  }

  /** What came of a call that is not in flight here. */
  #strange(m: EndMessage): void {
    if (this.#abandoned.delete(m.requestId)) return this.#remember(m.requestId);
    if (this.#settled.has(m.requestId)) return;
    if (m.op === 'cancelled' && m.error !== undefined) return;
    this.#remember(m.requestId);
    const { requestId } = m;
    if (m.op === 'cancelled') return this.#events.onUnclaimed({ requestId, error: new OrchestratorError('CANCELLED', 'the call was cancelled', { requestId }) });
    if (m.error !== undefined) return this.#events.onUnclaimed({ requestId, error: errorOf(m.error, requestId) });
    this.#events.onUnclaimed({ requestId, result: resultOf(m, false) });
  }

  /** A server did not do it: it is asked again where that helps and the deadline allows. */
  #refused(call: Call, error: WireError): void {
    const reason = errorOf(error, call.wish.requestId);
    const elsewhere = error.code === 'SERVICE_UNAVAILABLE';
    if (!elsewhere) this.#unavailable = 0;
    // Of a call that was taken, it is the tool that says so; but over HTTP each request for it shows the token anew.
    const refused = !call.acked || this.#link?.transport === 'http';
    if (error.code === 'UNAUTHORIZED' && refused && !call.renewed) return this.#renew(call, reason);
    if (!elsewhere && error.code !== 'OVER_CAPACITY') return this.#reject(call, reason);
    const least = Math.min(refusalMaxMs, refusalMinMs * 2 ** Math.min(call.refusals++, 20));
    const delay = Math.max(error.retryAfterMs ?? 0, least) * (1 + Math.random() / 5);
    if (delay >= call.leftMs) return this.#reject(call, reason);
    this.#wait(call);
    call.timer = setTimeout(() => {
      this.#enqueue(call);
      this.#pump();
    }, delay);
    if (elsewhere) this.#events.onUnavailable(++this.#unavailable);
    this.#pump();
  }

  #renew(call: Call, reason: OrchestratorError): void {
    call.renewed = true;
    this.#wait(call);
    void this.#events.renewToken().then((better) => {
      if (call.state !== 'waiting') return;
      if (!better) return this.#reject(call, reason);
      this.#enqueue(call);
      this.#pump();
    });
  }

  #wait(call: Call): void {
    if (call.state === 'sent') this.#sent--;
    this.#dequeue(call);
    clearTimeout(call.timer);
    call.state = 'waiting';
    call.acked = false;
  }

  #enqueue(call: Call): void {
    clearTimeout(call.timer);
    this.#dequeue(call);
    call.state = 'queued';
    let low = 0;
    let high = this.#queue.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (before(this.#queue[middle]!, call)) low = middle + 1;
      else high = middle;
    }
    this.#queue.splice(low, 0, call);
  }

  #dequeue(call: Call): void {
    if (call.state !== 'queued') return;
    const at = this.#queue.indexOf(call);
    if (at >= 0) this.#queue.splice(at, 1);
  }

  /** Asks for what waits, as far as there is room. */
  #pump(): void {
    const link = this.#link;
    if (link === undefined) return;
    while (this.#queue.length > 0 && this.#sent < this.#settings.maxInFlight) {
      if (!link.ready()) {
        this.#readyTimer ??= setTimeout(() => {
          this.#readyTimer = undefined;
          this.#pump();
        }, readyPollMs);
        return;
      }
      const call = this.#queue.shift()!;
      call.state = 'sent';
      call.acked = false;
      call.sentAs = this.#ordinal++;
      call.asked = true;
      if (link.transport === 'http') call.streamIntact = false;
      this.#sent++;
      link.send(call);
      if (this.#link !== link) return; // it has just ended
    }
  }

  #late(call: Call): void {
    const { requestId } = call.wish;
    if (call.state === 'sent' && !call.graced) {
      call.graced = true;
      call.deadlineTimer = setTimeout(() => this.#late(call), answerGraceMs);
      return;
    }
    const why = this.#link === undefined ? `there is no connection: ${this.#events.whyNot()}` : 'the server has not answered';
    const what = call.asked ? 'what it began may go on, ask again with the same requestId' : 'it was never sent';
    this.#reject(call, new OrchestratorError('TIMEOUT', `${call.wish.tool}: no answer by the deadline (${why}); ${what}`, { requestId }));
  }

  #abort(call: Call, reason: unknown): void {
    const { requestId } = call.wish;
    const { asked, acked, wish } = call;
    if (!this.#settle(call)) return;
    call.reject(reason);
    const link = this.#link;
    if (asked) {
      if (this.#abandoned.size >= maxAbandoned) {
        const oldest = this.#abandoned.keys().next();
        if (!oldest.done) this.#abandoned.delete(oldest.value);
        this.#settings.logger.warn('a cancel could not be kept until there is a connection; its call runs until its deadline');
      }
      const cancel = { requestId, until: wish.deadline, arrived: acked };
      this.#abandoned.set(requestId, cancel);
      link?.cancel(cancel);
    }
  }

  /** Says the cancels that could not be said before. */
  #sayCancels(link: Link): void {
    for (const [requestId, cancel] of this.#abandoned) {
      if (cancel.until <= now()) this.#abandoned.delete(requestId);
      else link.cancel(cancel);
    }
  }

  #reject(call: Call, reason: unknown): void {
    if (this.#settle(call)) call.reject(reason);
  }

  /** Takes a call off the table; false when it was off already. */
  #settle(call: Call): boolean {
    if (call.state === 'done') return false;
    if (call.state === 'sent') this.#sent--;
    this.#dequeue(call);
    call.state = 'done';
    clearTimeout(call.timer);
    clearTimeout(call.deadlineTimer);
    call.stopListening();
    this.#calls.delete(call.wish.requestId);
    this.#link?.forget(call.wish.requestId);
    this.#remember(call.wish.requestId);
    queueMicrotask(() => this.#pump());
    return true;
  }

  #remember(requestId: string): void {
    this.#settled.add(requestId);
    if (this.#settled.size <= maxRemembered) return;
    const oldest = this.#settled.values().next();
    if (!oldest.done) this.#settled.delete(oldest.value);
  }
}

/** Whether a goes before b. */
function before(a: Call, b: Call): boolean {
  const p = priorities.indexOf(a.wish.priority) - priorities.indexOf(b.wish.priority);
  return p !== 0 ? p < 0 : a.ordinal < b.ordinal;
}

function resultOf(m: EndMessage & { error?: undefined; op: 'call_tool_res' }, streamIntact: boolean): CallResult {
  return new CallResult({ requestId: m.requestId, outputs: m.outputs, fromCache: m.fromCache, fromInflight: m.fromInflight, streamIntact });
}

function errorOf(e: WireError, requestId: string): OrchestratorError {
  return new OrchestratorError(e.code, e.message, { retryAfterMs: e.retryAfterMs, field: e.field, requestId });
}
