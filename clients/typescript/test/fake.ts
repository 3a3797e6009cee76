// Servers of tests, in memory: they speak the protocol as docs/protocol/client-gateway.md has it, fail when they are told to, and say what a test has them say.

import assert from 'node:assert/strict';

import { type ClientOptions, type Logger, OrchestratorClient, type RequestLike, type ResponseLike, type WebSocketLike } from '../src/index.js';
import { FakeClock } from './clock.js';

export type Frame = Record<string, any>;

/** The end of a WebSocket that the client holds. */
export class FakeSocket implements WebSocketLike {
  bufferedAmount = 0;
  onopen: WebSocketLike['onopen'] = null;
  onmessage: WebSocketLike['onmessage'] = null;
  onclose: WebSocketLike['onclose'] = null;
  onerror: WebSocketLike['onerror'] = null;
  readonly server: FakeServer | undefined;
  /** What the client wrote. */
  readonly wrote: Frame[] = [];
  session: FakeSession | undefined;
  open = false;
  ended = false;

  constructor(server: FakeServer | undefined) {
    this.server = server;
    setImmediate(() => {
      if (this.ended || server?.webSockets === 'hang') return;
      if (server === undefined || !server.up || server.webSockets === 'refuse') return this.drop(1006, '');
      this.open = true;
      server.sockets.add(this);
      this.onopen?.({});
    });
  }

  send(data: string): void {
    if (!this.open) throw new Error('the socket is not open');
    const frame = JSON.parse(data) as Frame;
    this.wrote.push(frame);
    queueMicrotask(() => this.open && this.server?.hear(this, frame));
  }

  close(code = 1005): void {
    this.drop(code, '');
  }

  terminate(): void {
    this.drop(1006, '');
  }

  /** The server, or the network, ends it. */
  drop(code: number, reason: string): void {
    if (this.ended) return;
    this.ended = true;
    this.open = false;
    this.server?.sockets.delete(this);
    if (this.session?.socket === this) this.session.socket = undefined;
    queueMicrotask(() => {
      if (code === 1006) this.onerror?.({ message: 'connection refused' });
      this.onclose?.({ code, reason });
    });
  }

  /** The server says something. */
  say(frame: Frame | string): void {
    const data = typeof frame === 'string' ? frame : JSON.stringify(frame);
    queueMicrotask(() => this.onmessage?.({ data }));
  }

  /** The calls that were asked for on it. */
  get calls(): Frame[] {
    return this.wrote.filter((f) => f['op'] === 'call_tool');
  }
}

/** A session at one server. */
export class FakeSession {
  seq = 0;
  queue: Frame[] = [];
  written: Frame[] = [];
  socket: FakeSocket | undefined;
  readonly calls = new Map<string, { frame: Frame; end?: Frame; /** It was asked for by WebSocket, and is answered there. */ bySocket: boolean; waiters: (() => void)[] }>();

  /** Says something that belongs to a call, now or when the client is back. */
  answer(frame: Frame): void {
    this.queue.push({ ...frame, seq: ++this.seq });
    this.flush();
  }

  flush(): void {
    while (this.socket !== undefined && this.queue.length > 0) {
      const frame = this.queue.shift()!;
      this.written.push(frame);
      this.socket.say(frame);
    }
  }
}

/** The tools of all servers. */
const fakeTools = [{ name: 'echo', description: 'says it again', inputSchema: {} }];

/** What all servers know. */
export class FakeCluster {
  /** How often each call had an effect. */
  readonly effects = new Map<string, number>();
  order = 0;
}

