// WebSockets where the platform has them: browsers, Deno, Bun, Node from 22 on. For Node, node/websocket.ts stands in its place.

/**
 * The part of a WebSocket that this client uses. The one of browsers is such a one, and that of package `ws`.
 * Handlers take what the platform gives them, and read no more of it than `data`, `code` and `reason`.
 */
export interface WebSocketLike {
  /** Bytes that are not written yet. */
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
  /** Ends it without a farewell, where the platform can. */
  terminate?(): void;
}

/** Opens a WebSocket. The URL never holds a token. */
export type WebSocketFactory = (url: string, protocols: string[]) => WebSocketLike | Promise<WebSocketLike>;

/** The part of a response of `fetch` that this client uses. */
export interface ResponseLike {
  readonly status: number;
  text(): Promise<string>;
}

/** What this client gives `fetch`. */
export interface RequestLike {
  method: string;
  headers: Record<string, string>;
  body?: string;
  signal: AbortSignal;
  /** Redirects are not followed: the token is for the address that was named. */
  redirect: 'error';
  cache: 'no-store';
  credentials: 'omit';
}

/** Makes a request, as `fetch` does. */
export type Fetch = (url: string, init: RequestLike) => Promise<ResponseLike>;

/** Opens a WebSocket of the platform. */
export const openWebSocket: WebSocketFactory = (url, protocols) => new WebSocket(url, protocols);
