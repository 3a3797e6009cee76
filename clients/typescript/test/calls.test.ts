// Calls: what is asked, what is answered, what is refused, and what ends early.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { OrchestratorError } from '../src/index.js';
import { type Frame, inWorld, watch } from './fake.js';

const text = (t: string) => ({ outputs: [{ type: 'text', text: t }] });

describe('calls', () => {
  it('are answered, over one connection, in whichever order they end', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('first', { n: 1 }, { requestId: 'a', priority: 'high', deadlineMs: 60_000 }));
    const b = watch(c.call('second', {}, { requestId: 'b', durable: false, key: 'one by one' }));
    await w.clock.settle();
    assert.deepEqual(w.server.socket.wrote, [
      { op: 'hello', token: 'orch_secret', session_id: 'session' },
      { op: 'call_tool', request_id: 'a', name: 'first', arguments: { n: 1 }, priority: 'high', deadline_ms: 60_000 },
      { op: 'call_tool', request_id: 'b', name: 'second', arguments: {}, priority: 'normal', deadline_ms: 300_000, key: 'one by one', durable: false },
    ]);
    w.server.finish('b', text('"B"'));
    await w.clock.settle();
    assert.equal(b.value?.json(), 'B');
    assert.equal(a.done, false);
    w.server.finish('a', text('{"x":1}'));
    await w.clock.settle();
    assert.deepEqual(a.value?.json(), { x: 1 });
    assert.equal(a.value?.streamIntact, true);
    assert.equal(w.sockets.length, 1);
    assert.deepEqual(w.states(), ['connecting', 'connected']);
  }));

  it('tell progress and chunks, and what a listener throws changes nothing', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const progress: string[] = [];
    const chunks: string[] = [];
    const a = watch(c.call('t', {}, { requestId: 'a', onProgress: (m) => progress.push(m), onChunk: (x) => (chunks.push(x), assert.fail('secret')) }));
    await w.clock.settle();
    const s = w.server.session('session');
    w.server.socket.say({ op: 'progress', request_id: 'a', message: 'at it' });
    s.answer({ op: 'stream_chunk', request_id: 'a', chunk: '1' });
    s.answer({ op: 'stream_chunk', request_id: 'a', chunk: '2' });
    s.answer({ op: 'stream_complete', request_id: 'a', truncated: true });
    w.server.finish('a');
    await w.clock.settle();
    assert.deepEqual([progress, chunks], [['at it'], ['1', '2']]);
    assert.equal(a.value?.streamIntact, false);
  }));

  it('fail with what the server says', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => ({ error: { code: 'VALIDATION_ERROR', message: 'env.A is wrong', details: { field: 'env.A' } } });
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.settle();
    assert(a.error instanceof OrchestratorError);
    assert.deepEqual([a.error.code, a.error.message, a.error.field, a.error.requestId, a.error.retryAfterMs], ['VALIDATION_ERROR', 'env.A is wrong', 'env.A', 'a', undefined]);
  }));

  it('that are wrong are refused here', inWorld(1, async (w) => {
    const c = w.client({ maxMessageBytes: 2_000 });
    const circular: Frame = {};
    circular['self'] = circular;
    for (const [field, call] of Object.entries({
      name: () => c.call(''),
      arguments: () => c.call('t', [] as never),
      'arguments ': () => c.call('t', circular),
      'arguments  ': () => c.call('t', { n: 1n }),
      'arguments   ': () => c.call('t', { text: 'ä'.repeat(800) }),
      requestId: () => c.call('t', {}, { requestId: 'with space' }),
      'requestId ': () => c.call('t', {}, { requestId: 'x'.repeat(129) }),
      'requestId  ': () => c.call('t', {}, { requestId: '..' }),
      priority: () => c.call('t', {}, { priority: 'urgent' as never }),
      deadlineMs: () => c.call('t', {}, { deadlineMs: -1 }),
      'deadlineMs ': () => c.call('t', {}, { deadlineMs: NaN }),
      key: () => c.call('t', {}, { key: '' }),
      'key ': () => c.call('t', {}, { key: 'ä'.repeat(65) }),
      'key  ': () => c.call('t', {}, { key: 7 as never }),
      next: () => c.rotateToken(),
    })) {
      await assert.rejects(call, { code: 'INVALID_REQUEST', field: field.trim() }, field);
    }
    assert.equal(w.sockets.length, 0);
  }));

  it('of one name at a time', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await assert.rejects(c.call('t', {}, { requestId: 'a' }), { code: 'DUPLICATE' });
    await w.clock.settle();
    w.server.finish('a');
    await w.clock.settle();
    assert(a.value);
    const again = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.settle();
    assert.equal(again.value?.fromCache, true, 'one that has ended may be asked for again, and gets what was kept');
  }));

  it('go by priority, as many at once as may, and no more wait than may', inWorld(1, async (w) => {
    const c = w.client({ maxInFlight: 2, maxQueuedCalls: 3 });
    w.server.tool = () => undefined;
    const calls = (['low', 'normal', 'critical', 'high', 'critical'] as const).map((priority, i) => watch(c.call('t', {}, { requestId: `${priority}-${i}`, priority })));
    await assert.rejects(c.call('t'), { code: 'OVER_CAPACITY', retryAfterMs: 1_000 });
    await w.clock.settle();
    const asked = () => w.server.socket.calls.map((f) => f['request_id']);
    assert.deepEqual(asked(), ['critical-2', 'critical-4']);
    assert.deepEqual([c.status().queued, c.status().inFlight], [3, 2]);
    for (const next of ['critical-2', 'critical-4', 'high-3', 'normal-1', 'low-0']) {
      w.server.finish(next);
      await w.clock.settle();
    }
    assert.deepEqual(asked(), ['critical-2', 'critical-4', 'high-3', 'normal-1', 'low-0']);
    assert(calls.every((x) => x.value));
  }));

  it('wait while the socket has too much to write', inWorld(1, async (w) => {
    const c = w.client();
    await w.clock.settle();
    const connected = c.connect();
    await w.clock.settle();
    await connected;
    w.server.socket.bufferedAmount = 2 << 20;
    const a = watch(c.call('t'));
    await w.clock.advance(1_000);
    assert.equal(w.server.socket.calls.length, 0);
    w.server.socket.bufferedAmount = 0;
    await w.clock.advance(50);
    assert(a.value);
  }));
});

