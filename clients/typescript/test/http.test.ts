// HTTP, where no WebSocket can be held, and back; and tokens, which are shown in both ways.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { inWorld, watch, type World } from './fake.js';

const text = (t: string) => ({ outputs: [{ type: 'text', text: t }] });

/** Lets time pass until something is so. */
async function until(w: World, yes: () => boolean): Promise<void> {
  for (let i = 0; !yes(); i++) {
    assert(i < 1_000, 'waited in vain');
    await w.clock.advance(100);
  }
}

describe('HTTP', () => {
  it('serves after three WebSockets that could not be had, until one can', inWorld(2, async (w) => {
    const c = w.client();
    for (const s of w.servers) {
      s.webSockets = 'refuse';
      s.tool = () => undefined;
    }
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.advance(4_000);
    assert.deepEqual([c.state, c.status().transport], ['fallback', 'http']);
    assert.equal(w.urls.filter((u) => u.startsWith('wss')).length >= 3, true);
    const server = w.servers.find((s) => s.sessions.get('session')?.calls.has('a'))!;
    server.finish('a', text('"by HTTP"'));
    await w.clock.settle();
    assert.deepEqual([a.value?.json(), a.value?.streamIntact], ['by HTTP', false]);

    const b = watch(c.call('t', {}, { requestId: 'b' }));
    await w.clock.advance(60_000); // longer than one request waits
    assert.equal(b.done, false);
    const probes = w.urls.filter((u) => u.startsWith('wss')).length;
    assert(probes > 5 && probes < 15, `${probes} WebSockets were tried in a minute`);
    for (const s of w.servers) s.webSockets = 'ok';
    await w.clock.advance(31_000);
    assert.equal(c.state, 'connected');
    for (const s of w.servers) s.finish('b');
    await w.clock.settle();
    assert(b.value, 'what was in flight goes on over the WebSocket');
    assert.deepEqual([...w.cluster.effects.values()].every((n) => n <= 2), true);
  }));

  it('asks elsewhere when its server fails, and a call that is not known there is made', inWorld(3, async (w) => {
    const c = w.client();
    for (const s of w.servers) {
      s.webSockets = 'refuse';
      s.tool = () => undefined;
    }
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.advance(4_000);
    const first = w.servers.find((s) => s.sessions.size > 0)!;
    first.kill();
    await w.clock.advance(40_000);
    const second = w.servers.find((s) => s.up && s.sessions.get('session')?.calls.has('a'))!;
    assert(second !== undefined && second !== first);
    second.finish('a');
    await w.clock.settle();
    assert(a.value);
  }));

  it('makes a call anew that its server has forgotten, and takes NOT_FOUND for an answer when it is one', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.advance(30_000);
    assert(w.urls.some((u) => u.includes('/v1/results/a')));
    w.server.sessions = new Map(); // it was started anew
    await w.clock.advance(60_000);
    assert.equal(w.cluster.effects.get('a'), 2);
    w.server.finish('a', { error: { code: 'NOT_FOUND', message: 'no such session' } });
    await w.clock.settle();
    assert.equal(a.error?.message, 'no such session');
  }));

  it('that is lost while a WebSocket is being tried leaves that way open', inWorld(1, async (w) => {
    const c = w.client({ breaker: { failures: 1, openMs: 10_000 } });
    w.server.webSockets = 'refuse';
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.advance(8_000);
    assert.equal(c.state, 'fallback');
    w.server.webSockets = 'hang';
    await until(w, () => w.sockets.at(-1)?.ended === false && !w.sockets.at(-1)!.open);
    w.server.http = 'refuse';
    void c.call('t').catch(() => {});
    await w.clock.settle();
    assert.equal(c.state, 'reconnecting');
    w.server.webSockets = 'ok';
    await w.clock.advance(60_000);
    assert.equal(c.state, 'connected');
    w.server.finish('a');
    await w.clock.settle();
    assert(a.value);
  }));

  it('goes on while both ways are tried again, and is not fooled by other answers', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.http = 'garbage';
    const a = watch(c.call('t'));
    await w.clock.advance(20_000);
    assert.notEqual(c.state, 'fallback');
    assert.match(c.status().reason, /HTTP 502 without a message|connection refused/);
    w.server.webSockets = 'ok';
    await w.clock.advance(60_000);
    assert.equal(c.state, 'connected', 'a WebSocket is found where HTTP cannot be had');
    assert(a.value);
  }));

  it('tells the answers of calls that failed, that were cancelled, and that end late', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.tool = () => undefined;
    const calls = ['a', 'b', 'c'].map((requestId) => watch(c.call('t', {}, { requestId, deadlineMs: requestId === 'c' ? 10_000 : 60_000 })));
    await w.clock.advance(5_000);
    w.server.finish('a', { error: { code: 'NOT_FOUND', message: 'no such session' } });
    const b = w.server.session('session').calls.get('b')!;
    b.end = { op: 'cancelled', request_id: 'b' };
    for (const waiter of b.waiters) waiter();
    await w.clock.advance(10_000);
    assert.deepEqual(calls.map((x) => x.error?.code), ['NOT_FOUND', 'CANCELLED', 'TIMEOUT']);
    const requests = () => w.urls.filter((u) => u.startsWith('https')).length;
    const before = requests();
    await w.clock.advance(60_000);
    assert.equal(requests(), before, 'nobody asks for what nobody waits for');
  }));

  it('a call that is aborted is cancelled at its server', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.tool = () => undefined;
    const aborts = ['a', 'b'].map((requestId) => {
      const abort = new AbortController();
      return { requestId, abort, call: watch(c.call('t', {}, { requestId, signal: abort.signal })) };
    });
    await w.clock.advance(5_000);
    assert.equal(c.state, 'fallback');
    const end = (id: string) => w.server.session('session').calls.get(id)?.end?.['op'];
    aborts[0]!.abort.abort();
    await w.clock.settle();
    assert.deepEqual([aborts[0]!.call.error?.name, end('a'), end('b')], ['AbortError', 'cancelled', undefined]);
    await w.clock.advance(26_000); // the server has said that it has the other one
    aborts[1]!.abort.abort();
    await w.clock.settle();
    assert.deepEqual([aborts[1]!.call.error?.name, end('b')], ['AbortError', 'cancelled']);
    assert.deepEqual(w.told('unclaimed'), []);
    const again = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.settle();
    assert.equal(again.error?.code, 'CANCELLED', 'its name may be used again, and the server says what became of it');
    w.server.webSockets = 'ok';
    await w.clock.advance(31_000);
    assert.equal(c.state, 'connected');
    assert.deepEqual(w.server.socket.wrote.filter((f) => f['op'] === 'cancel'), [], 'there is nothing left to cancel');
  }));

  it('is closed when cancels have been said, or nobody hears them', inWorld(1, async (w) => {
    for (const hears of [true, false]) {
      const c = w.client({ sessionId: `hears-${hears}` });
      w.server.webSockets = 'refuse';
      w.server.tool = () => undefined;
      w.server.door = (path) => (path === '/v1/cancel' && !hears ? new Promise(() => {}) : undefined);
      const aborts = Array.from({ length: 6 }, () => new AbortController());
      const calls = aborts.map(({ signal }, i) => watch(c.call('t', {}, { requestId: `call-${i}`, signal })));
      await w.clock.advance(5_000);
      for (const abort of aborts) abort.abort();
      const closed = watch(c.close());
      await w.clock.advance(900);
      assert.equal(closed.done, hears);
      await w.clock.advance(200);
      assert(closed.done && calls.every((x) => x.error?.name === 'AbortError'));
      const ended = [...w.server.session(`hears-${hears}`).calls.values()].filter((x) => x.end?.['op'] === 'cancelled');
      assert.equal(ended.length, hears ? 6 : 0);
    }
  }));

  it('a call that arrives behind its cancel does not run on', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.tool = () => undefined;
    let arrive = () => {};
    let cancels = 0;
    w.server.door = (path) => {
      if (path === '/v1/call_tool') return new Promise<undefined>((resolve) => void (arrive = () => resolve(undefined)));
      if (path === '/v1/cancel' && ++cancels === 2) setTimeout(arrive, 1);
      return undefined;
    };
    const abort = new AbortController();
    const a = watch(c.call('t', {}, { requestId: 'a', signal: abort.signal }));
    await w.clock.advance(5_000);
    abort.abort();
    await w.clock.advance(1_000);
    assert.equal(a.error?.name, 'AbortError');
    assert.deepEqual([w.server.session('session').calls.get('a')?.end?.['op'], cancels], ['cancelled', 3]);
    const late = new AbortController();
    const b = watch(c.call('t', {}, { requestId: 'b', signal: late.signal }));
    await w.clock.settle();
    w.server.door = (path) => (path === '/v1/cancel' && cancels++, undefined);
    late.abort();
    await w.clock.settle();
    await w.clock.advance(5_000);
    assert(b.done);
    const so = cancels;
    await w.clock.advance(60_000);
    assert(so < 20 && cancels === so, 'one that never arrives is given up');
  }));

  it('what was begun by WebSocket is cancelled over HTTP, also when that was said before there was a way', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const [before, after] = [new AbortController(), new AbortController()];
    const a = watch(c.call('t', {}, { requestId: 'a', signal: before.signal }));
    const b = watch(c.call('t', {}, { requestId: 'b', signal: after.signal }));
    const stays = watch(c.call('t', {}, { requestId: 'stays' }));
    await w.clock.settle();
    w.server.webSockets = 'refuse';
    w.server.socket.drop(1006, '');
    await w.clock.settle();
    assert.equal(c.state, 'reconnecting');
    before.abort();
    await w.clock.advance(6_000);
    assert.equal(c.state, 'fallback');
    const { calls } = w.server.session('session');
    assert.deepEqual([a.error?.name, calls.get('a')?.end?.['op'], calls.get('b')?.end], ['AbortError', 'cancelled', undefined]);
    after.abort();
    await w.clock.settle();
    assert.deepEqual([b.error?.name, calls.get('b')?.end?.['op']], ['AbortError', 'cancelled']);
    w.server.finish('stays');
    await w.clock.settle();
    assert(stays.value);
  }));

  it('a cancel is said again while the server is busy, has no leader, or the call does not end, and at the next when it stops', inWorld(2, async (w) => {
    const c = w.client();
    const refusals = [
      { status: 429, body: { op: 'error', error: { code: 'OVER_CAPACITY', message: 'too fast', details: { retry_after_ms: 700 } } } },
      { status: 503, body: { op: 'cancelled', request_id: 'a', error: { code: 'SERVICE_UNAVAILABLE', message: 'nobody leads' } } },
      { status: 504, body: { op: 'cancelled', request_id: 'a', error: { code: 'TIMEOUT', message: 'it has not ended yet' } } },
      { status: 503, body: { op: 'error', error: { code: 'SERVICE_UNAVAILABLE', message: 'server-1 is stopping' } } },
      { status: 502, body: '<html>bad gateway</html>' },
    ];
    let cancels = 0;
    for (const s of w.servers) {
      s.webSockets = 'refuse';
      s.tool = () => undefined;
      s.door = (path) => (path === '/v1/cancel' ? refusals[cancels++] : undefined);
    }
    const abort = new AbortController();
    const stays = watch(c.call('t', {}, { requestId: 'stays' }));
    void watch(c.call('t', {}, { requestId: 'a', signal: abort.signal }));
    await w.clock.advance(5_000);
    const first = c.status().address;
    abort.abort();
    await w.clock.advance(600);
    assert.equal(cancels, 1, 'it comes back when it was asked to');
    await w.clock.advance(40_000);
    assert(w.told('disconnected').some((d) => d.address === first && /stopping/.test(d.reason)));
    assert.equal(c.status().address, first, 'the other one gave no answer of the protocol');
    assert.equal(cancels, 6);
    assert.deepEqual(w.servers.flatMap((s) => s.session('session').calls.get('a')?.end?.['op'] ?? []), ['cancelled']);
    for (const s of w.servers) s.finish('stays');
    await w.clock.advance(30_000);
    assert(stays.value);
  }));

  it('few cancels are under way at once, and one that is refused is told of', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.tool = () => undefined;
    let now = 0;
    let most = 0;
    let all = 0;
    w.server.door = async (path, f) => {
      if (path !== '/v1/cancel') return undefined;
      all++;
      most = Math.max(most, ++now);
      await new Promise<void>((resolve) => void setTimeout(resolve, 100));
      now--;
      return f['request_id'] === 'call-0' ? { status: 400, body: { op: 'cancelled', request_id: 'call-0', error: { code: 'INVALID_REQUEST', message: 'no' } } } : undefined;
    };
    const aborts = Array.from({ length: 30 }, () => new AbortController());
    const calls = aborts.map(({ signal }, i) => watch(c.call('t', {}, { requestId: `call-${i}`, signal })));
    await w.clock.advance(5_000);
    for (const abort of aborts) abort.abort();
    await w.clock.advance(5_000);
    assert(calls.every((x) => x.error?.name === 'AbortError'));
    assert.deepEqual([most, all], [4, 30]);
    const left = [...w.server.session('session').calls].filter(([, call]) => call.end === undefined).map(([id]) => id);
    assert.deepEqual(left, ['call-0']);
    assert(w.logged.some((line) => line.includes('could not be cancelled') && line.includes('INVALID_REQUEST')));
  }));

  it('lists the tools where no WebSocket can be had at all', inWorld(2, async (w) => {
    const c = w.client();
    for (const s of w.servers) s.webSockets = 'refuse';
    const tools = watch(c.listTools());
    await w.clock.advance(5_000);
    assert.equal(c.state, 'fallback');
    assert.deepEqual(tools.value, [{ name: 'echo', description: 'says it again', inputSchema: {} }]);
    assert.deepEqual((await Promise.all([c.health(), w.clock.settle()]))[0].status, 'ok');
    // A server that is busy is asked again when it says; what it says of others is told.
    const says: { status: number; body: unknown }[] = [
      { status: 429, body: { op: 'error', error: { code: 'OVER_CAPACITY', message: 'too fast', details: { retry_after_ms: 700 } } } },
    ];
    for (const s of w.servers) s.door = (path) => (path === '/v1/tools' ? says.shift() : undefined);
    const busy = watch(c.listTools());
    await w.clock.advance(600);
    assert.equal(busy.done, false);
    await w.clock.advance(200);
    assert.equal(busy.value?.length, 1);
    for (const [body, code, field] of [
      [{ op: 'error', error: { code: 'INVALID_REQUEST', message: 'wait_ms: is not a whole number', details: { field: 'wait_ms' } } }, 'INVALID_REQUEST', 'wait_ms'],
      [{ op: 'list_tools_res', tools: 7 }, 'PROTOCOL_ERROR', undefined],
    ] as const) {
      says.push({ status: 400, body });
      const refused = watch(c.listTools());
      await w.clock.settle();
      assert.deepEqual([refused.error?.code, refused.error?.field], [code, field]);
    }
    // One that stops, or does not speak the protocol, is left for another.
    for (const gone of [{ op: 'error', error: { code: 'SERVICE_UNAVAILABLE', message: 'stopping' } }, '<html>', { op: 'pong' }]) {
      says.push({ status: 503, body: gone });
      const elsewhere = watch(c.listTools());
      await w.clock.advance(20_000);
      assert.equal(elsewhere.value?.length, 1);
    }
    assert.equal(w.told('disconnected').length, 3);
  }));

  it('lists with the token of now, and says when none is good', inWorld(1, async (w) => {
    let n = 1;
    const c = w.client({ token: () => `orch_secret${n}` });
    w.server.webSockets = 'refuse';
    w.server.tokens = ['orch_secret1'];
    const up = watch(c.connect());
    await w.clock.advance(5_000);
    assert(up.done && c.state === 'fallback');
    n = 2;
    w.server.tokens = ['orch_secret2'];
    const tools = watch(c.listTools());
    await w.clock.advance(5_000);
    assert.equal(tools.value?.length, 1);
    w.server.tokens = [];
    const refused = watch(c.listTools());
    await w.clock.advance(10_000);
    assert.equal(refused.error?.code, 'UNAUTHORIZED');
  }));

  it('knows how its server does', inWorld(1, async (w) => {
    const c = w.client();
    assert.deepEqual((await Promise.all([c.health(), w.clock.settle()]))[0], { status: 'ok', reason: undefined, server: 'server-1', connections: 1, inFlight: 0 });
    w.server.webSockets = 'refuse';
    w.server.socket.drop(1006, '');
    await w.clock.advance(5_000);
    assert.equal(c.state, 'fallback');
    assert.deepEqual((await Promise.all([c.health(), w.clock.settle()]))[0], { status: 'ok', server: 'server-1', reason: undefined });
  }));
});