/** One server. */
export class FakeServer {
  readonly name: string;
  readonly cluster: FakeCluster;
  up = true;
  webSockets: 'ok' | 'refuse' | 'hang' = 'ok';
  http: 'ok' | 'refuse' | 'garbage' = 'ok';
  /** Whether its hello_ack says its name. */
  tellsName = false;
  tokens: string[] | undefined;
  readonly sockets = new Set<FakeSocket>();
  sessions = new Map<string, FakeSession>();
  /** While it is set, it does nothing, as one that was sent SIGSTOP: what it hears waits. */
  stopped = false;
  #backlog: [FakeSocket, Frame][] = [];
  /** Takes a request instead of the server, with its path and message; what it does not answer goes on. */
  door: ((path: string, frame: Frame) => { status: number; body: unknown } | Promise<unknown> | undefined) | undefined;
  /** Takes a message instead of the server. */
  script: ((socket: FakeSocket, frame: Frame) => boolean | void) | undefined;
  /** Answers a call: undefined for one that goes on until `finish`. */
  tool: (frame: Frame, session: FakeSession) => Frame | undefined = (frame) => ({ outputs: [{ type: 'text', text: JSON.stringify(frame['arguments']) }] });

  constructor(name: string, cluster: FakeCluster) {
    this.name = name;
    this.cluster = cluster;
  }

  get socket(): FakeSocket {
    const socket = [...this.sockets].at(-1);
    assert(socket !== undefined, `${this.name} has no connection`);
    return socket;
  }

  session(id: string): FakeSession {
    let s = this.sessions.get(id);
    if (s === undefined) this.sessions.set(id, (s = new FakeSession()));
    return s;
  }

  /** kill -9: what it knew is gone. */
  kill(): void {
    this.up = false;
    this.sessions = new Map();
    for (const socket of [...this.sockets]) socket.drop(1006, '');
  }

