// A link over a WebSocket: hello, frames both ways, and pings of the protocol, as pages cannot send those of WebSocket.

import type { Address } from './addresses.js';
import type { Call } from './call.js';
import { now, type Timer } from './clock.js';
import { OrchestratorError, textOf } from './errors.js';
import { type AskOp, type Cancel, type Link, LinkEnded, type LinkEnd, type LinkEvents, type Resume } from './link.js';
import { type AnswerMessage, type CallMessage, type HelloAck, type HelloRefusal, read, type ServerMessage } from './messages.js';
import type { Settings } from './options.js';
import type { WebSocketLike } from './websocket.js';

/** Pings in a row without an answer that end a connection. */
const missedPings = 3;
/** What may wait in a socket to be written before no more is given to it. */
const maxWaitingBytes = 1 << 20;
/** How long the other side may take to agree to a close. */
const closeGraceMs = 1_000;
/** Offered as a subprotocol. */
const subprotocol = 'orchestrator.client.v1';

/** Reads why a server closed a connection. */
function endOf(code: number, reason: string): LinkEnd {
  const message = reason === '' ? `the connection was closed (${code})` : `${reason} (${code})`;
  switch (code) {
    case 4003:
      return { kind: 'unauthorized', message, code };
    case 4001:
      return { kind: reason.includes('took over') ? 'taken-over' : 'lost', message, code };
    case 1009:
      return { kind: 'too-large', message, code };
    case 1008:
    case 1013:
      return { kind: 'refused', message, code };
    default:
      return { kind: 'lost', message, code };
  }
}

/** A connection by WebSocket. It begins to connect at once. */
export class SocketLink implements Link {
  readonly transport = 'websocket';
  readonly address: Address;
  readonly #settings: Settings;
  readonly #resume: Resume;
  readonly #events: LinkEvents;
  #phase: 'connecting' | 'greeting' | 'open' | 'ended' = 'connecting';
  #ws: WebSocketLike | undefined;
  #refusal: LinkEnd | undefined; // what a hello_ack said before the close
  #sentLastSeq = false;
  #whole = false; // it says again what was not seen
  #seen: number | undefined; // the seq of the last message; undefined while nobody knows where it begins
  #floor = 0; // chunks up to it have been seen on an earlier connection
  #asks = new Map<string, { resolve: (m: AnswerMessage) => void; reject: (err: unknown) => void }>();
  #nextAsk = 1;
  #heard = 0;
  #pings = 0; // without an answer
  #connectTimer: Timer | undefined;
  #pingTimer: Timer | undefined;

