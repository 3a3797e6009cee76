// Connections: attempts and their pauses, other servers, what is asked again, and what must not come twice.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { type Frame, inWorld, watch } from './fake.js';

const text = (t: string) => ({ outputs: [{ type: 'text', text: t }] });
const asked = (frames: Frame[]) => frames.filter((f) => f['op'] === 'call_tool').map((f) => f['request_id']);

describe('attempts', () => {
  it('come after longer and longer pauses, ten of them, and then rarely', inWorld(1, async (w) => {
    const c = w.client({ fallbackAfter: Infinity, breaker: { failures: 1_000 } });
    w.server.up = false;
    void c.call('t', {}, { deadlineMs: 86_400_000 }).catch(() => {});
    await w.clock.advance(600_000);
    const pauses = w.told('retry').map((e) => e.delayMs);
    assert.deepEqual(pauses.slice(0, 12), [500, 1_500, 3_000, 6_000, 12_000, 22_500, 22_500, 22_500, 22_500, 45_000, 45_000, 45_000]);
    assert.deepEqual(w.states(), ['connecting', 'unreachable']);
    w.server.up = true;
    const up = watch(c.connect());
    await w.clock.settle();
    assert(up.done && up.error === undefined, 'connect does not wait for the next one');
    assert.equal(c.state, 'connected');
  }));

  it('go to the next address', inWorld(3, async (w) => {
    const c = w.client();
    w.servers[0]!.up = w.servers[1]!.up = false;
    const a = watch(c.call('t'));
    await w.clock.advance(2_100);
    assert(a.value);
    assert.deepEqual(w.urls, ['wss://server-1:8079/mcp', 'wss://server-2:8079/mcp', 'wss://server-3:8079/mcp']);
  }));

  it('leave an address alone that has failed too often, and try it once later', inWorld(2, async (w) => {
    const c = w.client({ fallbackAfter: Infinity, breaker: { failures: 2, openMs: 60_000 } });
    w.servers[0]!.up = false;
    const attempts = () => w.urls.filter((u) => u.includes('server-1')).length;
    for (let i = 0; i < 6; i++) {
      const a = watch(c.call('t'));
      await w.clock.advance(10_000);
      assert(a.value);
      w.servers[1]!.socket.drop(1006, '');
      await w.clock.settle();
    }
    assert.equal(attempts(), 2);
    assert.deepEqual(c.status().breakers['https://server-1:8079'], { websocket: 'open', http: 'closed' });
    await w.clock.advance(60_000);
    w.servers[1]!.socket.drop(1006, '');
    await w.clock.advance(10_000);
    assert.equal(attempts(), 3, 'one trial');
    assert.equal(c.state, 'connected');
    w.servers[0]!.up = true;
    await w.clock.advance(60_000);
    w.servers[1]!.socket.drop(1006, '');
    await w.clock.advance(10_000);
    assert.equal(c.status().address, 'https://server-1:8079');
    assert.equal(c.status().breakers['https://server-1:8079']?.websocket, 'closed');
  }));

  it('wait where all addresses are left alone', inWorld(1, async (w) => {
    const c = w.client({ fallbackAfter: Infinity, breaker: { failures: 1, openMs: 20_000 } });
    w.server.up = false;
    const up = watch(c.connect());
    await w.clock.advance(19_900);
    assert.equal(w.sockets.length, 1);
    await w.clock.advance(200);
    assert.equal(w.sockets.length, 2);
    await w.clock.advance(10_000);
    assert.equal(up.error?.code, 'TIMEOUT');
    assert.match(up.error.message, /connection refused/);
  }));

  it('that fail before there is a socket are failures like others', inWorld(1, async (w) => {
    const c = w.client({
      webSocket: () => {
        throw new Error('mixed content');
      },
    });
    const a = watch(c.call('t'));
    await w.clock.advance(5_000);
    assert(a.value);
    assert.equal(c.state, 'fallback');
    assert.match(w.told('retry')[0].reason, /mixed content/);
  }));

  it('that hang are given up', inWorld(2, async (w) => {
    const c = w.client();
    w.servers[0]!.webSockets = 'hang';
    const a = watch(c.call('t'));
    await w.clock.advance(9_900);
    assert.equal(a.done, false);
    await w.clock.advance(700);
    assert(a.value);
    assert.equal(w.sockets[0]!.ended, true);
  }));

  it('that get something else than an answer to hello are given up', inWorld(1, async (w) => {
    const c = w.client({ fallbackAfter: Infinity });
    const answers: (Frame | string)[] = ['<html>', { op: 'pong' }, { op: 'hello_ack', ok: true }, { op: 'hello_ack', ok: false, error: 'over_capacity' }, '{"op":"hello_ack","ok":false,"error":{"code":"OVER_CAPACITY"}}'];
    const reasons: string[] = [];
    c.on('retry', (e) => reasons.push(e.reason));
    w.server.script = (socket, f) => {
      const answer = answers.shift();
      if (f['op'] !== 'hello' || answer === undefined) return false;
      socket.say(answer);
      return true;
    };
    const a = watch(c.call('t'));
    await w.clock.advance(60_000);
    assert(a.value);
    for (const [i, r] of [/not JSON/, /pong came before hello_ack/, /session_id is missing/, /over_capacity/, /OVER_CAPACITY/].entries()) assert.match(reasons[i]!, r);
  }));
});

