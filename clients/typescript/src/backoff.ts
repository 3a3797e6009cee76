// Backoff: how long to wait before the next attempt.

/** The bounds of the waiting times, in milliseconds. */
export interface BackoffSettings {
  minMs: number;
  maxMs: number;
}

/**
 * How long to wait before an attempt, in milliseconds. The first comes at once, up to `minMs` later, so that the clients of a server that died do not
 * all come to the next one in the same moment. Then the time doubles from `minMs` to `maxMs`, of which each waits between half and all.
 *
 * @param attempt - which attempt in a row it is, from 1.
 * @param random - in [0, 1).
 */
export function backoffMs(attempt: number, { minMs, maxMs }: BackoffSettings, random: number): number {
  if (attempt <= 1) return random * Math.min(minMs, maxMs);
  const full = Math.min(maxMs, minMs * 2 ** Math.min(attempt - 1, 30));
  return Math.max(Math.min(minMs, maxMs), full / 2 + (random * full) / 2);
}
