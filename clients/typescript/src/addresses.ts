// Addresses: where servers are, which one is next, and which are left alone for a while.

import { Breaker, type BreakerSettings, type BreakerState } from './breaker.js';
import { invalid } from './errors.js';

/** A way to speak to a server. */
export type Transport = 'websocket' | 'http';

/** Where a server is. */
export class Address {
  /** As people know it: scheme, host and port. */
  readonly name: string;
  /** What HTTP paths are appended to. */
  readonly httpBase: string;
  /** Of its WebSocket. */
  readonly socketURL: string;
  readonly breakers: Record<Transport, Breaker>;

  constructor(base: URL, breaker: BreakerSettings) {
    const path = base.pathname.replace(/\/+$/, '');
    this.name = base.origin + path;
    this.httpBase = this.name;
    this.socketURL = `${base.protocol === 'https:' ? 'wss:' : 'ws:'}//${base.host}${path}/mcp`;
    this.breakers = { websocket: new Breaker(breaker), http: new Breaker(breaker) };
  }
}

const schemes: Record<string, string> = { 'https:': 'https:', 'wss:': 'https:', 'http:': 'http:', 'ws:': 'http:' };

/**
 * Reads an address: `host:port`, or a URL of `https`, `wss`, `http` or `ws`, which may have a path before `/mcp` and `/v1`. Without a scheme it is `https`.
 * Plain text is for loopback, and elsewhere for who says so by `insecure`: the token would be read on the way.
 */
export function parseAddress(text: string, insecure: boolean, breaker: BreakerSettings): Address {
  let url: URL;
  try {
    const given = new URL(/^[a-z]+:\/\//i.test(text) ? text : `https://${text}`);
    const scheme = schemes[given.protocol];
    if (scheme === undefined) throw new TypeError('scheme');
    // The scheme of a URL cannot be set from ws to http.
    url = new URL(`${scheme}//${given.host}${given.pathname}`);
    if (given.username !== '' || given.password !== '' || given.search !== '' || given.hash !== '') {
      throw invalid('addresses', `the one of host ${given.host} holds more than scheme, host, port and path; give the token as token`);
    }
  } catch (err) {
    if (err instanceof TypeError) throw invalid('addresses', 'one is neither host:port nor a URL of https, wss, http or ws');
    throw err;
  }
  if (url.protocol === 'http:' && !insecure && !/^(localhost|127(\.\d+){3}|\[::1\])$/.test(url.hostname)) {
    throw invalid('addresses', `${url.origin} would send the token in plain text; use https, or say insecure: true`);
  }
  return new Address(url, breaker);
}

/** All addresses of a client, in a ring. */
export class Addresses {
  readonly all: readonly Address[];
  #next = 0;

  constructor(all: readonly Address[]) {
    this.all = all;
  }

  /** The next address that may be tried in one of these ways; undefined when there is none now. */
  next(ways: readonly Transport[], now: number): Address | undefined {
    for (let i = 0; i < this.all.length; i++) {
      const at = (this.#next + i) % this.all.length;
      const address = this.all[at]!;
      if (ways.some((way) => address.breakers[way].admits(now))) {
        this.#next = (at + 1) % this.all.length;
        return address;
      }
    }
    return undefined;
  }

  /** When one of them may be tried next; now, where one may. */
  admitsAt(ways: readonly Transport[], now: number): number {
    return Math.min(...this.all.flatMap((a) => ways.map((way) => a.breakers[way].admitsAt(now))));
  }

  /** How the breakers stand, for people. */
  states(now: number): Record<string, Record<Transport, BreakerState>> {
    return Object.fromEntries(this.all.map((a) => [a.name, { websocket: a.breakers.websocket.state(now), http: a.breakers.http.state(now) }]));
  }
}