describe('tokens', () => {
  it('that no server takes end what waits, and the next call tries again', inWorld(3, async (w) => {
    const c = w.client();
    for (const s of w.servers) s.tokens = ['orch_other'];
    const a = watch(c.call('t'));
    const up = watch(c.connect());
    await w.clock.advance(10_000);
    assert.deepEqual([a.error?.code, up.error?.code, c.state, w.sockets.length], ['UNAUTHORIZED', 'UNAUTHORIZED', 'idle', 3]);
    await w.clock.advance(60_000);
    assert.equal(w.sockets.length, 3, 'nobody tries for nothing');
    for (const s of w.servers) s.tokens = undefined;
    const b = watch(c.call('t'));
    await w.clock.settle();
    assert(b.value);
  }));

  it('that one server does not know yet are taken to the next', inWorld(2, async (w) => {
    const c = w.client();
    w.servers[0]!.tokens = [];
    const a = watch(c.call('t'));
    await w.clock.advance(1_000);
    assert(a.value);
  }));

  it('may come from a function, for each connection anew', inWorld(1, async (w) => {
    let n = 0;
    const c = w.client({
      token: async () => {
        if (++n === 1) throw new Error('the vault is sealed');
        return `orch_secret${n}`;
      },
    });
    w.server.tool = () => undefined;
    void c.call('t').catch(() => {});
    await w.clock.settle();
    assert.match(c.status().reason, /the vault is sealed/);
    await w.clock.advance(1_000);
    w.server.socket.drop(1006, '');
    await w.clock.advance(3_000);
    assert.deepEqual(w.sockets.map((s) => s.wrote[0]?.['token']), ['orch_secret2', 'orch_secret3']);
  }));

  it('are rotated without a new connection, and used from then on', inWorld(1, async (w) => {
    const c = w.client();
    const rotated = watch(c.rotateToken('orch_secret_new'));
    await w.clock.settle();
    assert(rotated.done && rotated.error === undefined);
    const { request_id, ...said } = w.server.socket.wrote.at(-1)!;
    assert.deepEqual(said, { op: 'rotate_token', old: 'orch_secret', new: 'orch_secret_new' });
    w.server.socket.drop(1006, '');
    await w.clock.advance(1_000);
    assert.equal(w.server.socket.wrote[0]?.['token'], 'orch_secret_new');
  }));

  it('whose rotation broke off are rotated on the next connection', inWorld(1, async (w) => {
    const c = w.client();
    let breaks = true;
    w.server.script = (socket, f) => {
      if (f['op'] !== 'rotate_token') return false;
      if (breaks) {
        breaks = false;
        socket.drop(1006, '');
      } else {
        socket.say({ op: 'rotate_token_res', request_id: f['request_id'], error: { code: 'DUPLICATE', message: 'the new token has a session of this id already' } });
      }
      return true;
    };
    const rotated = watch(c.rotateToken('orch_secret_new'));
    await w.clock.advance(3_000);
    assert(rotated.done && rotated.error === undefined);
    assert.deepEqual(w.sockets.map((s) => s.wrote[0]?.['token']), ['orch_secret', 'orch_secret', 'orch_secret_new']);
  }));

  it('that are refused are not used', inWorld(1, async (w) => {
    const c = w.client();
    w.server.script = (socket, f) => {
      if (f['op'] !== 'rotate_token') return false;
      socket.say({ op: 'rotate_token_res', request_id: f['request_id'], error: { code: 'UNAUTHORIZED', message: 'the token is not valid' } });
      return true;
    };
    const rotated = watch(c.rotateToken('orch_secret_bad'));
    await w.clock.advance(1_900);
    assert.equal(rotated.done, false, 'the server may not have heard of a new token yet');
    await w.clock.advance(200);
    assert.equal(rotated.error?.code, 'UNAUTHORIZED');
    w.server.socket.drop(1006, '');
    await w.clock.advance(1_000);
    assert.equal(w.server.socket.wrote[0]?.['token'], 'orch_secret');
  }));

  it('that expire are replaced by the function, once for all calls', inWorld(1, async (w) => {
    let n = 1;
    const c = w.client({ token: () => `orch_secret${n}` });
    let valid = 'orch_secret1';
    w.server.script = (socket, f) => {
      if (f['op'] === 'rotate_token') valid = f['new'];
      if (f['op'] !== 'call_tool' || valid === `orch_secret${n}`) return false;
      socket.say({ op: 'call_tool_res', request_id: f['request_id'], error: { code: 'UNAUTHORIZED', message: 'the token was revoked' } });
      return true;
    };
    const before = watch(c.call('t'));
    await w.clock.settle();
    assert(before.value);
    n = 2;
    const calls = [1, 2, 3].map(() => watch(c.call('t')));
    await w.clock.settle();
    assert(calls.every((x) => x.value));
    assert.equal(w.server.socket.wrote.filter((f) => f['op'] === 'rotate_token').length, 1);
    valid = 'none';
    const refused = watch(c.call('t'));
    await w.clock.settle();
    assert.equal(refused.error?.code, 'UNAUTHORIZED', 'what the function gives again is no better');
  }));

  it('that expire while a result is waited for over HTTP are replaced, too', inWorld(1, async (w) => {
    let n = 1;
    const c = w.client({ token: () => `orch_secret${n}` });
    w.server.webSockets = 'refuse';
    w.server.tokens = ['orch_secret1'];
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.advance(20_000);
    assert.equal(c.state, 'fallback');
    n = 2;
    w.server.tokens = ['orch_secret2'];
    await w.clock.advance(60_000);
    assert.equal(a.done, false);
    w.server.finish('a');
    await w.clock.settle();
    assert(a.value);
    assert.equal(w.cluster.effects.get('a'), 1);
  }));

  it('are rotated over HTTP by a new connection', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.tokens = ['orch_secret', 'orch_secret_new'];
    const up = watch(c.connect());
    await w.clock.advance(5_000);
    assert(up.done && c.state === 'fallback');
    const bad = watch(c.rotateToken('orch_secret_bad'));
    await w.clock.advance(2_100);
    assert.equal(bad.error?.code, 'UNAUTHORIZED');
    const rotated = watch(c.rotateToken('orch_secret_new'));
    await w.clock.settle();
    assert(rotated.done && rotated.error === undefined);
    w.server.tokens = ['orch_secret_new'];
    const a = watch(c.call('t'));
    await w.clock.advance(5_000);
    assert(a.value);
  }));
});
