// A link over HTTP, for where no WebSocket can be held: the same messages, one request for each, and long polls for results.

import type { Address } from './addresses.js';
import type { Call } from './call.js';
import { now, pause } from './clock.js';
import { OrchestratorError, textOf } from './errors.js';
import { type AskOp, type Cancel, type Link, LinkEnded, type LinkEnd, type LinkEvents, type Resume } from './link.js';
import { type AnswerMessage, type EndMessage, type Health, read, type ServerMessage } from './messages.js';
import type { Settings } from './options.js';

/** How long a server may wait for a result before it answers that there is none yet. */
const pollMs = 25_000;
/** The shortest such time: a call whose deadline has come is not asked for in a circle. */
const minPollMs = 1_000;
/** How much longer than that a request may take. */
const patienceMs = 10_000;
/** How long a server may take to end a call that is cancelled, before it is asked again. */
const cancelWaitMs = 2_000;
/** The first pause before a cancel is repeated, and the longest; they double. */
const cancelPauseMs = 25;
const maxCancelPauseMs = 1_000;
/** How long a call may be on its way to the server behind the request that cancels it. */
const overtakenMs = 2_000;
/** Cancels that are under way at once: pages have few connections to a server. */
const maxCancels = 4;
/** How long a client that is closed lets cancels that it has begun come to an end. */
const closeGraceMs = 1_000;
const sessionHeader = 'Orchestrator-Session-Id';

/** What a request came to. */
interface Answer {
  status: number;
  message: ServerMessage | undefined;
}

/** A connection by HTTP. It says hello at once. */
export class HttpLink implements Link {
  readonly transport = 'http';
  readonly address: Address;
  readonly #token: string;
  readonly #settings: Settings;
  readonly #resume: Resume;
  readonly #events: LinkEvents;
  #ended = false;
  readonly #life = new AbortController();
  readonly #calls = new Map<string, AbortController>();
  readonly #running = new Set<Promise<void>>();
  readonly #cancels: Cancel[] = []; // that wait
  #cancelling = 0; // that are under way
  readonly #farewell = new AbortController(); // ends them

  constructor(address: Address, token: string, settings: Settings, resume: Resume, events: LinkEvents) {
    this.address = address;
    this.#token = token;
    this.#settings = settings;
    this.#resume = resume;
    this.#events = events;
    this.#track(this.#hello());
  }

  #track(work: Promise<void>): void {
    this.#running.add(work);
    void work.finally(() => this.#running.delete(work));
  }

  async #hello(): Promise<void> {
    let end: LinkEnd;
    try {
      const body = JSON.stringify({ op: 'hello', session_id: this.#resume.sessionId });
      const { status, message } = await this.#request('POST', '/v1/hello', body, this.#settings.connectTimeoutMs, this.#life.signal);
      if (this.#ended) return;
      if (status === 200 && message?.op === 'hello_ack' && message.ok) {
        this.#resume.sessionId = message.sessionId;
        if (message.server !== undefined) this.#resume.names.set(this.address, message.server);
        return this.#events.onOpen(message, false);
      }
      end = refusalOf(status, message);
    } catch (err) {
      end = { kind: 'lost', message: textOf(err) };
    }
    this.#end(end);
  }

  ready(): boolean {
    return !this.#ended;
  }

  send(call: Call): void {
    const abort = new AbortController();
    this.#calls.set(call.wish.requestId, abort);
    const work = this.#call(call, abort.signal).finally(() => {
      if (this.#calls.get(call.wish.requestId) === abort) this.#calls.delete(call.wish.requestId);
    });
    this.#track(work);
  }

  /** Asks for a call until it has ended. */
  async #call(call: Call, signal: AbortSignal): Promise<void> {
    const { requestId } = call.wish;
    let known = false; // to this server
    try {
      for (;;) {
        const wait = Math.max(minPollMs, Math.min(pollMs, Math.ceil(call.leftMs)));
        const { status, message } = known
          ? await this.#request('GET', `/v1/results/${encodeURIComponent(requestId)}?wait_ms=${wait}`, undefined, wait + patienceMs, signal)
          : await this.#request('POST', `/v1/call_tool?wait_ms=${wait}`, call.encode(), wait + patienceMs, signal);
        if (signal.aborted || this.#ended) return;
        if (message?.op === 'call_tool_ack') {
          known = true;
          this.#events.onCallMessage({ ...message, requestId });
          continue;
        }
        const end = endOf(message, requestId);
        if (end === undefined) return this.#end({ kind: 'lost', message: `HTTP ${status} without a message of the protocol`, code: status });
        if (known && end.error?.code === 'NOT_FOUND') {
          known = false; // it may be the server that does not know the call, or the call whose answer this is: asking anew tells
          continue;
        }
        if (end.op === 'call_tool_res' || end.op === 'cancelled') this.#resume.lastOrder = Math.max(this.#resume.lastOrder, end.order ?? 0);
        return this.#events.onCallMessage(end);
      }
    } catch (err) {
      if (signal.aborted) return;
      if (err instanceof Unreadable) return this.#events.onMalformed('call_tool_res', requestId, err.message);
      this.#end({ kind: 'lost', message: textOf(err) });
    }
  }

  async #request(method: string, path: string, body: string | undefined, timeoutMs: number, signal: AbortSignal, token = this.#token): Promise<Answer> {
    const { status, text } = await this.#fetch(method, path, body, timeoutMs, signal, token);
    return { status, message: messageOf(text) };
  }

