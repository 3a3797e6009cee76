// What Node can do and pages cannot: certificates of one's own, for WebSockets and for HTTP.

import { request as plainRequest, Agent as PlainAgent } from 'node:http';
import { Agent, request, type RequestOptions } from 'node:https';
import type { ConnectionOptions } from 'node:tls';

import { WebSocket } from 'ws';

import type { Fetch, ResponseLike, WebSocketFactory } from '../src/websocket.js';

/** What TLS is made with; all of it is PEM. */
export interface TLSOptions {
  /** The authority of the cluster, such as `ca/ca.pem` of `orchestrator ca init`; the machine's authorities by default. */
  ca?: string | Buffer;
  /** A client certificate and its key, which may stand for a token. */
  cert?: string | Buffer;
  key?: string | Buffer;
  /** The name that the server's certificate must have, where it is not that of the address. */
  servername?: string;
}

/** The two options of a client that say how it reaches servers. */
export interface Network {
  webSocket: WebSocketFactory;
  fetch: Fetch;
}

/** Answers that are longer are not read. */
const maxAnswerBytes = 64 << 20;

/**
 * A network with certificates of one's own. TLS is 1.3 at least, as the orchestrator's is.
 *
 * ```ts
 * new OrchestratorClient({ addresses, token, ...network({ ca: readFileSync('ca.pem') }) });
 * ```
 */
export function network(tls: TLSOptions): Network {
  const options: ConnectionOptions = { ...tls, minVersion: 'TLSv1.3' };
  const agent = new Agent({ ...options, keepAlive: true });
  const plainAgent = new PlainAgent({ keepAlive: true });
  return {
    webSocket: (url, protocols) => new WebSocket(url, protocols, { ...options, maxPayload: maxAnswerBytes, followRedirects: false }),
    fetch: (url, init) => {
      const secure = new URL(url).protocol === 'https:';
      const shared: RequestOptions = { method: init.method, headers: init.headers, signal: init.signal };
      return new Promise<ResponseLike>((resolve, reject) => {
        const req = secure ? request(url, { ...shared, agent }) : plainRequest(url, { ...shared, agent: plainAgent });
        req.on('error', reject);
        req.on('response', (res) => {
          const chunks: Buffer[] = [];
          let bytes = 0;
          res.on('data', (chunk: Buffer) => {
            chunks.push(chunk);
            if ((bytes += chunk.length) > maxAnswerBytes) res.destroy(new Error(`the answer is more than ${maxAnswerBytes} bytes`));
          });
          res.on('error', reject);
          res.on('end', () => {
            const status = res.statusCode ?? 0;
            if (status >= 300 && status < 400) return reject(new Error(`the server redirects (HTTP ${status}), which is not followed`));
            const text = Buffer.concat(chunks).toString('utf8');
            resolve({ status, text: () => Promise.resolve(text) });
          });
        });
        req.end(init.body);
      });
    },
  };
}