describe('a refusal that may pass', () => {
  const full = (ms: number) => ({ op: 'call_tool_res', error: { code: 'OVER_CAPACITY', message: 'full', details: { retry_after_ms: ms } } });

  it('is asked again when the server says, with the same request_id and what is left of the deadline', inWorld(1, async (w) => {
    const c = w.client();
    let refusals = 2;
    w.server.script = (socket, f) => {
      if (f['op'] !== 'call_tool' || refusals-- <= 0) return false;
      socket.say({ ...full(1_500), request_id: f['request_id'] });
      return true;
    };
    const a = watch(c.call('t', {}, { requestId: 'a', deadlineMs: 10_000 }));
    await w.clock.advance(1_499);
    assert.equal(w.server.socket.calls.length, 1, 'not before its time');
    await w.clock.advance(4_000);
    assert(a.value);
    const [first, second] = w.server.socket.calls;
    assert.equal(second?.['request_id'], 'a');
    assert(second['deadline_ms'] <= first!['deadline_ms'] - 1_500);
  }));

  it('is not waited for beyond the deadline', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => ({ error: full(5_000).error });
    const a = watch(c.call('t', {}, { deadlineMs: 4_000 }));
    await w.clock.settle();
    assert.deepEqual([a.error?.code, a.error?.retryAfterMs], ['OVER_CAPACITY', 5_000]);
  }));

  it('backs off by itself where the server says nothing', inWorld(1, async (w) => {
    const c = w.client();
    w.server.script = (socket, f) => {
      if (f['op'] !== 'call_tool') return false;
      socket.say({ op: 'call_tool_res', request_id: f['request_id'], error: { code: 'OVER_CAPACITY', message: 'full' } });
      return true;
    };
    const a = watch(c.call('t', {}, { deadlineMs: 30_000 }));
    await w.clock.advance(30_000);
    assert.equal(a.error?.code, 'OVER_CAPACITY');
    assert(w.server.socket.calls.length < 20, `${w.server.socket.calls.length} attempts`);
  }));

  it('sends the client elsewhere when a server stays unavailable', inWorld(2, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    w.server.script = (socket, f) => {
      if (f['op'] !== 'call_tool') return false;
      socket.say({ op: 'call_tool_res', request_id: f['request_id'], error: { code: 'SERVICE_UNAVAILABLE', message: 'nobody leads', details: { retry_after_ms: 100 } } });
      return true;
    };
    const a = watch(c.call('t'));
    await w.clock.advance(5_000);
    assert(a.value);
    assert.equal(c.status().address, 'https://server-2:8079');
  }));

  it('is not made of errors that repeating does not mend, or that cost twice', inWorld(1, async (w) => {
    const c = w.client();
    for (const code of ['PROVIDER_ERROR', 'INTERNAL_ERROR', 'TIMEOUT', 'DUPLICATE', 'SOMETHING_NEW']) {
      w.server.tool = () => ({ error: { code, message: 'x', details: { retry_after_ms: 1 } } });
      const a = watch(c.call('t'));
      await w.clock.settle();
      assert.equal(a.error?.code, code);
    }
    assert.equal(w.server.socket.calls.length, 5);
  }));
});

