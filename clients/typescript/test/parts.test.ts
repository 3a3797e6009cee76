// The parts that need no server: backoff, breakers, addresses, options, and the reading of messages.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { Addresses, parseAddress } from '../src/addresses.js';
import { backoffMs } from '../src/backoff.js';
import { Breaker } from '../src/breaker.js';
import { type ClientOptions, OrchestratorClient } from '../src/index.js';
import { read } from '../src/messages.js';
import { randomID } from '../src/options.js';

const breaker = { failures: 2, openMs: 100 };

describe('backoff', () => {
  it('doubles between its bounds, with jitter of a half', () => {
    const bounds = { minMs: 1_000, maxMs: 30_000 };
    const least = (n: number) => backoffMs(n, bounds, 0);
    const most = (n: number) => backoffMs(n, bounds, 0.999999);
    assert.deepEqual([1, 2, 3, 4, 5, 6, 7, 50, 5_000].map(least), [0, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000, 15_000]);
    for (const [n, limit] of [[1, 1_000], [2, 2_000], [3, 4_000], [4, 8_000], [5, 16_000], [6, 30_000], [50, 30_000]] as const) {
      assert(most(n) > limit * 0.99 && most(n) <= limit, `attempt ${n}: ${most(n)}`);
    }
  });
});

describe('a breaker', () => {
  it('opens after failures in a row, and lets one trial through later', () => {
    const b = new Breaker(breaker);
    b.failed(0);
    b.succeeded();
    b.failed(1);
    assert.equal(b.state(1), 'closed', 'a success between them counts');
    b.failed(2);
    assert.deepEqual([b.state(2), b.admits(2), b.admitsAt(2)], ['open', false, 102]);
    assert.deepEqual([b.state(102), b.admits(102)], ['half-open', true]);
    b.begin(102);
    assert.deepEqual([b.admits(102), b.admitsAt(102)], [false, Infinity], 'one at a time');
    b.failed(103);
    assert.deepEqual([b.state(103), b.admitsAt(103)], ['open', 203]);
    b.begin(203);
    b.abandoned();
    assert.equal(b.admits(203), true, 'a trial that nobody waits for any more does not count');
    b.begin(203);
    b.succeeded();
    assert.deepEqual([b.state(204), b.admits(204)], ['closed', true]);
  });
});

describe('addresses', () => {
  it('are host and port, or URLs', () => {
    for (const [text, http, socket] of [
      ['a.example.org:8079', 'https://a.example.org:8079', 'wss://a.example.org:8079/mcp'],
      ['https://a:8079/', 'https://a:8079', 'wss://a:8079/mcp'],
      ['wss://a/behind/it/', 'https://a/behind/it', 'wss://a/behind/it/mcp'],
      ['http://127.0.0.1:1', 'http://127.0.0.1:1', 'ws://127.0.0.1:1/mcp'],
      ['ws://[::1]:8079', 'http://[::1]:8079', 'ws://[::1]:8079/mcp'],
      ['http://localhost', 'http://localhost', 'ws://localhost/mcp'],
    ] as const) {
      const a = parseAddress(text, false, breaker);
      assert.deepEqual([a.httpBase, a.socketURL], [http, socket]);
    }
    assert.equal(parseAddress('http://far.example.org', true, breaker).socketURL, 'ws://far.example.org/mcp');
  });

  it('that cannot be are refused, and what may be a token in them is not repeated', () => {
    for (const text of ['', 'ftp://a', 'a b', 'https://', 'https://user:orch_secret@a', 'https://a?token=orch_secret', 'https://a#orch_secret', 'http://far.example.org', 'a:99999']) {
      assert.throws(
        () => parseAddress(text, false, breaker),
        (err: Error & { field?: string }) => err.field === 'addresses' && !err.message.includes('secret'),
        text,
      );
    }
  });

  it('are tried in a ring, without those that are left alone', () => {
    const ring = new Addresses(['a', 'b', 'c'].map((h) => parseAddress(h, false, breaker)));
    const next = (now: number) => ring.next(['websocket'], now)?.name;
    assert.deepEqual([next(0), next(0), next(0), next(0)], ['https://a', 'https://b', 'https://c', 'https://a']);
    for (let i = 0; i < 2; i++) ring.all[1]!.breakers.websocket.failed(0);
    assert.deepEqual([next(1), next(1), next(1)], ['https://c', 'https://a', 'https://c']);
    for (const a of ring.all) for (let i = 0; i < 2; i++) a.breakers.websocket.failed(50);
    assert.equal(next(60), undefined);
    assert.equal(ring.admitsAt(['websocket'], 60), 150);
    assert.equal(ring.admitsAt(['websocket', 'http'], 60), 60, 'the other way is another matter');
    assert.equal(next(150), 'https://a');
  });
});

