// A real cluster for tests: `orchestrator dev` with processes of its own on free ports, and a proxy that can refuse WebSockets.

import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { request } from 'node:https';
import { createServer as createListener, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { connect } from 'node:tls';
import { fileURLToPath } from 'node:url';

/** Where the programs are: of the repository, unless ORCHESTRATOR_BIN says otherwise. */
const programs = process.env['ORCHESTRATOR_BIN'] ?? fileURLToPath(new URL('../../../../bin', import.meta.url));

/** Why there can be no cluster; false when there can. */
export const noCluster: string | false = ['orchestrator', 'node-agent', 'orchctl'].every((p) => existsSync(join(programs, p))) ? false : `no programs in ${programs}; run make build`;

const portsPerServer = 10;

/** Whether all these ports are free. */
async function free(first: number, n: number): Promise<boolean> {
  const held = await Promise.all(
    Array.from({ length: n }, (_, i) => new Promise<{ close(): void } | undefined>((resolve) => {
      const l = createListener();
      l.on('error', () => resolve(undefined));
      l.listen(first + i, '127.0.0.1', () => resolve(l));
    })),
  );
  for (const l of held) l?.close();
  return held.every((l) => l !== undefined);
}

async function freePorts(n: number): Promise<number> {
  for (let i = 0; i < 100; i++) {
    const first = 12_000 + Math.floor(Math.random() * (20_000 - n)); // below those that the kernel gives out
    if (await free(first, n)) return first;
  }
  throw new Error('found no free ports');
}

/** Waits until something is so, a minute at most. */
export async function until(what: string, yes: () => boolean | Promise<boolean>): Promise<void> {
  const by = performance.now() + 60_000;
  while (!(await yes())) {
    assert(performance.now() < by, `waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A cluster on this machine. */
export class Cluster {
  readonly data = mkdtempSync(join(tmpdir(), 'orchestrator-client-'));
  #dev: ChildProcess | undefined;
  #base = 0;
  #pids: number[] = [];
  readonly #servers: number;

  private constructor(servers: number) {
    this.#servers = servers;
  }

  /** Starts one, and returns when it can be used. */
  static async start(servers: number, agents: number): Promise<Cluster> {
    const c = new Cluster(servers);
    c.#base = await freePorts(portsPerServer * servers);
    const log = openSync(join(c.data, 'dev.log'), 'a');
    const args = ['dev', '--servers', String(servers), '--agents', String(agents), '--data', join(c.data, 'dev'), '--base-port', String(c.#base), '--no-context'];
    c.#dev = spawn(join(programs, 'orchestrator'), args, { stdio: ['ignore', log, log] });
    process.on('exit', c.#kill);
    try {
      await until('the cluster is ready', () => {
        assert.equal(c.#dev?.exitCode, null, `the cluster has ended: ${c.log}`);
        return /^ready/m.test(c.log);
      });
      await until('all servers and nodes are there', () => {
        const nodes = c.orchctl<{ nodes: { status: string; pid?: number }[] }>('nodes', 'list').nodes ?? [];
        c.#pids = [...c.members().map((m) => m.pid), ...nodes.flatMap((n) => n.pid ?? [])];
        // On a machine that is busy, nodes are degraded.
        const linked = nodes.filter((n) => n.status === 'HEALTHY' || n.status === 'DEGRADED').length;
        return c.members().length === servers && c.members().every((m) => m.pid > 0) && linked === agents;
      });
    } catch (err) {
      await c.stop();
      throw err;
    }
    return c;
  }

  get log(): string {
    return readFileSync(join(this.data, 'dev.log'), 'utf8');
  }

  get token(): string {
    return readFileSync(join(this.data, 'dev', 'admin-token'), 'utf8').trim();
  }

  /** The certificate of its authority. */
  get ca(): string {
    return readFileSync(join(this.data, 'dev', 'ca', 'ca.pem'), 'utf8');
  }

  get caFile(): string {
    return join(this.data, 'dev', 'ca', 'ca.pem');
  }

  /** The client ports of its servers. */
  get addresses(): string[] {
    return Array.from({ length: this.#servers }, (_, i) => `https://127.0.0.1:${this.#base + portsPerServer * i + 4}`);
  }

  members(): { id: string; pid: number; role: string }[] {
    const { members } = this.orchctl<{ members: { id: string; pid: number; role: string }[] }>('cluster', 'members');
    return members.sort((a, b) => a.id.localeCompare(b.id));
  }

  /** The process of the server at a client address. */
  processOf(address: string): number {
    const name = `server-${this.addresses.indexOf(address) + 1}`;
    const pid = this.members().find((m) => m.id === name)?.pid;
    assert(pid !== undefined && pid > 1, `no process of ${name}`);
    return pid;
  }

  /** What orchctl answers. */
  orchctl<T>(...args: string[]): T {
    const addresses = Array.from({ length: this.#servers }, (_, i) => `127.0.0.1:${this.#base + portsPerServer * i + 2}`).join(',');
    const env = { ...process.env, ORCHCTL_ADDR: addresses, ORCHCTL_TOKEN_FILE: join(this.data, 'dev', 'admin-token'), ORCHCTL_TLS_CA: this.caFile };
    return JSON.parse(execFileSync(join(programs, 'orchctl'), [...args, '-o', 'json'], { env, encoding: 'utf8' })) as T;
  }

  /** Ends all of it. */
  async stop(): Promise<void> {
    const dev = this.#dev;
    if (dev !== undefined && dev.exitCode === null) {
      const ended = new Promise((resolve) => dev.once('exit', resolve));
      const timer = setTimeout(this.#kill, 20_000);
      dev.kill('SIGINT');
      await ended;
      clearTimeout(timer);
    }
    process.off('exit', this.#kill);
    rmSync(this.data, { recursive: true, force: true });
  }

  /** The last resort, for processes that this started. */
  readonly #kill = (): void => {
    for (const pid of [this.#dev?.pid, ...(this.#dev?.exitCode === null ? this.#pids : [])]) {
      try {
        if (pid !== undefined) process.kill(pid, 'SIGKILL');
      } catch {
        // It has ended.
      }
    }
  };
}

/** A proxy before one server, in plain text on loopback: it passes requests on, and WebSockets when they are not blocked. */
export class Proxy {
  blocked = false;
  /** Requests that were passed on, by method and path. */
  readonly seen: string[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Duplex>();
  readonly #upstream: URL;
  readonly #ca: string;

  private constructor(upstream: string, ca: string) {
    this.#upstream = new URL(upstream);
    this.#ca = ca;
    this.#server = createServer((req, res) => {
      this.seen.push(`${req.method} ${req.url?.split('?')[0]}`);
      const { hostname, port } = this.#upstream;
      const up = request({ hostname, port, ca, method: req.method, path: req.url, headers: req.headers }, (answer) => {
        res.writeHead(answer.statusCode ?? 502, answer.headers);
        answer.pipe(res);
      });
      up.on('error', () => res.destroy());
      res.on('close', () => up.destroy());
      req.pipe(up);
    });
    this.#server.on('upgrade', (req, socket, head) => this.#upgrade(req, socket, head));
  }

  static async start(upstream: string, ca: string): Promise<Proxy> {
    const p = new Proxy(upstream, ca);
    await new Promise<void>((resolve) => p.#server.listen(0, '127.0.0.1', resolve));
    return p;
  }

  get address(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  #upgrade(req: IncomingMessage, socket: Duplex, head: Buffer): void {
    socket.on('error', () => {});
    if (this.blocked) return void socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
    const { hostname, port } = this.#upstream;
    const up = connect({ host: hostname, port: Number(port), ca: this.#ca, ALPNProtocols: ['http/1.1'] }, () => {
      up.write(`${req.method} ${req.url} HTTP/1.1\r\n`);
      for (let i = 0; i < req.rawHeaders.length; i += 2) up.write(`${req.rawHeaders[i]}: ${req.rawHeaders[i + 1]}\r\n`);
      up.write('\r\n');
      up.write(head);
      up.pipe(socket);
      socket.pipe(up);
    });
    for (const s of [up, socket]) {
      this.#sockets.add(s);
      s.on('error', () => {});
      s.on('close', () => {
        up.destroy();
        socket.destroy();
        this.#sockets.delete(s);
      });
    }
  }

  /** Ends the WebSockets that there are. */
  cut(): void {
    for (const s of this.#sockets) s.destroy();
  }

  async stop(): Promise<void> {
    this.cut();
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
