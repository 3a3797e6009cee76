// The client at the gateway of a real cluster: three servers, one node, real sessions, and a server that is killed.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, afterEach, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { type ClientOptions, OrchestratorClient, type Sent, type ToolArguments, type Unclaimed } from '@neolith/orchestrator-client';
import { network } from '@neolith/orchestrator-client/node';

import { Cluster, noCluster, Proxy, until } from './cluster.js';

/** Counts its messages, and takes its time for each. */
const counting = (pause: string) => ['/bin/sh', '-c', `n=0; while read -r line; do n=$((n+1)); sleep ${pause}; echo "$n $line"; done`];

/** All properties that the types know, as the compiler sees to it. */
const typed: { [K in keyof ToolArguments]: Record<keyof Required<ToolArguments[K]>, true> } = {
  session_spawn: {
    name: true, namespace: true, type: true, command: true, env: true, secrets: true, require: true, labels: true, node_selector: true, cpu_milli: true, memory_bytes: true,
    memory_profile: true, priority: true, protocol: true, restart: true, max_restarts: true, ttl: true, grace: true, checkpoint_every: true, pause_after: true, strategy: true,
    wait: true, idempotency_key: true,
  },
  session_get: { id: true, namespace: true },
  session_list: { namespace: true, filter: true, limit: true, page_token: true },
  session_send: { id: true, namespace: true, message: true, priority: true, wait: true, stream: true, idempotency_key: true },
  session_terminate: { id: true, namespace: true, reason: true, grace: true, idempotency_key: true },
  session_migrate: { id: true, namespace: true, target: true, mode: true, wait: true, idempotency_key: true },
  session_checkpoint: { id: true, namespace: true, wait: true, idempotency_key: true },
  session_fork: { id: true, namespace: true, name: true, sequence: true, strategy: true, wait: true, idempotency_key: true },
  session_pause: { id: true, namespace: true, reason: true, wait: true, idempotency_key: true },
  session_resume: { id: true, namespace: true, wait: true, idempotency_key: true },
  node_list: { filter: true },
  chat: { prompt: true, messages: true, conversation_id: true, provider: true, model: true, namespace: true, max_tokens: true, stream: true },
  list_models: {},
};