describe('deadlines', () => {
  it('end a call that no server answers, a moment after the server should have', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { deadlineMs: 1_000 }));
    await w.clock.advance(2_900);
    assert.equal(a.done, false);
    await w.clock.advance(200);
    assert.equal(a.error?.code, 'TIMEOUT');
    assert.match(a.error.message, /may go on/);
  }));

  it('end a call that could not be sent, and say why', inWorld(1, async (w) => {
    const c = w.client({ fallbackAfter: Infinity });
    w.server.up = false;
    const a = watch(c.call('t', {}, { deadlineMs: 3_000 }));
    await w.clock.advance(3_000);
    assert.equal(a.error?.code, 'TIMEOUT');
    assert.match(a.error.message, /no connection: https:\/\/server-1:8079: connection refused.*never sent/);
  }));
});

describe('an abort', () => {
  it('rejects at once, and cancels where the call runs', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const abort = new AbortController();
    const a = watch(c.call('t', {}, { requestId: 'a', signal: abort.signal }));
    await w.clock.settle();
    const reason = new Error('changed my mind');
    abort.abort(reason);
    await w.clock.settle();
    assert.equal(a.error, reason);
    assert.deepEqual(w.server.socket.wrote.at(-1), { op: 'cancel', request_id: 'a' });
    assert.equal(w.server.session('session').calls.get('a')?.end?.['op'], 'cancelled');
    assert.deepEqual(w.told('unclaimed'), [], 'its end is of no interest');
    assert(watch(c.call('t', {}, { requestId: 'a' })), 'its name is free again');
  }));

  it('before a call is sent sends nothing', inWorld(1, async (w) => {
    const c = w.client({ maxInFlight: 1 });
    w.server.tool = () => undefined;
    await assert.rejects(c.call('t', {}, { signal: AbortSignal.abort() }), { name: 'AbortError' });
    void c.call('t', {}, { requestId: 'first' }).catch(() => {});
    const abort = new AbortController();
    const a = watch(c.call('t', {}, { requestId: 'second', signal: abort.signal }));
    await w.clock.settle();
    abort.abort();
    await w.clock.settle();
    assert.equal(a.error?.name, 'AbortError');
    assert.deepEqual(w.server.socket.wrote.map((f) => f['op']), ['hello', 'call_tool']);
  }));

  it('while there is no connection is said on the next', inWorld(2, async (w) => {
    const c = w.client();
    w.servers.forEach((s) => (s.tool = () => undefined));
    const abort = new AbortController();
    const a = watch(c.call('t', {}, { requestId: 'a', signal: abort.signal }));
    await w.clock.settle();
    w.server.socket.drop(1006, '');
    await w.clock.settle();
    abort.abort();
    await w.clock.settle();
    assert.equal(a.error?.name, 'AbortError');
    await w.clock.advance(2_000);
    assert.deepEqual(w.servers[1]!.socket.wrote.map((f) => f['op']), ['hello', 'cancel']);
  }));

  it('by somebody else is an error of its own', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('t', {}, { requestId: 'a' }));
    await w.clock.settle();
    w.server.session('session').answer({ op: 'cancelled', request_id: 'a' });
    await w.clock.settle();
    assert.equal(a.error?.code, 'CANCELLED');
  }));
});