describe('a connection that breaks', () => {
  it('is made anew at the next server, where what was in flight is asked for again, byte for byte', inWorld(3, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const args = { list: [1, 2], b: 1, a: 2 };
    const a = watch(c.call('t', args, { requestId: 'a' }));
    await w.clock.settle();
    args.list.push(3);
    w.server.kill();
    await w.clock.advance(1_000);
    assert(a.value);
    assert.deepEqual(a.value.json(), { list: [1, 2], b: 1, a: 2 });
    assert.deepEqual(w.servers[1]!.socket.wrote[0], { op: 'hello', token: 'orch_secret', session_id: 'session' }, 'what was seen last means nothing here');
    assert.deepEqual(w.states(), ['connecting', 'connected', 'reconnecting', 'connected']);
    assert.equal(a.value.streamIntact, false, 'nobody knows what became of the chunks');
  }));

  it('at the same server goes on where it was: what was missed comes first, and only what is missing then is asked for', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const calls = ['a', 'b', 'c'].map((requestId) => watch(c.call('t', {}, { requestId })));
    await w.clock.settle();
    const s = w.server.session('session');
    w.server.socket.drop(1006, '');
    w.server.finish('a'); // waits in its queue
    w.server.finish('b');
    s.written.push(s.queue.pop()!); // written to the socket that broke
    await w.clock.advance(1_000);
    assert.deepEqual(w.server.socket.wrote.slice(0, 2), [
      { op: 'hello', token: 'orch_secret', session_id: 'session', last_seq: 3 },
      { op: 'ping', request_id: '~ping~1' },
    ]);
    assert.deepEqual(asked(w.server.socket.wrote), ['c']);
    assert(calls[0]!.value && calls[1]!.value && !calls[2]!.done);
    w.server.finish('c');
    await w.clock.settle();
    assert.equal(calls[2]!.value?.streamIntact, true);
  }));

  it('says last_order to every server, and last_seq only to the one that counted it', inWorld(2, async (w) => {
    const c = w.client();
    for (const s of w.servers) {
      s.tellsName = true;
      s.tool = () => ({ ...text('1'), order: ++w.cluster.order });
    }
    for (let i = 0; i < 3; i++) {
      const a = watch(c.call('t'));
      await w.clock.settle();
      assert(a.value);
    }
    const hello = async (from: number) => {
      w.servers[from]!.socket.drop(1006, '');
      await w.clock.advance(1_000);
      const { token, op, session_id, ...rest } = w.sockets.at(-1)!.wrote[0]!;
      return rest;
    };
    assert.deepEqual(await hello(0), { last_order: 3 });
    await w.clock.settle();
    assert.equal(c.status().address, 'https://server-2:8079');
    w.servers[0]!.up = false;
    w.servers[1]!.session('session').answer({ op: 'call_tool_res', request_id: 'z', ...text('"z"'), order: 4 });
    await w.clock.settle();
    const dropped = w.servers[1]!;
    dropped.socket.drop(1006, '');
    await w.clock.advance(4_000);
    assert.deepEqual(dropped.socket.wrote[0]?.['last_seq'], 1);
    assert.deepEqual(dropped.socket.wrote[0]?.['last_order'], 4);
    assert.deepEqual(w.told('unclaimed').map((u) => [u.requestId, u.result.text]), [['z', '"z"']]);
  }));

  it('behind one address is known by the name that its server tells', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tellsName = true;
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.settle();
    const named = (name: string) => {
      w.server.script = (socket, f) => {
        if (f['op'] !== 'hello') return false;
        socket.session = w.server.session('other');
        socket.session.socket = socket;
        socket.say({ op: 'hello_ack', ok: true, session_id: 'session', resumed: true, server: name });
        return true;
      };
    };
    named('server-9'); // another server behind a balancer, which knows the session from before
    w.server.session('other').seq = 0;
    w.server.socket.drop(1006, '');
    await w.clock.advance(1_000);
    w.server.finish('a'); // at the first, which has no connection
    const chunks: string[] = [];
    const b = watch(c.call('t', {}, { requestId: 'b', onChunk: (x) => chunks.push(x) }));
    await w.clock.settle();
    const other = w.server.session('other');
    other.answer({ op: 'stream_chunk', request_id: 'b', chunk: 'not dropped' }); // its numbers are its own
    w.server.finish('b');
    w.server.finish('a');
    await w.clock.settle();
    assert.deepEqual([chunks, a.value?.streamIntact, b.value?.streamIntact], [['not dropped'], false, true]);
  }));

  it('soon after it was made counts as one that could not be had', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    void c.call('t').catch(() => {});
    await w.clock.settle();
    for (let i = 0; i < 3; i++) {
      if (c.state === 'connected') w.server.socket.drop(1006, '');
      await w.clock.advance(3_500);
    }
    assert(w.states().includes('fallback'), w.states().join(' '));
  }));

  it('because a message was too large takes only that call along', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    w.server.script = (socket, f) => {
      if (f['request_id'] !== 'bad') return socket.ended;
      socket.drop(1009, 'the message is larger than it may be');
      return true;
    };
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    const b = watch(c.call('t', {}, { requestId: 'bad' }));
    const d = watch(c.call('t', {}, { requestId: 'd' }));
    await w.clock.advance(2_000);
    assert.deepEqual([b.error?.code, b.error?.field], ['INVALID_REQUEST', 'arguments']);
    w.server.finish('a');
    w.server.finish('d');
    await w.clock.settle();
    assert(a.value && d.value);
  }));

  it('as another client has taken the session is not taken back by force', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('t'));
    await w.clock.settle();
    w.server.socket.drop(4001, 'another connection took over this session');
    await w.clock.advance(60_000);
    assert.equal(a.error?.code, 'PROTOCOL_ERROR');
    assert.deepEqual([c.state, w.sockets.length], ['idle', 1]);
    w.server.tool = () => text('1');
    const b = watch(c.call('t'));
    await w.clock.settle();
    assert(b.value, 'who needs it takes it');
  }));
});