describe('at a real cluster', { skip: noCluster, timeout: 180_000 }, () => {
  let cluster: Cluster;
  const clients: OrchestratorClient[] = [];
  const told: string[] = [];
  const secrets = new Set<string>();

  before(async () => {
    cluster = await Cluster.start(3, 1);
  });
  afterEach(() => Promise.all(clients.splice(0).map((c) => c.close())).then(() => {}));
  after(async () => {
    await cluster?.stop();
    assert.deepEqual(told.filter((line) => [...secrets].some((secret) => line.includes(secret))), [], 'a token was logged');
  });

  function client(options: Partial<ClientOptions> = {}): OrchestratorClient {
    const write = (message: string, fields?: Record<string, unknown>) => void told.push(`${message} ${JSON.stringify(fields)}`);
    const { addresses, token, ca } = cluster;
    const c = new OrchestratorClient({ addresses, token, logger: { debug: write, info: write, warn: write, error: write }, ...network({ ca }), ...options });
    clients.push(c);
    secrets.add(String(options.token ?? token));
    return c;
  }

  async function spawn(c: OrchestratorClient, args: ToolArguments['session_spawn']): Promise<string> {
    const s = (await c.call('session_spawn', { wait: true, ...args })).json<{ id: string; phase: string }>();
    assert.equal(s.phase, 'RUNNING');
    return s.id;
  }

  it('tools are there as they are typed, and the server is well', async () => {
    const c = client();
    const tools = new Map((await c.listTools()).map((t) => [t.name, t]));
    for (const [name, properties] of Object.entries(typed)) {
      const schema = tools.get(name)?.inputSchema as { properties?: Record<string, unknown>; required?: string[] } | undefined;
      assert(schema, `the server has no ${name}`);
      const known = Object.keys(schema.properties ?? {});
      assert.deepEqual(Object.keys(properties).filter((p) => !known.includes(p)), [], `${name} does not take these`);
      assert.deepEqual((schema.required ?? []).filter((p) => !Object.hasOwn(properties, p)), [], `${name} needs these`);
    }
    const health = await c.health();
    assert.equal(health.status, 'ok');
    assert.match(health.server, /^server-[123]$/);
  });

  it('many messages at once over one connection, each answered once', async () => {
    const c = client();
    const id = await spawn(c, { command: counting('0') });
    const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => c.call('session_send', { id, message: `message ${i}` }, { priority: i % 2 === 0 ? 'high' : 'normal' })));
    const results = answers.map((a) => a.json<Sent>().result ?? '');
    assert.deepEqual(results.map((r) => Number(r.split(' ')[0])).sort((a, b) => a - b), Array.from({ length: 20 }, (_, i) => i + 1));
    results.forEach((r, i) => assert(r.endsWith(` message ${i}`), r));
    await assert.rejects(c.call('session_get', { id: 'nobody' }), { code: 'NOT_FOUND' });
    await assert.rejects(c.call('no_such_tool'), { code: 'TOOL_NOT_FOUND' });
    await assert.rejects(c.call('session_send', { id } as never), { code: 'VALIDATION_ERROR', field: 'message' });
    await c.call('session_terminate', { id, grace: '0s' });
  });

  it('what a session writes streams, in order, before the answer', async () => {
    const c = client();
    const worker = `while read -r l; do id=\${l#*'"id":"'}; id=\${id%%'"'*}; for i in 1 2 3 4 5; do echo "step $i"; done; echo '{"type":"result","id":"'$id'","text":"done"}'; done`;
    const id = await spawn(c, { command: ['/bin/sh', '-c', worker], protocol: 'json' });
    const stream = c.stream('session_send', { id, message: 'go' });
    let text = '';
    for await (const chunk of stream) text += chunk;
    assert.equal(text.slice(0, text.indexOf('{')), 'step 1\nstep 2\nstep 3\nstep 4\nstep 5\n');
    const result = await stream.result;
    assert.deepEqual([result.json<Sent>().result, result.streamIntact], ['done', true]);
    await c.call('session_terminate', { id, grace: '0s' });
  });

  it('a call that is aborted stops at the server', async () => {
    const c = client({ addresses: [cluster.addresses[1]!] });
    const id = await spawn(c, { command: ['/bin/sh', '-c', 'sleep 1000'] });
    const abort = new AbortController();
    const call = c.call('session_send', { id, message: 'nobody reads this' }, { signal: abort.signal });
    await until('it runs', async () => (await c.health()).inFlight === 1);
    const reason = new Error('changed my mind');
    abort.abort(reason);
    await assert.rejects(call, reason);
    await until('it has stopped', async () => (await c.health()).inFlight === 0);
    await c.call('session_terminate', { id, grace: '0s' });
  });

  it('an answer that nobody waited for is told to the program after its restart', async () => {
    const sessionId = `restarts-${Date.now()}`;
    const first = client({ addresses: [cluster.addresses[2]!], sessionId });
    const id = await spawn(first, { command: counting('0.5') });
    const call = first.call('session_send', { id, message: 'late' }, { requestId: 'the-question' });
    await until('it runs', () => first.status().inFlight === 1);
    await first.health(); // answered behind the call
    await Promise.all([first.close(), assert.rejects(call, { code: 'CLOSED' })]);
    const second = client({ addresses: [cluster.addresses[2]!], sessionId });
    const unclaimed: Unclaimed[] = [];
    second.on('unclaimed', (u) => unclaimed.push(u));
    await second.connect();
    await until('the answer is there', () => unclaimed.length > 0);
    assert.equal(unclaimed[0]?.requestId, 'the-question');
    assert.equal(unclaimed[0]?.result?.json<Sent>().result, '1 late');
    const again = await second.call('session_send', { id, message: 'late' }, { requestId: 'the-question' });
    assert.deepEqual([again.fromCache, again.json<Sent>().result], [true, '1 late'], 'and it was done once');
    await second.call('session_terminate', { id, grace: '0s' });
  });

  it('a token is rotated, and the old one revoked', async () => {
    const made = ['before', 'afterwards'].map((name) => cluster.orchctl<{ secret: string; token: { id: string } }>('tokens', 'create', name, '--role', 'admin'));
    for (const { secret } of made) secrets.add(secret);
    const c = client({ token: made[0]!.secret });
    assert.equal((await c.call('node_list', {})).json<{ nodes: unknown[] }>().nodes.length, 1);
    await c.rotateToken(made[1]!.secret);
    cluster.orchctl('tokens', 'revoke', made[0]!.token.id);
    assert.equal((await c.call('node_list', {})).json<{ nodes: unknown[] }>().nodes.length, 1);
    const refused = client({ token: made[0]!.secret });
    await assert.rejects(refused.call('node_list', {}), { code: 'UNAUTHORIZED' });
    await assert.rejects(client({ token: 'orch_wrong' }).connect(), { code: 'UNAUTHORIZED' });
  });

  it('where WebSockets are blocked HTTP serves, and a WebSocket again as soon as one can be had', async () => {
    const proxy = await Proxy.start(cluster.addresses[1]!, cluster.ca);
    try {
      proxy.blocked = true;
      const c = client({ addresses: [proxy.address], reconnectMinMs: 50, reconnectMaxMs: 500, breaker: { openMs: 500 } });
      const id = await spawn(c, { command: counting('0.2') });
      assert.deepEqual([c.state, c.status().transport], ['fallback', 'http']);
      assert.equal((await c.call('session_send', { id, message: 'by HTTP' })).json<Sent>().result, '1 by HTTP');
      assert.equal((await c.health()).status, 'ok');
      assert(proxy.seen.includes('POST /v1/call_tool'));
      const slow = await spawn(c, { command: counting('3') });
      const begun = c.call('session_send', { id: slow, message: 'begun over HTTP' });
      proxy.blocked = false;
      await until('there is a WebSocket', () => c.state === 'connected');
      assert.equal((await begun).json<Sent>().result, '1 begun over HTTP');
      const stream = c.stream('session_send', { id: slow, message: 'streamed' });
      let text = '';
      for await (const chunk of stream) text += chunk;
      assert.equal(text, '2 streamed\n');
      proxy.blocked = true;
      proxy.cut();
      assert.equal((await c.call('session_send', { id, message: 'and again' })).json<Sent>().result, '2 and again');
      assert.equal(c.state, 'fallback');
      await Promise.all([id, slow].map((s) => c.call('session_terminate', { id: s, grace: '0s' })));
      await c.close();
    } finally {
      await proxy.stop();
    }
  });

  /** The outcome of a call in the cluster, as far as it has one. */
  const outcome = (requestId: string) => {
    type Row = { requestId: string; status: string; outcome?: { cancelled?: boolean } };
    const row = (cluster.orchctl<{ calls?: Row[] }>('queue', 'calls').calls ?? []).find((k) => k.requestId === requestId);
    return row?.outcome?.cancelled === true ? 'cancelled' : row?.status;
  };

  it('where no WebSocket can be had at all, tools are listed, calls that are aborted stop, and errors are the same', async () => {
    const proxy = await Proxy.start(cluster.addresses[0]!, cluster.ca);
    try {
      proxy.blocked = true;
      const c = client({ addresses: [proxy.address], reconnectMinMs: 50, reconnectMaxMs: 500 });
      const tools = await c.listTools();
      assert.deepEqual([c.state, proxy.seen.includes('GET /v1/tools')], ['fallback', true]);
      const direct = client({ addresses: [cluster.addresses[0]!] });
      assert.deepEqual(tools, await direct.listTools());
      const id = await spawn(c, { command: ['/bin/sh', '-c', 'sleep 1000'] });
      for (const [name, args] of [['session_get', { id: 'nobody' }], ['no_such_tool', {}], ['session_send', { id }], ['session_spawn', { command: 7 }]] as const) {
        const said = await Promise.all([c, direct].map((x) => x.call(name, args as never).then(() => 'done', ({ code, message, field }) => ({ code, message, field }))));
        assert.deepEqual(said[0], said[1]);
        assert.notEqual(said[0], 'done');
      }
      const abort = new AbortController();
      const call = c.call('session_send', { id, message: 'nobody reads this' }, { requestId: 'by-http', signal: abort.signal });
      await until('it runs', () => outcome('by-http') === 'RUNNING');
      const reason = new Error('changed my mind');
      abort.abort(reason);
      await assert.rejects(call, reason);
      await until('it is cancelled in the cluster', () => outcome('by-http') === 'cancelled');
      assert.deepEqual([c.state, proxy.seen.includes('POST /v1/cancel')], ['fallback', true]);
      await c.call('session_terminate', { id, grace: '0s' });
      await Promise.all([c.close(), direct.close()]);
    } finally {
      await proxy.stop();
    }
  });

  it('where WebSockets go in the middle of a call, its cancel finds the other way, and what is not cancelled its answer', async () => {
    const proxy = await Proxy.start(cluster.addresses[1]!, cluster.ca);
    try {
      const c = client({ addresses: [proxy.address], reconnectMinMs: 50, reconnectMaxMs: 500, breaker: { openMs: 500 } });
      const [id, counts] = await Promise.all([spawn(c, { command: ['/bin/sh', '-c', 'sleep 1000'] }), spawn(c, { command: counting('3') })]);
      assert.equal(c.state, 'connected');
      const [soon, later] = [new AbortController(), new AbortController()];
      const calls = [soon, later].map(({ signal }, i) => assert.rejects(c.call('session_send', { id, message: 'x' }, { requestId: `middle-${i}`, signal }), { name: 'AbortError' }));
      const stays = c.call('session_send', { id: counts, message: 'stays' });
      await until('both run', () => outcome('middle-0') === 'RUNNING' && outcome('middle-1') === 'RUNNING');
      proxy.blocked = true;
      proxy.cut();
      await until('it is noticed', () => c.state !== 'connected');
      soon.abort(); // while nobody is reached
      await until('HTTP serves', () => c.state === 'fallback');
      later.abort();
      await Promise.all(calls);
      for (const call of ['middle-0', 'middle-1']) await until(`${call} is cancelled in the cluster`, () => outcome(call) === 'cancelled');
      assert.equal((await c.listTools()).some((t) => t.name === 'session_send'), true);
      assert.equal((await stays).json<Sent>().result, '1 stays');
      await Promise.all([id, counts].map((s) => c.call('session_terminate', { id: s, grace: '0s' })));
      await c.close();
    } finally {
      await proxy.stop();
    }
  });

  it('the example of the README runs, with the platform\'s own fetch and certificates by NODE_EXTRA_CA_CERTS', async () => {
    const script = fileURLToPath(new URL('../examples/quickstart.js', import.meta.url));
    const env = { ...process.env, NODE_EXTRA_CA_CERTS: cluster.caFile, GATEWAY: cluster.addresses.join(','), GATEWAY_TOKEN: cluster.token };
    const { stdout } = await promisify(execFile)(process.execPath, [script], { env, timeout: 60_000 });
    assert.match(stdout, /1 good morning/);
    assert.match(stdout, /2 and again/);
  });

  it('a server that hangs is left, and what it was asked is answered by another, once', async () => {
    const follower = cluster.members().findIndex((m) => m.role !== 'LEADER');
    const address = cluster.addresses[follower]!;
    const c = client({ addresses: [address, ...cluster.addresses.filter((a) => a !== address)], pingEveryMs: 300, pingTimeoutMs: 200 });
    const id = await spawn(c, { command: counting('0') });
    const pid = cluster.processOf(address);
    process.kill(pid, 'SIGSTOP');
    try {
      assert.equal((await c.call('session_send', { id, message: 'is anybody there' })).json<Sent>().result, '1 is anybody there');
      assert.notEqual(c.status().address, address);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    assert.equal((await c.call('session_send', { id, message: 'good' })).json<Sent>().result, '2 good');
    await c.call('session_terminate', { id, grace: '0s' });
  });

  // The last one: the server stays dead.
  it('the server that a client is connected to is killed, and every answer comes, once, by another', async (t) => {
    const leader = cluster.members().findIndex((m) => m.role === 'LEADER');
    const c = client({ addresses: [...cluster.addresses.slice(leader), ...cluster.addresses.slice(0, leader)] });
    const id = await spawn(c, { command: counting('0.1'), restart: 'always' });
    const answers: string[] = [];
    const calls = Array.from({ length: 30 }, async (_, i) => {
      const result = (await c.call('session_send', { id, message: `message ${i}` })).json<Sent>().result ?? '';
      answers.push(result);
      return result;
    });
    await until('some have been answered', () => answers.length >= 5);
    const before = c.status().address!;
    assert.equal(before, cluster.addresses[leader], 'the worst one to lose');
    const killed = performance.now();
    process.kill(cluster.processOf(before), 'SIGKILL');
    const at = answers.length;
    const results = await Promise.all(calls);
    t.diagnostic(`killed the leader after ${at} of 30 answers; the others were there ${Math.round(performance.now() - killed)} ms later`);
    assert(at < 30, 'the server was killed too late for the test to say anything');
    assert.deepEqual(results.map((r) => Number(r.split(' ')[0])).sort((a, b) => a - b), Array.from({ length: 30 }, (_, i) => i + 1), 'each message had its turn once');
    results.forEach((r, i) => assert(r.endsWith(` message ${i}`), r));
    assert.deepEqual([answers.length, c.state, c.status().address !== before], [30, 'connected', true]);
    const listed = (await c.call('session_get', { id }, { durable: false })).json<{ mailbox?: { acked?: string } }>();
    assert.equal(Number(listed.mailbox?.acked), 30);
    await c.call('session_terminate', { id, grace: '0s' });
  });
});