  /** It goes on with what it has heard meanwhile. */
  resume(): void {
    this.stopped = false;
    for (const [socket, frame] of this.#backlog.splice(0)) if (socket.open) this.hear(socket, frame);
  }

  hear(socket: FakeSocket, f: Frame): void {
    if (this.stopped) return void this.#backlog.push([socket, f]);
    if (this.script?.(socket, f) === true) return;
    switch (f['op']) {
      case 'hello': {
        if (this.tokens !== undefined && !this.tokens.includes(f['token'])) {
          socket.say({ op: 'hello_ack', ok: false, error: 'unauthorized' });
          return socket.drop(4003, 'unauthorized');
        }
        const resumed = this.sessions.has(f['session_id']);
        const s = this.session(f['session_id']);
        s.socket?.drop(4001, 'another connection took over this session');
        if (f['last_seq'] !== undefined) s.queue = [...s.written.filter((w) => w['seq'] > f['last_seq']), ...s.queue];
        s.written = [];
        socket.session = s;
        s.socket = socket;
        socket.say({ op: 'hello_ack', ok: true, session_id: f['session_id'], ...(resumed ? { resumed } : {}), ...(this.tellsName ? { server: this.name } : {}) });
        return s.flush();
      }
      case 'ping':
        return socket.say({ op: 'pong', request_id: f['request_id'] });
      case 'list_tools':
        return socket.say({ op: 'list_tools_res', request_id: f['request_id'], tools: fakeTools });
      case 'health':
        return socket.say({ op: 'health_res', request_id: f['request_id'], health: { status: 'ok', server: this.name, connections: 1, in_flight: 0 } });
      case 'rotate_token':
        return socket.say({ op: 'rotate_token_res', request_id: f['request_id'], ok: true });
      case 'call_tool':
        return this.call(socket.session!, f);
      case 'cancel': {
        const call = socket.session!.calls.get(f['request_id']);
        if (call === undefined || call.end !== undefined) return socket.say({ op: 'cancelled', request_id: f['request_id'], error: { code: 'NOT_FOUND', message: 'no such call' } });
        call.end = { op: 'cancelled', request_id: f['request_id'] };
        return socket.session!.answer(call.end);
      }
    }
  }

  private call(s: FakeSession, f: Frame): void {
    const id = f['request_id'] as string;
    s.answer({ op: 'call_tool_ack', request_id: id, accepted: true });
    const known = s.calls.get(id);
    if (known?.end !== undefined) return s.answer({ ...known.end, from_cache: true });
    if (known !== undefined) return void (known.bySocket = true);
    s.calls.set(id, { frame: f, bySocket: true, waiters: [] });
    this.cluster.effects.set(id, (this.cluster.effects.get(id) ?? 0) + 1);
    const end = this.tool(f, s);
    if (end !== undefined) this.finish(id, end);
  }

  /** Ends a call, wherever its client is. */
  finish(id: string, end: Frame = { outputs: [{ type: 'text', text: `"${id}"` }] }): void {
    for (const s of this.sessions.values()) {
      const call = s.calls.get(id);
      if (call === undefined || call.end !== undefined) continue;
      call.end = { op: 'call_tool_res', request_id: id, ...end };
      for (const waiter of call.waiters) waiter();
      if (call.bySocket) s.answer(call.end);
    }
  }

  async request(url: URL, init: RequestLike): Promise<{ status: number; body: unknown }> {
    const token = /^Bearer (.*)$/.exec(init.headers['Authorization'] ?? '')?.[1] ?? '';
    if (url.pathname === '/ready') return { status: 200, body: { status: 'ready', server: this.name } };
    if (this.tokens !== undefined && !this.tokens.includes(token)) return { status: 401, body: { op: 'error', error: { code: 'UNAUTHORIZED', message: 'no' } } };
    const session = init.headers['Orchestrator-Session-Id'] ?? '';
    const f = init.body === undefined ? {} : (JSON.parse(init.body) as Frame);
    const instead = await this.door?.(url.pathname, f);
    if (instead !== undefined) return instead as { status: number; body: unknown };
    if (url.pathname === '/v1/hello') return { status: 200, body: { op: 'hello_ack', ok: true, session_id: session, resumed: this.sessions.has(session) } };
    if (url.pathname === '/v1/tools') return { status: 200, body: { op: 'list_tools_res', tools: fakeTools } };
    const s = this.session(session);
    if (url.pathname === '/v1/cancel') {
      const known = s.calls.get(f['request_id']);
      if (known === undefined || known.end !== undefined) return { status: 404, body: { op: 'cancelled', request_id: f['request_id'], error: { code: 'NOT_FOUND', message: 'no such call' } } };
      known.end = { op: 'cancelled', request_id: f['request_id'] };
      for (const waiter of known.waiters) waiter();
      if (known.bySocket) s.answer(known.end);
      return { status: 200, body: known.end };
    }
    const id = url.pathname === '/v1/call_tool' ? (f['request_id'] as string) : decodeURIComponent(url.pathname.slice('/v1/results/'.length));
    let call = s.calls.get(id);
    if (call === undefined) {
      if (url.pathname !== '/v1/call_tool') return { status: 404, body: { op: 'call_tool_res', request_id: id, error: { code: 'NOT_FOUND', message: 'not known here' } } };
      s.calls.set(id, (call = { frame: f, bySocket: false, waiters: [] }));
      this.cluster.effects.set(id, (this.cluster.effects.get(id) ?? 0) + 1);
      const end = this.tool(f, s);
      if (end !== undefined) call.end = { op: 'call_tool_res', request_id: id, ...end };
    }
    if (call.end === undefined) {
      const wait = Number(url.searchParams.get('wait_ms'));
      const known = call;
      await new Promise<void>((resolve) => {
        setTimeout(resolve, wait);
        known.waiters.push(resolve);
      });
    }
    if (call.end === undefined) return { status: 202, body: { op: 'call_tool_ack', request_id: id, accepted: true } };
    return { status: call.end['op'] === 'cancelled' ? 409 : 200, body: call.end };
  }
}

/** Some servers, a clock, and a client's way to them. */
export class World {
  readonly clock = new FakeClock();
  readonly cluster = new FakeCluster();
  readonly servers: FakeServer[];
  /** All WebSockets that were made, whether they came to be or not. */
  readonly sockets: FakeSocket[] = [];
  readonly urls: string[] = [];
  readonly logged: string[] = [];
  readonly events: [string, any][] = [];
  readonly #clients: OrchestratorClient[] = [];
  readonly #random = Math.random;
  #requests = 0; // without an answer yet

  constructor(servers = 1) {
    this.servers = Array.from({ length: servers }, (_, i) => new FakeServer(`server-${i + 1}`, this.cluster));
    this.clock.install();
    Math.random = () => 0.5;
  }

