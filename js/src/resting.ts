/** Words beside the pictures wait until the pointer rests; the pictures themselves follow in the same frame. */

/** Milliseconds without a move after which the pointer rests. */
const pause = 80;

/**
 * Calls `show` at once, or when `later` has not been called for a while. Text that nobody can read at that pace would
 * make the browser lay out and paint the page for every move.
 */
export function whenResting(show: () => void): { now: () => void; later: () => void; stop: () => void } {
  let timer: ReturnType<typeof setTimeout> | null = null;
  const stop = () => {
    if (timer !== null) clearTimeout(timer);
    timer = null;
  };
  return {
    now: () => {
      stop();
      show();
    },
    later: () => {
      stop();
      timer = setTimeout(show, pause);
    },
    stop,
  };
}
