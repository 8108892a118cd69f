/** The short explanation behind the "?" button. */
import { disposer, el, listen, setHidden } from "../dom";

const paragraphs: [string, string][] = [
  [
    "Why a curve?",
    "At each position i the past must reach the future through a state. Hᵢ is that part of the operator: inputs before i, outputs from i on. Its rank is the smallest state that could do the job, so every position has its own ESS.",
  ],
  [
    "Why does it fall at the end?",
    "Hᵢ has i columns and L − i rows. Few outputs are left near the end, so few are its singular values, whatever the model does. The shaded ceiling shows this; compare with it.",
  ],
  ["TSS", "is the state-size that the architecture provides; for softmax attention, every past input."],
  [
    "Tolerance or entropy?",
    "Tolerance counts the singular values above τ. Entropy weighs how evenly they are spread and ignores their scale.",
  ],
];

const keys: [string, string][] = [
  ["← →", "position (⇧ ten, Home, End)"],
  ["↑ ↓", "head"],
  ["PgUp PgDn", "layer"],
  ["Space", "pin the position"],
  ["Esc", "let go"],
];

export interface Help {
  toggle: () => void;
  dispose: () => void;
}

/** Adds the button to `bar` and the explanation to `root`. */
export function help(bar: HTMLElement, root: HTMLElement): Help {
  const button = el(
    "button",
    "ess-button ess-round",
    { type: "button", "aria-expanded": "false", "aria-label": "What is shown here", "data-part": "help" },
    "?",
  );
  const close = el("button", "ess-button ess-round", { type: "button", "aria-label": "Close" }, "×");
  const list = el("dl", "ess-keys");
  for (const [key, meaning] of keys) list.append(el("dt", "", {}, key), el("dd", "", {}, meaning));
  const card = el(
    "div",
    "ess-help",
    { role: "dialog", "aria-label": "What is shown here", tabindex: -1 },
    el("div", "ess-line", {}, el("h3", "", {}, "Effective state-size"), close),
    ...paragraphs.map(([question, answer]) => el("p", "", {}, el("b", "", {}, question), ` ${answer}`)),
    list,
  );
  bar.append(button);
  root.append(card);

  const show = (open: boolean) => {
    setHidden(card, !open);
    button.setAttribute("aria-expanded", String(open));
    if (open) card.focus({ preventScroll: true });
    else if (card.contains(document.activeElement)) button.focus({ preventScroll: true });
  };
  const toggle = () => show(card.hidden);
  show(false);
  const undo = [
    listen(button, "click", toggle),
    listen(close, "click", () => show(false)),
    listen(card, "keydown", (event) => {
      if (event.key !== "Escape" && event.key !== "?") return;
      event.preventDefault();
      event.stopPropagation();
      show(false);
    }),
    listen(document, "pointerdown", (event) => {
      const path = event.composedPath();
      if (!card.hidden && !path.includes(card) && !path.includes(button)) show(false);
    }),
  ];
  return { toggle, dispose: disposer([() => button.remove(), () => card.remove(), ...undo]) };
}