describe('a silent connection', () => {
  it('is asked whether it is there, and left when it misses three', inWorld(2, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    void c.call('t').catch(() => {});
    await w.clock.settle();
    const first = w.server.socket;
    const pings = () => first.wrote.filter((f) => f['op'] === 'ping').length;
    await w.clock.advance(29_900);
    assert.equal(pings(), 0);
    await w.clock.advance(60_200);
    assert.deepEqual([pings(), c.status().address], [3, 'https://server-1:8079'], 'answered pings are no misses');
    w.server.script = () => true; // hears and says nothing
    await w.clock.advance(30_000 + 14_000);
    assert.equal(c.status().address, 'https://server-1:8079');
    await w.clock.advance(3_000);
    assert.equal(c.status().address, 'https://server-2:8079');
    assert.equal(pings(), 6);
  }));
});

describe('answers', () => {
  it('that come twice are given once', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const chunks: string[] = [];
    const a = watch(c.call('t', {}, { requestId: 'a', onChunk: (x) => chunks.push(x) }));
    await w.clock.settle();
    const { socket } = w.server;
    const say = (seq: number, f: Frame) => socket.say({ request_id: 'a', seq, ...f });
    for (const seq of [2, 3, 3, 2, 4]) say(seq, { op: 'stream_chunk', chunk: String(seq) });
    for (const seq of [5, 5, 6]) say(seq, { op: 'call_tool_res', ...text(`"${seq}"`) });
    say(7, { op: 'cancelled' });
    await w.clock.settle();
    assert.deepEqual(chunks, ['2', '3', '4']);
    assert.equal(a.value?.json(), '5');
    assert.deepEqual(w.told('unclaimed'), []);
  }));

  it('that are missing are asked for', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    const b = watch(c.call('t', {}, { requestId: 'b' }));
    await w.clock.settle();
    const s = w.server.session('session');
    s.calls.get('a')!.end = { op: 'call_tool_res', request_id: 'a', ...text('"kept"') };
    s.seq++; // its message was lost on the way
    w.server.finish('b');
    await w.clock.settle();
    assert.deepEqual([a.value?.json(), a.value?.fromCache, b.done], ['kept', true, true]);
  }));

  it('to an earlier run of the program are told, once', inWorld(1, async (w) => {
    const s = w.server.session('session');
    for (let i = 0; i < 2; i++) s.answer({ op: 'call_tool_res', request_id: 'old', ...text('"late"') });
    s.answer({ op: 'call_tool_res', request_id: 'bad', error: { code: 'NOT_FOUND', message: 'no such session' } });
    const c = w.client();
    const up = watch(c.connect());
    await w.clock.settle();
    assert(up.done);
    const [old, bad, ...more] = w.told('unclaimed');
    assert.deepEqual([old.requestId, old.result.json(), bad.requestId, bad.error.code, more], ['old', 'late', 'bad', 'NOT_FOUND', []]);
  }));

  it('that are malformed end their call, and nothing else', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const calls = ['a', 'b', 'c'].map((requestId) => watch(c.call('t', {}, { requestId })));
    await w.clock.settle();
    const { socket } = w.server;
    socket.say({ op: 'call_tool_res', request_id: 'a', outputs: 'text' });
    socket.say({ op: 'stream_chunk', request_id: 'b', chunk: 7 });
    socket.say({ op: 'call_tool_res', outputs: [] });
    socket.say({ op: 'call_tool_res', request_id: 'nobody', outputs: 7 });
    socket.say({ op: 'something_new', request_id: 'b' });
    socket.say({ op: 'error', error: { code: 'PROTOCOL_ERROR', message: 'op x: is not known' } });
    w.server.finish('b');
    await w.clock.settle();
    assert.equal(calls[0]!.error?.code, 'PROTOCOL_ERROR');
    assert.equal(calls[1]!.value?.streamIntact, false);
    assert.equal(calls[2]!.done, false);
    assert.equal(w.sockets.length, 1);
  }));

  it('that are no messages end the connection, and the calls go on', inWorld(2, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.settle();
    w.server.socket.say('}{');
    await w.clock.advance(1_000);
    assert(a.value);
    assert.equal(c.status().address, 'https://server-2:8079');
    assert.match(w.told('disconnected')[0].reason, /not JSON/);
  }));
});
