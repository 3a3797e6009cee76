// Links: what a connection is to the rest of the client, whichever way it speaks.

import type { Address, Transport } from './addresses.js';
import type { Call } from './call.js';
import type { AnswerMessage, CallMessage, HelloAck } from './messages.js';

/** Why a link could not be had, or ended. */
export interface LinkEnd {
  /**
   * `lost`: the connection failed; `refused`: the server does not take it now; `unauthorized`: it does not take the token; `taken-over`: another
   * connection has the session; `too-large`: a message was more than the server takes; `elsewhere`: this side goes to another server.
   */
  kind: 'lost' | 'refused' | 'unauthorized' | 'taken-over' | 'too-large' | 'elsewhere';
  /** For people; it never holds a token. */
  message: string;
  /** The close code of a WebSocket, or the status of HTTP. */
  code?: number | undefined;
}

/** What a link tells. After `onEnd` it tells nothing more. */
export interface LinkEvents {
  /** It can be used. `whole` says that the server says again what was not seen of it before, so that nothing is missing between. */
  onOpen(ack: HelloAck, whole: boolean): void;
  /** It could not be had, or has ended. Told once, and not for a link that was closed from this side. */
  onEnd(end: LinkEnd): void;
  /** A message that belongs to a call. */
  onCallMessage(message: CallMessage): void;
  /** A message about a call that cannot be read. */
  onMalformed(op: string, requestId: string | undefined, why: string): void;
  /** Messages before this one are missing. */
  onGap(): void;
}

/** What can be asked beside calls. */
export type AskOp = 'ping' | 'list_tools' | 'health' | 'rotate_token';

/** That a call is not wanted any more. */
export interface Cancel {
  requestId: string;
  /** When the call ends by itself, on the clock of `now`. */
  until: number;
  /** A server has said that it has the call. Else it may still be on its way there. */
  arrived: boolean;
}

/** A connection to one server. */
export interface Link {
  readonly transport: Transport;
  readonly address: Address;
  /** Whether it takes another message now, or has too much to write already. */
  ready(): boolean;
  /** Asks for a call; what comes of it comes by the events. */
  send(call: Call): void;
  /** What comes of a call is not waited for any more. */
  forget(requestId: string): void;
  /** Has a call cancelled; `cancelled` comes by the events when that is known. */
  cancel(cancel: Cancel): void;
  /** Asks one of the other ops. Rejects with {@link LinkEnded} when the link ends, and with an OrchestratorError when it is refused, or not answered in time. */
  ask(op: AskOp, fields: Record<string, string>, timeoutMs: number): Promise<AnswerMessage>;
  /** Ends it. Resolves when it has ended. */
  close(): Promise<void>;
}

/** What is rejected when a link ends before an answer came. It does not leave the client. */
export class LinkEnded extends Error {}

/** What is carried from one connection to the next. */
export interface Resume {
  sessionId: string;
  /** The server that lastSeq counts for: its name, or its address where it does not tell that. */
  server?: string | undefined;
  lastSeq: number;
  /** The highest order of a result that was seen; 0 for none. */
  lastOrder: number;
  /** The names of servers by their addresses, as far as they told them. */
  names: Map<Address, string>;
}
