/** What is under the hair-line and in the span, in numbers. */
import { disposer, el, listen, setText } from "../dom";
import { currentProfile, lengthOf, spanFacts } from "../facts";
import { formatEss, formatTolerance } from "../format";
import type { ProfileData, State } from "../state";
import type { Store } from "../store";
import { counted, quoted, ratio } from "../wording";

/** "tolerance, τ = 10⁻²": which ESS the numbers are. */
export function measureName({ kind, tol, relative }: ProfileData): string {
  return kind === "entropy" ? "entropy" : `σ > ${formatTolerance(tol)}${relative ? "·σ₁" : ""}`;
}

function labelAt(state: State, position: number): string {
  const label = state.tokens?.indexed ? undefined : state.tokens?.labels[position];
  return label === undefined ? "" : quoted(label, 18);
}

export function readout(root: HTMLElement, store: Store): () => void {
  const value = el("span", "ess-big");
  const limit = el("span", "ess-of");
  const which = el("span", "ess-which");
  const place = el("span", "ess-clip");
  const pin = el(
    "button",
    "ess-button",
    { type: "button", "aria-pressed": "false", "data-part": "pin" },
    "pin",
  );
  const sides = el("div", "ess-muted");
  const span = el("div", "ess-span-facts");
  const view = el(
    "div",
    "ess-position",
    { "data-part": "readout" },
    el("div", "ess-line", {}, place, pin),
    el("div", "ess-line ess-figure", {}, value, limit, which),
    sides,
    span,
  );
  root.append(view);

  const show = () => {
    const { state } = store;
    const { position, pinned, head, span: range } = state.selection;
    const profile = currentProfile(state);
    const length = lengthOf(state);
    const at = position !== null && position < length ? position : null;
    pin.disabled = at === null;
    setText(pin, pinned ? "unpin" : "pin");
    pin.setAttribute("aria-pressed", String(pinned));
    pin.title = pinned
      ? "Let the position follow the pointer (Escape)"
      : "Keep this position (Space, or a click)";
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
    limit.title = "The ceiling: what the state-size and the shape of Hᵢ allow here";
    setText(which, profile ? `ESS, ${measureName(profile)}` : "ESS");
    span.classList.toggle("ess-none", !range || !profile);
    if (!range || !profile) setText(span, "Drag across positions to select a span.");
    else {
      const facts = spanFacts(profile, head, range, state.settings.against);
      const against = state.settings.against === "ceiling" ? "ceiling" : "TSS";
      const last = Math.min(range[1], length) - 1;
      setText(
        span,
        `Span ${range[0]}–${last}: ESS ${formatMean(facts.mean)} ± ${formatMean(facts.deviation)}, ` +
          `${ratio(facts.utilisation)} of ${against}`,
      );
    }
  };

  const undo = [
    listen(pin, "click", () => store.select({ pinned: !store.state.selection.pinned })),
    store.on(["selection", "profile_data", "tokens", "settings"], show),
  ];
  show();
  return disposer([() => view.remove(), ...undo]);
}

function formatMean(value: number): string {
  return Number.isFinite(value) ? value.toFixed(1) : "–";
}
