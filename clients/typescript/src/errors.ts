// Errors: one class for all that goes wrong, with the codes of the protocol and the few that only a client has.

/** What a server answers when a call or another op fails; docs/protocol/client-gateway.md, section 6, says what each means. */
export type ServerErrorCode =
  | 'INVALID_REQUEST'
  | 'UNAUTHORIZED'
  | 'NOT_FOUND'
  | 'TIMEOUT'
  | 'VALIDATION_ERROR'
  | 'OVER_CAPACITY'
  | 'DUPLICATE'
  | 'INTERNAL_ERROR'
  | 'SERVICE_UNAVAILABLE'
  | 'TOOL_NOT_FOUND'
  | 'TOOL_EXECUTION_ERROR'
  | 'PROVIDER_ERROR'
  | 'PROTOCOL_ERROR';

/**
 * What only this side says: `CANCELLED`, the call was cancelled by somebody else who has its session; `CLOSED`, the client was
 * closed before the answer came.
 */
export type ClientErrorCode = 'CANCELLED' | 'CLOSED';

/** A code of an error. A newer server may know others than these. */
export type ErrorCode = ServerErrorCode | ClientErrorCode | (string & {});

/** What an {@link OrchestratorError} tells beside its message. */
export interface ErrorDetails {
  /** When to come back, in milliseconds from now. */
  retryAfterMs?: number | undefined;
  /** The request_id of the call that failed. */
  requestId?: string | undefined;
  /** The field that is wrong, as in `command[1]`, or the option of the client. */
  field?: string | undefined;
  /** What is behind it. */
  cause?: unknown;
}

/** Everything that this client throws, but for the reason of an AbortSignal, which is thrown as it is. */
export class OrchestratorError extends Error {
  override readonly name = 'OrchestratorError';
  /** What went wrong, for programs. */
  readonly code: ErrorCode;
  /** When to come back, in milliseconds; undefined where nothing is said. */
  readonly retryAfterMs: number | undefined;
  /** The call that failed; undefined where no call did. */
  readonly requestId: string | undefined;
  /** The field that is wrong; undefined where it is none. */
  readonly field: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.retryAfterMs = details.retryAfterMs;
    this.requestId = details.requestId;
    this.field = details.field;
  }
}

/** The refusal of an option or an argument. */
export function invalid(field: string, message: string): OrchestratorError {
  return new OrchestratorError('INVALID_REQUEST', `${field}: ${message}`, { field });
}

/** What an unknown thing that was thrown says, for messages to people. */
export function textOf(thrown: unknown): string {
  if (!(thrown instanceof Error)) return String(thrown);
  // What fetch throws says why only in its cause.
  const { cause } = thrown;
  return cause instanceof Error && cause.message !== '' ? `${thrown.message}: ${cause.message}` : thrown.message;
}
