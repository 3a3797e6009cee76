// A circuit breaker: it keeps an address that does not answer from being asked again and again.

/** What a breaker lets through: `closed` all, `open` nothing, `half-open` one trial. */
export type BreakerState = 'closed' | 'open' | 'half-open';

/** When breakers open, and for how long. */
export interface BreakerSettings {
  /** Failures in a row after which it opens. */
  failures: number;
  /** How long it stays open, in milliseconds; then one trial may pass. */
  openMs: number;
}

/**
 * ```
 *            failures in a row            openMs later
 *   closed ─────────────────────► open ─────────────────► half-open ──┐
 *      ▲                            ▲        the trial failed │       │ the trial succeeded
 *      │                            └─────────────────────────┘       │
 *      └──────────────────────────────────────────────────────────────┘
 * ```
 * Times are of a clock that only goes forward, in milliseconds.
 */
export class Breaker {
  readonly #settings: BreakerSettings;
  #failed = 0;
  #openUntil: number | undefined;
  #trial = false;

  constructor(settings: BreakerSettings) {
    this.#settings = settings;
  }

  state(now: number): BreakerState {
    if (this.#openUntil === undefined) return 'closed';
    return now < this.#openUntil ? 'open' : 'half-open';
  }

  /** Whether an attempt may be made; who makes it says so by `begin`, and how it ended by `succeeded` or `failed`. */
  admits(now: number): boolean {
    const state = this.state(now);
    return state === 'closed' || (state === 'half-open' && !this.#trial);
  }

  begin(now: number): void {
    if (this.state(now) === 'half-open') this.#trial = true;
  }

  succeeded(): void {
    this.#failed = 0;
    this.#openUntil = undefined;
    this.#trial = false;
  }

  failed(now: number): void {
    this.#failed++;
    if (this.#trial || this.#failed >= this.#settings.failures) this.#openUntil = now + this.#settings.openMs;
    this.#trial = false;
  }

  /** The attempt was given up before anybody knew how it ends. */
  abandoned(): void {
    this.#trial = false;
  }

  /** When an attempt may be made next; now, where it may be. Infinity while a trial runs. */
  admitsAt(now: number): number {
    if (this.admits(now)) return now;
    return this.#trial ? Infinity : (this.#openUntil ?? now);
  }
}