  get server(): FakeServer {
    return this.servers[0]!;
  }

  #at(url: URL): FakeServer | undefined {
    return this.servers.find((s) => s.name === url.hostname);
  }

  client(options: Partial<ClientOptions> = {}): OrchestratorClient {
    const write = (message: string, fields?: Record<string, unknown>) => void this.logged.push(`${message} ${JSON.stringify(fields ?? {})}`);
    const logger: Logger = { debug: write, info: write, warn: write, error: write };
    const client = new OrchestratorClient({
      addresses: this.servers.map((s) => `${s.name}:8079`),
      token: 'orch_secret',
      sessionId: 'session',
      logger,
      webSocket: (url) => {
        this.urls.push(url);
        const socket = new FakeSocket(this.#at(new URL(url)));
        this.sockets.push(socket);
        return socket;
      },
      fetch: (url, init) => this.#fetch(url, init),
      ...options,
    });
    for (const event of ['state', 'connected', 'disconnected', 'retry', 'unclaimed'] as const) client.on(event, (e) => void this.events.push([event, e]));
    this.#clients.push(client);
    return client;
  }

  #fetch(url: string, init: RequestLike): Promise<ResponseLike> {
    this.urls.push(url);
    const parsed = new URL(url);
    const server = this.#at(parsed);
    if (server === undefined || !server.up || server.http === 'refuse') return Promise.reject(new TypeError('fetch failed', { cause: new Error('connection refused') }));
    if (server.http === 'garbage') return Promise.resolve({ status: 502, text: () => Promise.resolve('<html>bad gateway</html>') });
    const answer = new Promise<ResponseLike>((resolve, reject) => {
      init.signal.addEventListener('abort', () => reject(new DOMException('aborted', 'AbortError')));
      server.request(parsed, init).then(
        ({ status, body }) => (server.up ? resolve({ status, text: () => Promise.resolve(JSON.stringify(body)) }) : reject(new TypeError('fetch failed'))),
        reject,
      );
    });
    this.#requests++;
    const done = () => void this.#requests--;
    answer.then(done, done);
    return answer;
  }

  /** What was told under a name. */
  told(event: string): any[] {
    return this.events.filter(([name]) => name === event).map(([, e]) => e);
  }

  states(): string[] {
    return this.told('state').map((e) => e.state);
  }

  /** Ends everything, and looks whether anything was left behind. */
  async end(): Promise<void> {
    try {
      for (const c of this.#clients) {
        const closing = c.close();
        await this.clock.advance(5_000);
        await closing;
      }
      assert.equal(this.#requests, 0, 'requests go on after close');
      // The timers that remain are the fake servers', which wait for results on behalf of requests that were given up.
      await this.clock.advance(120_000);
      assert.equal(this.clock.pending, 0, 'timers run on after close');
      assert.deepEqual(this.sockets.filter((s) => !s.ended), [], 'sockets are open after close');
      const told = [...this.urls, ...this.logged, JSON.stringify(this.events)].join('\n');
      assert(!told.includes('secret'), 'the token was told');
    } finally {
      this.clock.restore();
      Math.random = this.#random;
    }
  }
}

/** Runs a test in a world of its own. */
export function inWorld(servers: number, test: (w: World) => Promise<void>): () => Promise<void> {
  return async () => {
    const w = new World(servers);
    let failed = true;
    try {
      await test(w);
      failed = false;
    } finally {
      await w.end().catch((err: unknown) => {
        if (!failed) throw err; // what the test found counts more
      });
    }
  };
}

/** How a promise stands: what it came to, or that it has not. */
export interface Outcome<T> {
  value?: T;
  error?: any;
  done: boolean;
}

/** Follows a promise without waiting for it. */
export function watch<T>(promise: Promise<T>): Outcome<T> {
  const o: Outcome<T> = { done: false };
  promise.then(
    (value) => Object.assign(o, { value, done: true }),
    (error: unknown) => Object.assign(o, { error, done: true }),
  );
  return o;
}
