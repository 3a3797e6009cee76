// The messages as they stand on the wire, and the reading of what servers say: everything from outside is checked here, once.

/** A failure on the wire. */
export interface WireError {
  code: string;
  message: string;
  retryAfterMs?: number | undefined;
  field?: string | undefined;
}

/** One part of a tool's answer. */
export interface Output {
  /** `text` in this version of the protocol. */
  type: string;
  text: string;
}

/** A tool that the server has. */
export interface ToolInfo {
  /** What `call` takes. */
  name: string;
  /** For people, and for models. */
  description: string;
  /** What its arguments must look like, as JSON Schema. */
  inputSchema: Record<string, unknown>;
}

/** How a server does. */
export interface Health {
  status: 'ok' | 'degraded';
  /** Why it is degraded. */
  reason?: string | undefined;
  /** The server's name. */
  server: string;
  /** Connections of clients; unknown over HTTP. */
  connections?: number | undefined;
  /** Calls in flight; unknown over HTTP. */
  inFlight?: number | undefined;
}

/** The answer to a hello that was good. */
export interface HelloAck {
  op: 'hello_ack';
  ok: true;
  sessionId: string;
  resumed: boolean;
  server?: string | undefined;
}

/** The answer to a hello that was not. */
export interface HelloRefusal {
  op: 'hello_ack';
  ok: false;
  error: string;
}

/** Where a message stands in its session: seq counts what one server says, order counts results in the whole cluster. */
interface Placed {
  requestId: string;
  seq?: number | undefined;
  order?: number | undefined;
}

/** What ends a call. */
export type EndMessage =
  | (Placed & { op: 'call_tool_res'; outputs: Output[]; error?: undefined; fromCache: boolean; fromInflight: boolean })
  | (Placed & { op: 'call_tool_res'; error: WireError })
  | (Placed & { op: 'cancelled'; error?: WireError | undefined });

/** What belongs to a call. */
export type CallMessage =
  | (Placed & { op: 'call_tool_ack' })
  | (Placed & { op: 'progress'; message: string })
  | (Placed & { op: 'stream_chunk'; chunk: string })
  | (Placed & { op: 'stream_complete'; truncated: boolean })
  | EndMessage;

/** What answers an op other than a call. */
export type AnswerMessage =
  | { op: 'pong'; requestId?: string | undefined }
  | { op: 'list_tools_res'; requestId?: string | undefined; tools?: ToolInfo[]; error?: WireError | undefined }
  | { op: 'health_res'; requestId?: string | undefined; health?: Health; error?: WireError | undefined }
  | { op: 'rotate_token_res'; requestId?: string | undefined; error?: WireError | undefined }
  | { op: 'error'; requestId?: string | undefined; error: WireError };

/** All that a server may say. */
export type ServerMessage = HelloAck | HelloRefusal | CallMessage | AnswerMessage;

/** What was read: a message, one of a newer version that is ignored, or one that cannot be. */
export type Read =
  | { kind: 'message'; message: ServerMessage }
  | { kind: 'unknown'; op: string }
  /** The message names what it is, and is wrong otherwise. */
  | { kind: 'malformed'; why: string; op: string; requestId?: string | undefined }
  /** It is no message at all. */
  | { kind: 'broken'; why: string };

/** Why a field is wrong. It does not leave this file. */
class Wrong extends Error {}

type Fields = Record<string, unknown>;

function isObject(v: unknown): v is Fields {
  return typeof v === 'object' && v !== null && !Array.isArray(v);
}

function optional<T>(f: Fields, name: string, kind: string, check: (v: unknown) => v is T): T | undefined {
  const v = f[name];
  if (v === undefined || v === null) return undefined;
  if (!check(v)) throw new Wrong(`${name} is not ${kind}`);
  return v;
}

const isText = (v: unknown): v is string => typeof v === 'string';
const isFlag = (v: unknown): v is boolean => typeof v === 'boolean';
const isCount = (v: unknown): v is number => typeof v === 'number' && Number.isInteger(v) && v >= 0;

const text = (f: Fields, name: string) => optional(f, name, 'a string', isText);
const flag = (f: Fields, name: string) => optional(f, name, 'true or false', isFlag) ?? false;
const count = (f: Fields, name: string) => optional(f, name, 'a whole number', isCount);

function must<T>(v: T | undefined, name: string): T {
  if (v === undefined) throw new Wrong(`${name} is missing`);
  return v;
}

function listOf<T>(f: Fields, name: string, each: (item: Fields) => T): T[] {
  const list = f[name];
  if (!Array.isArray(list)) throw new Wrong(`${name} is not a list`);
  return list.map((item: unknown) => {
    if (!isObject(item)) throw new Wrong(`${name} holds something else than objects`);
    return each(item);
  });
}

