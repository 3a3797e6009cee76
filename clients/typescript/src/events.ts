// Events: listeners by name, typed, whose errors do not reach who emits.

/** Tells listeners what happens. */
export class Emitter<Events> {
  readonly #listeners = new Map<keyof Events, Set<(event: never) => void>>();
  readonly #failed: (thrown: unknown) => void;

  /** @param failed - is told what a listener throws. */
  constructor(failed: (thrown: unknown) => void) {
    this.#failed = failed;
  }

  /** Has a listener told of events from now on. @returns what ends that. */
  on<K extends keyof Events>(name: K, listener: (event: Events[K]) => void): () => void {
    let set = this.#listeners.get(name);
    if (set === undefined) this.#listeners.set(name, (set = new Set()));
    const own = (event: Events[K]) => listener(event); // the same function may listen twice
    set.add(own);
    return () => void set.delete(own);
  }

  emit<K extends keyof Events>(name: K, event: Events[K]): void {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        (listener as (event: Events[K]) => void)(event);
      } catch (thrown) {
        this.#failed(thrown);
      }
    }
  }
}