  async #fetch(method: string, path: string, body: string | undefined, timeoutMs: number, signal: AbortSignal, token: string) {
    const abort = new AbortController();
    let late = false;
    const stop = () => abort.abort();
    const timer = setTimeout(() => {
      late = true;
      stop();
    }, timeoutMs);
    signal.addEventListener('abort', stop);
    try {
      const response = await this.#settings.fetch(this.address.httpBase + path, {
        method,
        headers: {
          ...(token === '' ? {} : { Authorization: `Bearer ${token}` }),
          [sessionHeader]: this.#resume.sessionId,
          ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body }),
        signal: abort.signal,
        redirect: 'error',
        cache: 'no-store',
        credentials: 'omit',
      });
      return { status: response.status, text: await response.text() };
    } catch (err) {
      if (late) throw new Error(`no answer within ${Math.round(timeoutMs)} ms`);
      throw err;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', stop);
    }
  }

  forget(requestId: string): void {
    this.#calls.get(requestId)?.abort();
  }

  cancel(cancel: Cancel): void {
    this.#cancels.push(cancel);
    this.#cancelNext();
  }

  #cancelNext(): void {
    while (!this.#farewell.signal.aborted && this.#cancelling < maxCancels) {
      const next = this.#cancels.shift();
      if (next === undefined) return;
      this.#cancelling++;
      const work = this.#cancel(next).finally(() => {
        this.#cancelling--;
        this.#cancelNext();
      });
      this.#track(work);
    }
  }

  /**
   * Cancels a call until it has ended. Requests overtake one another: a call that the server does not know may only not have arrived, and would run
   * for nobody. When the link is lost first, it is said again on the next; one that is closed says it once.
   */
  async #cancel({ requestId, until, arrived }: Cancel): Promise<void> {
    const body = JSON.stringify({ op: 'cancel', request_id: requestId, session_id: this.#resume.sessionId });
    const patience = arrived ? 0 : now() + overtakenMs;
    const { signal } = this.#farewell;
    for (let delay = cancelPauseMs; !signal.aborted && now() < until; delay = Math.min(2 * delay, maxCancelPauseMs)) {
      const asked = this.#exchange('cancelled', 'POST', `/v1/cancel?wait_ms=${cancelWaitMs}`, body, cancelWaitMs + patienceMs, signal);
      const error = await asked.then(() => undefined, (err: unknown) => err);
      if (error === undefined) return this.#events.onCallMessage({ op: 'cancelled', requestId });
      if (error instanceof LinkEnded) return;
      if (!(error instanceof OrchestratorError)) throw error;
      const { code, message } = error;
      const again = code === 'OVER_CAPACITY' || code === 'SERVICE_UNAVAILABLE' || code === 'TIMEOUT' || (code === 'NOT_FOUND' && now() < patience);
      if (!again) {
        if (code !== 'NOT_FOUND') this.#settings.logger.warn('a call could not be cancelled, and may go on', { address: this.address.name, code });
        return this.#events.onCallMessage({ op: 'cancelled', requestId, error: { code, message } });
      }
      await pause(Math.max(delay, error.retryAfterMs ?? 0), this.#life.signal);
      if (this.#ended) return;
    }
  }

  async ask(op: AskOp, fields: Record<string, string>, timeoutMs: number): Promise<AnswerMessage> {
    switch (op) {
      case 'health':
        return { op: 'health_res', health: await this.#health(timeoutMs) };
      case 'rotate_token':
        await this.#tryToken(fields['new'] ?? '', timeoutMs);
        return { op: 'rotate_token_res' };
      case 'ping':
        return { op: 'pong' };
      case 'list_tools':
        return await this.#exchange('list_tools_res', 'GET', '/v1/tools', undefined, Math.min(timeoutMs, patienceMs), this.#life.signal);
    }
  }

  /**
   * Makes a request that is answered by an op, at once or nearly so. A refusal rejects as it does over a WebSocket; where it says that this server, or this token, will not
   * do, or where the answer is none, the link ends.
   */
  async #exchange<O extends ServerMessage['op']>(
    op: O,
    method: string,
    path: string,
    body: string | undefined,
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<ServerMessage & { op: O }> {
    let answer: Answer;
    try {
      answer = await this.#request(method, path, body, timeoutMs, signal);
    } catch (err) {
      if (err instanceof Unreadable && !this.#ended) throw new OrchestratorError('PROTOCOL_ERROR', `the server's ${op} is malformed: ${err.message}`);
      this.#end({ kind: 'lost', message: textOf(err) });
      throw new LinkEnded();
    }
    if (this.#ended) throw new LinkEnded();
    const { status, message } = answer;
    const error = message !== undefined && 'error' in message && typeof message.error === 'object' ? message.error : undefined;
    const stopping = message?.op === 'error' && error?.code === 'SERVICE_UNAVAILABLE';
    if (error !== undefined && !stopping && error.code !== 'UNAUTHORIZED') {
      throw new OrchestratorError(error.code, error.message, { retryAfterMs: error.retryAfterMs, field: error.field });
    }
    if (error === undefined && message?.op === op) return message as ServerMessage & { op: O };
    this.#end(refusalOf(status, message));
    throw new LinkEnded();
  }

  /** Over HTTP each request shows its token: whether the new one is good is asked here, and the client makes a link with it. */
  async #tryToken(token: string, timeoutMs: number): Promise<void> {
    const body = JSON.stringify({ op: 'hello', session_id: this.#resume.sessionId });
    const { status, message } = await this.#asked(() => this.#request('POST', '/v1/hello', body, timeoutMs, this.#life.signal, token));
    if (status === 200) return;
    const end = refusalOf(status, message);
    throw new OrchestratorError(end.kind === 'unauthorized' ? 'UNAUTHORIZED' : 'SERVICE_UNAVAILABLE', `the new token: ${end.message}`);
  }

  async #health(timeoutMs: number): Promise<Health> {
    const { text } = await this.#asked(() => this.#fetch('GET', '/ready', undefined, timeoutMs, this.#life.signal, ''));
    let answer: Record<string, unknown>;
    try {
      answer = JSON.parse(text) as Record<string, unknown>;
    } catch {
      throw new OrchestratorError('PROTOCOL_ERROR', 'health: the answer of /ready is not JSON');
    }
    const { status, reason, server } = answer;
    return { status: status === 'ready' ? 'ok' : 'degraded', server: String(server ?? ''), reason: typeof reason === 'string' ? reason : undefined };
  }

  /** Makes a request whose failure is not the end of the link. */
  async #asked<T>(request: () => Promise<T>): Promise<T> {
    try {
      return await request();
    } catch (err) {
      if (this.#ended) throw new LinkEnded();
      throw new OrchestratorError('SERVICE_UNAVAILABLE', textOf(err), { cause: err });
    }
  }

  #end(end: LinkEnd): void {
    if (this.#ended) return;
    this.#stop();
    this.#farewell.abort();
    this.#events.onEnd(end);
  }

  /** Ends all requests. */
  #stop(): void {
    this.#ended = true;
    this.#life.abort();
    for (const call of this.#calls.values()) call.abort();
  }

  async close(): Promise<void> {
    this.#stop();
    const grace = setTimeout(() => this.#farewell.abort(), closeGraceMs);
    while (this.#running.size > 0) await Promise.allSettled(this.#running);
    clearTimeout(grace);
    this.#farewell.abort();
  }
}

/** An answer of the protocol that is wrong in itself. */
class Unreadable extends Error {}

/** The message in a body; undefined where there is none. */
function messageOf(body: string): ServerMessage | undefined {
  const got = read(body);
  if (got.kind === 'malformed') throw new Unreadable(got.why);
  return got.kind === 'message' ? got.message : undefined;
}

/** The end of a call that a message tells; undefined where it tells none. */
function endOf(m: ServerMessage | undefined, requestId: string): EndMessage | undefined {
  switch (m?.op) {
    case 'call_tool_res':
    case 'cancelled':
      return { ...m, requestId };
    case 'error': // a refusal before the request was read
      return { op: 'call_tool_res', requestId, error: m.error };
    default:
      return undefined;
  }
}

function refusalOf(status: number, m: ServerMessage | undefined): LinkEnd {
  const error = m !== undefined && 'error' in m && typeof m.error === 'object' ? m.error : undefined;
  if (error === undefined) return { kind: status === 401 ? 'unauthorized' : 'lost', message: `HTTP ${status} without a message of the protocol`, code: status };
  return { kind: error.code === 'UNAUTHORIZED' ? 'unauthorized' : 'refused', message: `${error.code}: ${error.message}`, code: status };
}