describe('streams', () => {
  const streaming = (w: Parameters<Parameters<typeof inWorld>[1]>[0]) => {
    w.server.tool = (f, s) => {
      for (const chunk of ['one ', 'two ', 'three']) s.answer({ op: 'stream_chunk', request_id: f['request_id'], chunk });
      return undefined;
    };
  };

  it('give their chunks, then their result', inWorld(1, async (w) => {
    const c = w.client();
    streaming(w);
    const stream = c.stream('t', { n: 1 }, { requestId: 'a' });
    const chunks: string[] = [];
    const read = (async () => {
      for await (const chunk of stream) chunks.push(chunk);
    })();
    await w.clock.settle();
    assert.deepEqual(chunks, ['one ', 'two ', 'three']);
    assert.deepEqual(w.server.socket.calls[0]?.['arguments'], { stream: true, n: 1 });
    w.server.finish('a', text('whole'));
    await w.clock.settle();
    await read;
    const result = await stream.result;
    assert.deepEqual([result.text, result.streamIntact], ['whole', true]);
  }));

  it('that are left early are cancelled', inWorld(1, async (w) => {
    const c = w.client();
    streaming(w);
    const stream = c.stream('t', {}, { requestId: 'a' });
    const read = watch((async () => {
      for await (const chunk of stream) if (chunk === 'two ') break;
    })());
    await w.clock.settle();
    assert(read.done && read.error === undefined);
    assert.deepEqual(w.server.socket.wrote.at(-1), { op: 'cancel', request_id: 'a' });
    await assert.rejects(stream.result, { name: 'AbortError' });
  }));

  it('that fail throw in the loop, after the chunks', inWorld(1, async (w) => {
    const c = w.client();
    streaming(w);
    const stream = c.stream('t', {}, { requestId: 'a' });
    const chunks: string[] = [];
    const read = watch((async () => {
      for await (const chunk of stream) chunks.push(chunk);
    })());
    await w.clock.settle();
    w.server.finish('a', { error: { code: 'TOOL_EXECUTION_ERROR', message: 'no' } });
    await w.clock.settle();
    assert.equal(read.error?.code, 'TOOL_EXECUTION_ERROR');
    assert.equal(chunks.length, 3);
  }));

  it('that nobody reads are bounded, and say so', inWorld(1, async (w) => {
    const c = w.client({ maxBufferedChars: 10 });
    streaming(w);
    const stream = c.stream('t', {}, { requestId: 'a' });
    await w.clock.settle();
    w.server.finish('a', text('whole'));
    await w.clock.settle();
    const chunks: string[] = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.deepEqual(chunks, ['one ', 'two ']);
    const result = await stream.result;
    assert.deepEqual([result.text, result.streamIntact], ['whole', false]);
  }));
});

describe('close', () => {
  it('ends what is in flight, and refuses what comes', inWorld(1, async (w) => {
    const c = w.client();
    w.server.tool = () => undefined;
    const a = watch(c.call('t'));
    await w.clock.settle();
    await c.close();
    await w.clock.settle();
    assert.equal(a.error?.code, 'CLOSED');
    await assert.rejects(c.call('t'), { code: 'CLOSED' });
    await assert.rejects(c.health(), { code: 'CLOSED' });
    await c.close();
    assert.equal(c.state, 'closed');
  }));

  for (const event of ['state', 'connected', 'disconnected', 'retry'] as const) {
    it(`by a listener of ${event} leaves nothing behind`, inWorld(2, async (w) => {
      for (let nth = 1; nth <= 4; nth++) {
        const c = w.client({ sessionId: `closed-${nth}` });
        let n = 0;
        c.on(event, () => void (++n === nth && c.close()));
        w.server.up = nth % 2 === 0;
        const a = watch(c.call('t', {}, { deadlineMs: 20_000 }));
        await w.clock.advance(3_000);
        [...w.servers[0]!.sockets, ...w.servers[1]!.sockets].forEach((s) => s.drop(1006, ''));
        await w.clock.advance(30_000);
        assert.equal(a.done, true);
        if (c.state === 'closed') assert.equal(c.status().address, undefined);
      }
    }));
  }

  it('while it connects leaves nothing behind', inWorld(1, async (w) => {
    const c = w.client();
    w.server.webSockets = 'hang';
    const up = watch(c.connect());
    await w.clock.settle();
    await c.close();
    await w.clock.settle();
    assert.equal(up.error?.code, 'CLOSED');
  }));
});
