// Chaos: many calls while servers are killed, cut off and come back, at random; each call must have its own answer, once.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { type FakeServer, inWorld, type Outcome, watch } from './fake.js';
import type { CallResult } from '../src/index.js';

/** Random numbers that a seed gives again (mulberry32). */
function randomOf(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** What may befall a server. */
const accidents: ((s: FakeServer, random: () => number) => void)[] = [
  (s) => s.kill(),
  (s) => void (s.up = true),
  (s) => void (s.up = true),
  (s) => s.sockets.forEach((x) => x.drop(1006, '')),
  (s) => s.sockets.forEach((x) => x.drop(1001, 'the server is stopping')),
  (s) => void (s.webSockets = 'refuse'),
  (s) => void (s.webSockets = 'hang'),
  (s) => void (s.webSockets = 'ok'),
  (s) => void (s.webSockets = 'ok'),
  (s) => void (s.http = 'refuse'),
  (s) => void (s.http = 'garbage'),
  (s) => void (s.http = 'ok'),
  (s) => s.sockets.forEach((x) => x.say('}')),
  (s) => void (s.stopped = true),
  (s) => s.resume(),
  (s) => s.resume(),
  (s) => void (s.script = undefined),
  // Something is written to a socket that breaks, and was not kept.
  (s) => s.sessions.forEach((x) => void (x.written.length = 0)),
  // Something is said twice.
  (s, random) => s.sessions.forEach((x) => x.written.length > 0 && x.socket?.say(x.written[Math.floor(random() * x.written.length)]!)),
  // It is too busy for a while.
  (s, random) => {
    s.script = (socket, f) => {
      if (f['op'] !== 'call_tool' || random() < 0.5) return false;
      const code = random() < 0.5 ? 'OVER_CAPACITY' : 'SERVICE_UNAVAILABLE';
      socket.say({ op: 'call_tool_res', request_id: f['request_id'], error: { code, message: 'not now', details: { retry_after_ms: 50 } } });
      return true;
    };
  },
];

describe('chaos', () => {
  for (let seed = 1; seed <= 25; seed++) {
    it(`of seed ${seed}: each of 120 calls has its answer`, inWorld(3, async (w) => {
      const random = randomOf(seed);
      Math.random = random;
      const c = w.client();
      for (const s of w.servers) {
        s.tellsName = seed % 2 === 0;
        s.tool = (f) => {
          setTimeout(() => s.finish(f['request_id']), random() * 3_000);
          return undefined;
        };
      }
      const calls = new Map<string, Outcome<CallResult>>();
      for (let i = 0; i < 120; i++) {
        const requestId = `call-${i}`;
        calls.set(requestId, watch(c.call('t', { i }, { requestId, deadlineMs: 86_400_000 })));
        if (random() < 0.6) accidents[Math.floor(random() * accidents.length)]!(w.servers[Math.floor(random() * 3)]!, random);
        await w.clock.advance(random() * 1_500);
      }
      for (const s of w.servers) {
        Object.assign(s, { up: true, webSockets: 'ok', http: 'ok' });
        s.script = undefined;
        s.resume();
      }
      await w.clock.advance(300_000);
      for (const [id, outcome] of calls) assert.equal(outcome.value?.json(), id, `${id}: ${String(outcome.error)}`);
      assert.equal(c.state, 'connected');
      assert.deepEqual(w.told('unclaimed'), []);
      assert.deepEqual([c.status().queued, c.status().inFlight], [0, 0]);
    }));
  }
});