function failure(f: Fields): WireError | undefined {
  const e = optional(f, 'error', 'an object', isObject);
  if (e === undefined) return undefined;
  const details = optional(e, 'details', 'an object', isObject) ?? {};
  return {
    code: must(text(e, 'code'), 'error.code'),
    message: text(e, 'message') ?? '',
    retryAfterMs: count(details, 'retry_after_ms'),
    field: text(details, 'field'),
  };
}

function placed(f: Fields): Placed {
  return { requestId: must(text(f, 'request_id'), 'request_id'), seq: count(f, 'seq'), order: count(f, 'order') };
}

/** The reading of each op. */
const readers: Record<string, (f: Fields) => ServerMessage> = {
  hello_ack: (f) => {
    if (f['ok'] !== true) {
      const e = f['error'];
      return { op: 'hello_ack', ok: false, error: isText(e) ? e : (failure(f)?.code ?? 'refused') };
    }
    return { op: 'hello_ack', ok: true, sessionId: must(text(f, 'session_id'), 'session_id'), resumed: flag(f, 'resumed'), server: text(f, 'server') };
  },
  call_tool_ack: (f) => ({ op: 'call_tool_ack', ...placed(f) }),
  progress: (f) => ({ op: 'progress', ...placed(f), message: text(f, 'message') ?? '' }),
  stream_chunk: (f) => ({ op: 'stream_chunk', ...placed(f), chunk: must(text(f, 'chunk'), 'chunk') }),
  stream_complete: (f) => ({ op: 'stream_complete', ...placed(f), truncated: flag(f, 'truncated') }),
  call_tool_res: (f) => {
    const error = failure(f);
    if (error !== undefined) return { op: 'call_tool_res', ...placed(f), error };
    const outputs = listOf(f, 'outputs', (o) => ({ type: text(o, 'type') ?? 'text', text: must(text(o, 'text'), 'outputs.text') }));
    return { op: 'call_tool_res', ...placed(f), outputs, fromCache: flag(f, 'from_cache'), fromInflight: flag(f, 'from_inflight') };
  },
  cancelled: (f) => ({ op: 'cancelled', ...placed(f), error: failure(f) }),
  pong: (f) => ({ op: 'pong', requestId: text(f, 'request_id') }),
  list_tools_res: (f) => {
    const requestId = text(f, 'request_id');
    const error = failure(f);
    if (error !== undefined) return { op: 'list_tools_res', requestId, error };
    const tools = listOf(f, 'tools', (t) => ({
      name: must(text(t, 'name'), 'tools.name'),
      description: text(t, 'description') ?? '',
      inputSchema: optional(t, 'inputSchema', 'an object', isObject) ?? {},
    }));
    return { op: 'list_tools_res', requestId, tools };
  },
  health_res: (f) => {
    const requestId = text(f, 'request_id');
    const error = failure(f);
    if (error !== undefined) return { op: 'health_res', requestId, error };
    return { op: 'health_res', requestId, health: readHealth(must(optional(f, 'health', 'an object', isObject), 'health')) };
  },
  rotate_token_res: (f) => {
    const error = failure(f);
    if (error === undefined && f['ok'] !== true) throw new Wrong('ok is not true, and there is no error');
    return { op: 'rotate_token_res', requestId: text(f, 'request_id'), error };
  },
  error: (f) => ({ op: 'error', requestId: text(f, 'request_id'), error: must(failure(f), 'error') }),
};

function readHealth(h: Fields): Health {
  return {
    status: text(h, 'status') === 'ok' ? 'ok' : 'degraded',
    reason: text(h, 'reason'),
    server: text(h, 'server') ?? '',
    connections: count(h, 'connections'),
    inFlight: count(h, 'in_flight'),
  };
}

/** Reads one message of a server. It does not throw. */
export function read(data: unknown): Read {
  if (typeof data !== 'string') return { kind: 'broken', why: 'the message is binary' };
  let f: unknown;
  try {
    f = JSON.parse(data);
  } catch {
    return { kind: 'broken', why: 'the message is not JSON' };
  }
  if (!isObject(f)) return { kind: 'broken', why: 'the message is not a JSON object' };
  const op = f['op'];
  if (typeof op !== 'string') return { kind: 'broken', why: 'the message has no op' };
  const reader = Object.hasOwn(readers, op) ? readers[op] : undefined;
  if (reader === undefined) return { kind: 'unknown', op };
  try {
    return { kind: 'message', message: reader(f) };
  } catch (err) {
    if (!(err instanceof Wrong)) throw err;
    const id = f['request_id'];
    return { kind: 'malformed', why: err.message, op, requestId: isText(id) ? id : undefined };
  }
}
