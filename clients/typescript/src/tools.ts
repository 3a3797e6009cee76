// The arguments of the tools that every server has, for the compiler; `listTools` tells those of the server one speaks to.

import type { Priority } from './options.js';

/** A span of time as Go writes it: `90s`, `1h30m`. */
export type Duration = string;

/** What tools about one session take. */
export interface OnSession {
  /** Its id, a unique beginning of it, or its name. */
  id: string;
  /** The token's own, or `default`, when left out. */
  namespace?: string;
}

/** What tools take that change a session. */
export interface ChangesSession extends OnSession {
  /** Makes a repeated call the same call; not needed, as calls have a requestId. */
  idempotency_key?: string;
}

/** Arguments of `session_spawn`. */
export interface SessionSpawn {
  /** Unique among the running sessions of the namespace. */
  name?: string;
  namespace?: string;
  /** `process` by default. */
  type?: 'process' | 'claude-code' | 'claude-flow' | 'acp';
  /** The program and its arguments. */
  command?: string[];
  env?: Record<string, string>;
  /** Names of secrets of the node. */
  secrets?: string[];
  /** Capabilities that the node must have, such as `gpu`. */
  require?: string[];
  labels?: Record<string, string>;
  /** Labels that the node must have. */
  node_selector?: Record<string, string>;
  /** In thousandths of a core. */
  cpu_milli?: number;
  memory_bytes?: number;
  memory_profile?: string;
  /** Which sessions go first when room is short. */
  priority?: Priority;
  /** How the process takes messages; `lines` by default. */
  protocol?: 'lines' | 'json' | 'raw' | 'none';
  /** `never` by default. */
  restart?: 'never' | 'on-failure' | 'always';
  max_restarts?: number;
  ttl?: Duration;
  /** How long it has to end after SIGTERM. */
  grace?: Duration;
  /** A duration, or `turn`. */
  checkpoint_every?: string;
  /** How long it may be idle before it is paused. */
  pause_after?: Duration;
  /** How its node is chosen. */
  strategy?: string;
  /** Wait until it runs; false by default. */
  wait?: boolean;
  idempotency_key?: string;
}

/** One message of a conversation with a model. */
export interface ChatMessage {
  role: 'system' | 'user' | 'assistant';
  content: string;
}

/** The arguments of each tool, by its name. Tools that wait do so by default, but for `session_spawn`. */
export interface ToolArguments {
  session_spawn: SessionSpawn;
  session_get: OnSession;
  session_list: { namespace?: string; /** Such as `phase=RUNNING,node=node-1`. */ filter?: string; limit?: number; page_token?: string };
  session_send: ChangesSession & { message: string; priority?: Priority; wait?: boolean; /** Has the session's output come as chunks meanwhile. */ stream?: boolean };
  session_terminate: ChangesSession & { reason?: string; grace?: Duration };
  session_migrate: ChangesSession & { target?: string; mode?: 'live' | 'cold'; wait?: boolean };
  session_checkpoint: ChangesSession & { wait?: boolean };
  session_fork: ChangesSession & { name?: string; /** Of the checkpoint; the last by default. */ sequence?: number; strategy?: string; wait?: boolean };
  session_pause: ChangesSession & { reason?: string; wait?: boolean };
  session_resume: ChangesSession & { wait?: boolean };
  node_list: { filter?: string };
  chat: { prompt?: string; messages?: ChatMessage[]; /** Has the cluster keep the conversation; `new` for an id that it makes. */ conversation_id?: string; provider?: string; model?: string; namespace?: string; max_tokens?: number; stream?: boolean };
  list_models: Record<string, never>;
}

/** What `session_send` answers. */
export interface Sent {
  sequence: number;
  sessionId: string;
  /** `ACKED` when its turn has ended. */
  status: string;
  /** What the turn answered; in `resultBase64` when it is not text, in neither when nobody waited. */
  result?: string;
  resultBase64?: string;
}
