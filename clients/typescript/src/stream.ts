// Streams: the chunks of one call as an async iterable, and its result.

import { CallResult } from './call.js';

/**
 * The answer of a tool that streams, as it comes.
 *
 * ```ts
 * const stream = client.stream('session_send', { id, message: 'hello' });
 * for await (const chunk of stream) process.stdout.write(chunk);
 * const result = await stream.result;
 * ```
 *
 * Leaving the loop early cancels the call. Chunks can be read once.
 */
export class CallStream implements AsyncIterable<string> {
  /** The call's name. */
  readonly requestId: string;
  /** The whole answer, when the call has ended. It rejects as `call` does; the loop throws the same. */
  readonly result: Promise<CallResult>;
  readonly #cancel: () => void;
  readonly #maxChars: number;
  #chunks: string[] = [];
  #chars = 0;
  #overrun = false;
  #over = false;
  #wake: (() => void) | undefined;

  /** @internal */
  constructor(requestId: string, maxChars: number, call: (onChunk: (chunk: string) => void, signal: AbortSignal) => Promise<CallResult>, signal?: AbortSignal) {
    this.requestId = requestId;
    this.#maxChars = maxChars;
    const abort = new AbortController();
    const follow = () => abort.abort(signal?.reason);
    if (signal?.aborted) follow();
    signal?.addEventListener('abort', follow);
    this.#cancel = () => abort.abort();
    this.result = call((chunk) => this.#take(chunk), abort.signal)
      .then((r) => (this.#overrun ? new CallResult({ ...r, streamIntact: false }) : r))
      .finally(() => {
        signal?.removeEventListener('abort', follow);
        this.#over = true;
        this.#wake?.();
      });
    this.result.catch(() => {}); // who only reads the chunks is told by the loop
  }

  #take(chunk: string): void {
    if (this.#over) return;
    if (this.#chars + chunk.length > this.#maxChars) {
      this.#overrun = true; // from here on nothing is kept: a stream with holes is of no use
      return;
    }
    if (this.#overrun) return;
    this.#chunks.push(chunk);
    this.#chars += chunk.length;
    this.#wake?.();
  }

  /** Stops the call where it runs. */
  cancel(): void {
    this.#cancel();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, CallResult, undefined> {
    let ended = false;
    try {
      for (;;) {
        const chunks = this.#chunks;
        this.#chunks = [];
        for (const chunk of chunks) {
          this.#chars -= chunk.length;
          yield chunk;
        }
        if (this.#chunks.length > 0) continue;
        if (this.#over) break;
        await new Promise<void>((resolve) => (this.#wake = resolve));
        this.#wake = undefined;
      }
      ended = true;
      return await this.result;
    } finally {
      if (!ended) this.#cancel();
    }
  }
}
