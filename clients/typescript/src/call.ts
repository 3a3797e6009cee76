// A call: what was asked for, how far it is, and its one outcome.

import type { Timer } from './clock.js';
import { now } from './clock.js';
import type { Output } from './messages.js';
import type { Priority } from './options.js';

/** What a tool answered. */
export class CallResult {
  /** The call's name. */
  readonly requestId: string;
  /** All parts of the answer. */
  readonly outputs: readonly Output[];
  /** The answer was kept from an earlier call of this request_id. */
  readonly fromCache: boolean;
  /** The call was in flight already when it was asked for. */
  readonly fromInflight: boolean;
  /**
   * Of a call that streams: all of its chunks came, in order, once. False when some may be missing or doubled, as the connection changed meanwhile, HTTP
   * was used, or they were read too slowly. The answer itself is whole in any case.
   */
  readonly streamIntact: boolean;

  constructor(fields: { requestId: string; outputs: readonly Output[]; fromCache: boolean; fromInflight: boolean; streamIntact: boolean }) {
    this.requestId = fields.requestId;
    this.outputs = fields.outputs;
    this.fromCache = fields.fromCache;
    this.fromInflight = fields.fromInflight;
    this.streamIntact = fields.streamIntact;
  }

  /** The answer as text. */
  get text(): string {
    return this.outputs.map((o) => o.text).join('');
  }

  /** The answer read as JSON, which all tools of the orchestrator answer with. Throws a SyntaxError for other text. */
  json<T = unknown>(): T {
    return JSON.parse(this.text) as T;
  }
}

/**
 * Where a call is:
 *
 * ```
 *   queued ──► sent ──► done
 *     ▲ ▲       │ │
 *     │ └─ lost ◄┘ │  the link ended: it is asked for again on the next one
 *     └─ waiting ◄─┘  the server said when to come back
 * ```
 */
export type CallState = 'queued' | 'sent' | 'lost' | 'waiting' | 'done';

/** What a caller wants. */
export interface CallWish {
  requestId: string;
  tool: string;
  /** JSON, made once: a call that is repeated must say the same, byte for byte. */
  arguments: string;
  priority: Priority;
  /** On the clock of {@link now}. */
  deadline: number;
  durable: boolean;
  /** Calls with one key run one after the other. */
  key?: string | undefined;
  onProgress?: ((message: string) => void) | undefined;
  onChunk?: ((chunk: string) => void) | undefined;
}

/** A call in this client. */
export class Call {
  readonly wish: CallWish;
  /** In which order calls were made. */
  readonly ordinal: number;
  state: CallState = 'queued';
  /** A server may know it. */
  asked = false;
  /** The server of the present link has taken it. */
  acked = false;
  /** In which order calls were asked for. */
  sentAs = 0;
  /** Its deadline has passed, and the server has a moment more to say so itself. */
  graced = false;
  /** How often it was put off by a server. */
  refusals = 0;
  /** Its token was asked for anew. */
  renewed = false;
  streamIntact = true;
  /** Runs while it waits. */
  timer: Timer | undefined;
  deadlineTimer: Timer | undefined;
  stopListening: () => void = () => {};
  readonly resolve: (result: CallResult) => void;
  readonly reject: (reason: unknown) => void;

  constructor(wish: CallWish, ordinal: number, resolve: (result: CallResult) => void, reject: (reason: unknown) => void) {
    this.wish = wish;
    this.ordinal = ordinal;
    this.resolve = resolve;
    this.reject = reject;
  }

  /** What is left until the deadline, in milliseconds; 0 when it has passed. */
  get leftMs(): number {
    return Math.max(0, this.wish.deadline - now());
  }

  /** The message that asks for it. */
  encode(): string {
    const { requestId, tool, priority, durable, key } = this.wish;
    const rest = JSON.stringify({
      op: 'call_tool',
      request_id: requestId,
      name: tool,
      priority,
      deadline_ms: Math.max(1, Math.ceil(this.leftMs)),
      ...(key === undefined ? {} : { key }),
      ...(durable ? {} : { durable: false }),
    });
    return `${rest.slice(0, -1)},"arguments":${this.wish.arguments}}`;
  }
}