describe('options', () => {
  const good: ClientOptions = { addresses: ['a:1'], token: '' };

  it('that cannot work are refused by name', () => {
    for (const [field, o] of Object.entries({
      addresses: { addresses: [] },
      token: { token: 7 },
      sessionId: { sessionId: 'a b' },
      'sessionId ': { sessionId: 'ab' },
      callTimeoutMs: { callTimeoutMs: 0 },
      connectTimeoutMs: { connectTimeoutMs: 2 ** 31 },
      reconnectMinMs: { reconnectMinMs: 5_000, reconnectMaxMs: 1_000 },
      pingEveryMs: { pingEveryMs: NaN },
      maxInFlight: { maxInFlight: -1 },
      fallbackAfter: { fallbackAfter: 0 },
      breaker: { breaker: { failures: 0 } },
    })) {
      assert.throws(() => new OrchestratorClient({ ...good, ...(o as object) }), { code: 'INVALID_REQUEST', field: field.trim() }, field);
    }
    assert.equal(new OrchestratorClient(good).state, 'idle');
  });

  it('make a session id that nobody guesses', () => {
    const ids = new Set(Array.from({ length: 1_000 }, randomID));
    assert.equal(ids.size, 1_000);
    for (const id of ids) assert.match(id, /^[A-Za-z0-9_-]{43}$/);
    const characters = new Set([...ids].join(''));
    assert.equal(characters.size, 64);
  });
});

describe('messages', () => {
  const kinds = (frames: unknown[]) => frames.map((f) => read(typeof f === 'string' ? f : JSON.stringify(f)).kind);

  it('that are none are broken', () => {
    assert.deepEqual(new Set(kinds(['', '{', 'null', '[]', '7', '"op"', '{"op":7}', '{"op":null}', '{}', '{"OP":"pong"}'])), new Set(['broken']));
    assert.equal(read(new ArrayBuffer(3)).kind, 'broken');
  });

  it('of newer servers are left alone', () => {
    assert.deepEqual(kinds([{ op: 'something_new' }, { op: 'constructor' }, { op: '__proto__' }, { op: 'toString' }]), ['unknown', 'unknown', 'unknown', 'unknown']);
    assert.deepEqual(kinds([{ op: 'pong', more: [1, 2] }, { op: 'call_tool_res', request_id: 'a', outputs: [{ type: 'image', text: '', x: 1 }], seq: null }]), ['message', 'message']);
  });

  it('with wrong fields are malformed', () => {
    const wrong = [
      { op: 'hello_ack', ok: true },
      { op: 'hello_ack', ok: true, session_id: 7 },
      { op: 'call_tool_res' },
      { op: 'call_tool_res', request_id: 7, outputs: [] },
      { op: 'call_tool_res', request_id: 'a' },
      { op: 'call_tool_res', request_id: 'a', outputs: 'text' },
      { op: 'call_tool_res', request_id: 'a', outputs: [7] },
      { op: 'call_tool_res', request_id: 'a', outputs: [{ type: 'text' }] },
      { op: 'call_tool_res', request_id: 'a', outputs: [], seq: 1.5 },
      { op: 'call_tool_res', request_id: 'a', outputs: [], seq: -1 },
      { op: 'call_tool_res', request_id: 'a', outputs: [], order: '7' },
      { op: 'call_tool_res', request_id: 'a', error: 'a word' },
      { op: 'call_tool_res', request_id: 'a', error: {} },
      { op: 'call_tool_res', request_id: 'a', error: { code: 'X', details: [] } },
      { op: 'call_tool_res', request_id: 'a', outputs: [], from_cache: 'yes' },
      { op: 'stream_chunk', request_id: 'a' },
      { op: 'stream_chunk', request_id: 'a', chunk: {} },
      { op: 'progress', message: 'x' },
      { op: 'list_tools_res', tools: {} },
      { op: 'list_tools_res', tools: [{}] },
      { op: 'health_res' },
      { op: 'rotate_token_res' },
      { op: 'error' },
    ];
    for (const f of wrong) assert.equal(read(JSON.stringify(f)).kind, 'malformed', JSON.stringify(f));
  });
});
