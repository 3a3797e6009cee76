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

  it('a cancel is kept until there is a WebSocket', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'refuse';
    w.server.tool = () => undefined;
    const abort = new AbortController();
    const a = watch(c.call('t', {}, { requestId: 'a', signal: abort.signal }));
    await w.clock.advance(5_000);
    assert.equal(c.state, 'fallback');
    abort.abort();
    await w.clock.settle();
    assert.equal(a.error?.name, 'AbortError');
    w.server.webSockets = 'ok';
    await w.clock.advance(31_000);
    assert.equal(w.server.session('session').calls.get('a')?.end?.['op'], 'cancelled');
  }));

  it('knows how its server does, and the tools that were listed before', inWorld(1, async (w) => {
    const c = w.client();
    const tools = watch(c.listTools());
    await w.clock.settle();
    assert.deepEqual(tools.value?.map((t) => t.name), ['echo']);
    assert.deepEqual((await Promise.all([c.health(), w.clock.settle()]))[0], { status: 'ok', reason: undefined, server: 'server-1', connections: 1, inFlight: 0 });
    w.server.webSockets = 'refuse';
    w.server.socket.drop(1006, '');
    await w.clock.advance(5_000);
    assert.equal(c.state, 'fallback');
    assert.deepEqual((await Promise.all([c.listTools(), w.clock.settle()]))[0], tools.value);
    assert.deepEqual((await Promise.all([c.health(), w.clock.settle()]))[0], { status: 'ok', server: 'server-1', reason: undefined });
    const fresh = w.client({ sessionId: 'fresh' });
    const none = watch(fresh.listTools());
    await w.clock.advance(5_000);
    assert.equal(none.error?.code, 'SERVICE_UNAVAILABLE');
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
