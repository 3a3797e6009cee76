// A client of the orchestrator's gateway, for browsers and Node: see README.md. Everything that programs use is exported here.

export type { Transport } from './addresses.js';
export type { BreakerSettings, BreakerState } from './breaker.js';
export { CallResult } from './call.js';
export { type ClientEvents, type ClientStatus, OrchestratorClient } from './client.js';
export type { ClientState } from './connector.js';
export { type ClientErrorCode, type ErrorCode, type ErrorDetails, OrchestratorError, type ServerErrorCode } from './errors.js';
export type { Health, Output, ToolInfo } from './messages.js';
export type { CallOptions, ClientOptions, Logger, Priority, TokenSource } from './options.js';
export type { CallStream } from './stream.js';
export type { Unclaimed } from './table.js';
export type * from './tools.js';
export type { Fetch, RequestLike, ResponseLike, WebSocketFactory, WebSocketLike } from './websocket.js';
