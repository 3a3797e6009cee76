// A clock of tests: time passes when a test says so, and everything that was due happens in between, in order.

interface Pending {
  at: number;
  run: () => void;
}

/** Stands in for setTimeout, clearTimeout and performance.now while it is installed. */
export class FakeClock {
  now = 1_000_000;
  readonly #real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout, now: performance.now };
  readonly #timers = new Map<object, Pending>();

  install(): void {
    const set = (run: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) => {
      const timer = {};
      this.#timers.set(timer, { at: this.now + Math.max(0, ms), run: () => run(...args) });
      return timer;
    };
    Object.assign(globalThis, { setTimeout: set, clearTimeout: (timer: object) => void this.#timers.delete(timer) });
    Object.defineProperty(performance, 'now', { value: () => this.now, configurable: true, writable: true });
  }

  restore(): void {
    const { setTimeout, clearTimeout, now } = this.#real;
    Object.assign(globalThis, { setTimeout, clearTimeout });
    Object.defineProperty(performance, 'now', { value: now, configurable: true, writable: true });
  }

  /** How many timers run. */
  get pending(): number {
    return this.#timers.size;
  }

  /** Lets everything happen that needs no time. */
  async settle(): Promise<void> {
    for (let i = 0; i < 6; i++) await new Promise<void>((resolve) => setImmediate(resolve));
  }

  /** Lets so many milliseconds pass. */
  async advance(ms: number): Promise<void> {
    const until = this.now + ms;
    await this.settle();
    for (;;) {
      let next: [object, Pending] | undefined;
      for (const entry of this.#timers) if (entry[1].at <= until && (next === undefined || entry[1].at < next[1].at)) next = entry;
      if (next === undefined) break;
      this.#timers.delete(next[0]);
      this.now = Math.max(this.now, next[1].at);
      next[1].run();
      await this.settle();
    }
    this.now = until;
  }
}