  constructor(address: Address, token: string, settings: Settings, resume: Resume, events: LinkEvents) {
    this.address = address;
    this.#settings = settings;
    this.#resume = resume;
    this.#events = events;
    this.#connectTimer = setTimeout(() => {
      this.#end({ kind: 'lost', message: `no answer within ${settings.connectTimeoutMs} ms` });
    }, settings.connectTimeoutMs);
    void this.#connect(token);
  }

  async #connect(token: string): Promise<void> {
    await undefined; // what fails at once is told to who has the link already
    let ws: WebSocketLike;
    try {
      ws = await this.#settings.webSocket(this.address.socketURL, [subprotocol]);
    } catch (err) {
      return this.#end({ kind: 'lost', message: textOf(err) });
    }
    if (this.#phase === 'ended') return drop(ws);
    this.#ws = ws;
    let failure = 'the connection failed';
    ws.onopen = () => {
      this.#phase = 'greeting';
      this.#write(JSON.stringify(this.#hello(token)));
    };
    ws.onmessage = (event: { data: unknown }) => this.#hear(event.data);
    ws.onerror = (event: { message?: unknown }) => {
      if (typeof event?.message === 'string' && event.message !== '') failure = event.message;
    };
    ws.onclose = (event: { code: number; reason: string }) => {
      const end = event.code === 1006 ? ({ kind: 'lost', message: failure, code: 1006 } as const) : endOf(event.code, event.reason);
      this.#end(this.#refusal ?? end);
    };
  }

  #hello(token: string): Record<string, unknown> {
    const r = this.#resume;
    // What was seen last means something to the server that numbered it, and to no other.
    const here = r.names.get(this.address) ?? this.address.name;
    this.#sentLastSeq = r.lastSeq > 0 && r.server === here;
    return {
      op: 'hello',
      token,
      session_id: r.sessionId,
      ...(this.#sentLastSeq ? { last_seq: r.lastSeq } : {}),
      ...(r.lastOrder > 0 ? { last_order: r.lastOrder } : {}),
    };
  }

  #hear(data: unknown): void {
    if (this.#phase === 'ended') return;
    this.#heard = now();
    this.#pings = 0;
    const got = read(data);
    switch (got.kind) {
      case 'broken':
        return this.#end({ kind: 'lost', message: `the server does not speak the protocol: ${got.why}` });
      case 'unknown':
        return this.#settings.logger.debug('a message of an unknown op is ignored', { address: this.address.name, op: got.op });
      case 'malformed':
        if (this.#phase !== 'open') return this.#end({ kind: 'lost', message: `the server does not speak the protocol: ${got.op}: ${got.why}` });
        return this.#malformed(got.op, got.requestId, got.why);
      case 'message':
        if (this.#phase !== 'open') return this.#greeted(got.message);
        return this.#message(got.message);
    }
  }

  #malformed(op: string, requestId: string | undefined, why: string): void {
    this.#settings.logger.warn('a message of the server is malformed', { address: this.address.name, op, why });
    const ask = requestId === undefined ? undefined : this.#take(requestId);
    if (ask !== undefined) return ask.reject(new OrchestratorError('PROTOCOL_ERROR', `the server's ${op} is malformed: ${why}`));
    this.#events.onMalformed(op, requestId, why);
  }

  /** The first message must be the answer to the hello. */
  #greeted(m: ServerMessage): void {
    if (m.op !== 'hello_ack') return this.#end({ kind: 'lost', message: `the server does not speak the protocol: ${m.op} came before hello_ack` });
    if (!m.ok) {
      // The close that follows says it in more words; it may not come.
      this.#refusal = refusalOf(m);
      return this.#end(this.#refusal);
    }
    this.#phase = 'open';
    clearTimeout(this.#connectTimer);
    this.#welcome(m);
    this.#pingTimer = setTimeout(() => this.#watch(), this.#settings.pingEveryMs);
    this.#events.onOpen(m, this.#whole);
  }

  /** Decides from where on messages are new. */
  #welcome(ack: HelloAck): void {
    const r = this.#resume;
    r.sessionId = ack.sessionId;
    if (ack.server !== undefined) r.names.set(this.address, ack.server);
    const here = ack.server ?? this.address.name;
    this.#whole = this.#sentLastSeq && ack.resumed && r.server === here;
    if (this.#whole) {
      this.#floor = this.#seen = r.lastSeq;
    } else {
      this.#seen = ack.resumed ? undefined : 0;
      r.lastSeq = 0;
    }
    r.server = here;
  }

  #message(m: ServerMessage): void {
    switch (m.op) {
      case 'hello_ack':
        return;
      case 'pong':
      case 'list_tools_res':
      case 'health_res':
      case 'rotate_token_res':
      case 'error':
        return this.#answered(m);
      default:
        return this.#callMessage(m);
    }
  }

  #answered(m: AnswerMessage): void {
    const ask = m.requestId === undefined ? undefined : this.#take(m.requestId);
    const error = 'error' in m ? m.error : undefined;
    if (ask === undefined) {
      if (error !== undefined) this.#settings.logger.warn('the server reports an error', { address: this.address.name, code: error.code });
      return;
    }
    if (error === undefined) return ask.resolve(m);
    ask.reject(new OrchestratorError(error.code, error.message, { retryAfterMs: error.retryAfterMs, field: error.field }));
  }

  #callMessage(m: CallMessage): void {
    if (m.op === 'call_tool_res' || m.op === 'cancelled') {
      this.#resume.lastOrder = Math.max(this.#resume.lastOrder, m.order ?? 0);
    }
    const { seq } = m;
    if (seq !== undefined) {
      // Acks and results say the same however often they come. A chunk that comes twice is dropped here.
      const again = m.op === 'stream_chunk' && seq <= Math.max(this.#seen ?? 0, this.#floor);
      const gap = this.#seen !== undefined && seq > this.#seen + 1;
      this.#seen = Math.max(this.#seen ?? 0, seq);
      this.#resume.lastSeq = this.#seen;
      if (gap) this.#events.onGap();
      if (again) return;
    }
    this.#events.onCallMessage(m);
  }

  #take(requestId: string) {
    const ask = this.#asks.get(requestId);
    this.#asks.delete(requestId);
    return ask;
  }

  ready(): boolean {
    return this.#phase === 'open' && (this.#ws?.bufferedAmount ?? 0) < maxWaitingBytes;
  }

  send(call: Call): void {
    this.#write(call.encode());
  }

  forget(): void {
    // What comes is sorted out by who hears it.
  }

  cancel({ requestId }: Cancel): void {
    this.#write(JSON.stringify({ op: 'cancel', request_id: requestId }));
  }

  ask(op: AskOp, fields: Record<string, string>, timeoutMs: number): Promise<AnswerMessage> {
    if (this.#phase !== 'open') return Promise.reject(new LinkEnded());
    const requestId = `~${op}~${this.#nextAsk++}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#asks.delete(requestId);
        reject(new OrchestratorError('TIMEOUT', `${op}: no answer within ${Math.round(timeoutMs)} ms`));
      }, timeoutMs);
      this.#asks.set(requestId, {
        resolve: (m) => (clearTimeout(timer), resolve(m)),
        reject: (err) => (clearTimeout(timer), reject(err)),
      });
      this.#write(JSON.stringify({ op, request_id: requestId, ...fields }));
    });
  }

  /** Looks whether the connection is silent, asks whether it is there, and comes again. */
  #watch(): void {
    const { pingEveryMs, pingTimeoutMs } = this.#settings;
    const silent = now() - this.#heard;
    let next = pingTimeoutMs;
    if (this.#pings === 0 && silent < pingEveryMs) {
      next = pingEveryMs - silent;
    } else if (this.#pings >= missedPings) {
      return this.#end({ kind: 'lost', message: `the server has been silent for ${Math.round(silent)} ms and has not answered ${missedPings} pings` });
    } else {
      this.#pings++;
      this.#write('{"op":"ping"}');
    }
    if (this.#phase === 'open') this.#pingTimer = setTimeout(() => this.#watch(), Math.max(1, next));
  }

  #write(data: string): void {
    if (this.#phase === 'ended' || this.#ws === undefined) return;
    try {
      this.#ws.send(data);
    } catch (err) {
      this.#end({ kind: 'lost', message: textOf(err) });
    }
  }

  #end(end: LinkEnd): void {
    if (this.#phase === 'ended') return;
    const ws = this.#stop();
    if (ws !== undefined) drop(ws);
    this.#events.onEnd(end);
  }

  /** Ends everything but the socket. */
  #stop(): WebSocketLike | undefined {
    this.#phase = 'ended';
    clearTimeout(this.#connectTimer);
    clearTimeout(this.#pingTimer);
    const asks = [...this.#asks.values()];
    this.#asks.clear();
    for (const ask of asks) ask.reject(new LinkEnded());
    const ws = this.#ws;
    this.#ws = undefined;
    if (ws !== undefined) ws.onopen = ws.onmessage = ws.onclose = ws.onerror = null;
    return ws;
  }

  close(): Promise<void> {
    if (this.#phase === 'ended') return Promise.resolve();
    const ws = this.#stop();
    if (ws === undefined) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        drop(ws);
        resolve();
      }, closeGraceMs);
      ws.onerror = () => {};
      ws.onclose = () => {
        clearTimeout(timer);
        resolve();
      };
      try {
        ws.close(1000, 'the client is done');
      } catch {
        drop(ws);
        clearTimeout(timer);
        resolve();
      }
    });
  }
}

function refusalOf(m: HelloRefusal): LinkEnd {
  const kind = m.error === 'unauthorized' || m.error === 'UNAUTHORIZED' ? 'unauthorized' : 'refused';
  return { kind, message: `the server refused the hello: ${m.error}` };
}

/** Lets a socket go without waiting for the other side. */
function drop(ws: WebSocketLike): void {
  ws.onerror = () => {}; // one that was still connecting reports that it never came to be
  ws.onopen = ws.onmessage = ws.onclose = null;
  try {
    if (ws.terminate !== undefined) ws.terminate();
    else ws.close();
  } catch {
    // It has ended already.
  }
}
