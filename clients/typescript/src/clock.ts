// Time: a clock that only goes forward, and timers.

/** Milliseconds of a clock that nobody sets. */
export const now = (): number => performance.now();

/** A timer that runs. */
export type Timer = ReturnType<typeof setTimeout>;

/** Waits, in milliseconds. It ends early, without an error, when the signal does. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', done);
  });
}
