// WebSockets of Node: its own from version 22 on, that of package ws before.

import type { WebSocketFactory, WebSocketLike } from '../src/websocket.js';

/** Opens a WebSocket of the platform. */
export const openWebSocket: WebSocketFactory = async (url, protocols) => {
  const own = (globalThis as { WebSocket?: unknown }).WebSocket as (new (url: string, protocols: string[]) => WebSocketLike) | undefined;
  if (own !== undefined) return new own(url, protocols);
  const { WebSocket } = await import('ws');
  return new WebSocket(url, protocols, { followRedirects: false });
};
