/** What is under the hair-line and in the span, in numbers. */
import { disposer, el, listen, setAttribute, setText } from "../dom";
import { currentProfile, lengthOf, spanFacts } from "../facts";
import { formatEss, formatTolerance } from "../format";
import { whenResting } from "../resting";
import type { ProfileData, State } from "../state";
import type { Store } from "../store";
import { counted, quoted, ratio } from "../wording";

/** Which ESS the numbers are. */
export function measureName({ kind, tol, relative }: ProfileData): string {
  return kind === "entropy" ? "entropy" : `σ > ${formatTolerance(tol)}${relative ? "·σ₁" : ""}`;
}

function labelAt(state: State, position: number): string {
  const label = state.tokens?.indexed ? undefined : state.tokens?.labels[position];
  return label === undefined ? "" : quoted(label, 18);
}

export function readout(root: HTMLElement, store: Store): () => void {
  const place = el("div", "ess-place");
  const value = el("span", "ess-big");
  const limit = el("span", "", { title: "Of the ceiling: what state-size and shape of Hᵢ allow here" });
  const which = el("span", "ess-which");
  const figure = el("div", "", {}, "ESS ", value, " ", limit, " ", which);
  const pin = el(
    "button",
    "ess-button",
    { type: "button", "aria-pressed": "false", "data-part": "pin" },
    "pin",
  );
  const sides = el("div", "ess-muted");
  const span = el("div", "ess-span-facts");
  const box = el("div", "ess-position", { "data-part": "readout" }, place, pin, figure, sides, span);
  const view = el("div", "ess-card", {}, box);
  root.append(view);

  const keep = "Keep this position (Space, or a click)";
  const show = () => {
    const { state } = store;
    const { position, pinned, head, span: range } = state.selection;
    const profile = currentProfile(state);
    const length = lengthOf(state);
    const at = position !== null && position < length ? position : null;
    if (pin.disabled !== (at === null)) pin.disabled = at === null;
    setText(pin, pinned ? "unpin" : "pin");
    setAttribute(pin, "aria-pressed", String(pinned));
    setAttribute(pin, "title", pinned ? "Let the position follow the pointer (Escape)" : keep);
    if (at === null) {
      setText(place, "Point at a position");
      setText(sides, length > 0 ? `${counted(length, "position")}, 0 to ${length - 1}` : "");
    } else {
      setText(place, `Position ${at} ${labelAt(state, at)}`);
      setText(sides, `past ${counted(at, "input")} · future ${counted(length - at, "output")}`);
    }
    const cell = profile && at !== null && at < profile.length ? head * profile.length + at : null;
    const ess = cell === null ? NaN : profile!.ess[cell]!;
    const room = cell === null ? NaN : profile!.ceiling[cell]!;
    setText(value, formatEss(ess));
    setText(limit, Number.isFinite(room) ? `of ${formatEss(room)}` : "");
    setText(which, profile ? `by ${measureName(profile)}` : "");
    span.classList.toggle("ess-none", !range || !profile);
    if (!range || !profile) setText(span, "Drag to select a span.");
    else {
      const facts = spanFacts(profile, head, range, state.settings.against);
      const against = state.settings.against === "ceiling" ? "ceiling" : "TSS";
      const last = Math.min(range[1], length) - 1;
      setText(
        span,
        `Span ${range[0]}–${last}: ${formatMean(facts.mean)} ± ${formatMean(facts.deviation)}, ` +
          `${ratio(facts.utilisation)} of ${against}`,
      );
    }
  };

  // While the pointer moves, the flag at the hair-line says all this in the same frame.
  const resting = whenResting(show);
  let { position: before } = store.state.selection;
  const undo = [
    resting.stop,
    listen(pin, "click", () => store.select({ pinned: !store.state.selection.pinned })),
    store.on(["selection", "profile_data", "tokens", "settings"], (changed) => {
      const { position } = store.state.selection;
      if (changed.size === 1 && changed.has("selection") && position !== before) resting.later();
      else resting.now();
      before = position;
    }),
  ];
  show();
  return disposer([() => view.remove(), ...undo]);
}

function formatMean(value: number): string {
  return Number.isFinite(value) ? value.toFixed(1) : "–";
}
