/** Token labels as they can be drawn: untrusted text, on one line, with invisible characters visible. */

const visible: Record<string, string> = { "\n": "↵", "\r": "←", "\t": "⇥", " ": "·", "\u00a0": "·" };

/** Controls, and what reorders or hides its surroundings: bidi marks and overrides, zero-width characters, tags. */
const hidden: readonly (readonly [number, number])[] = [
  [0x00, 0x1f],
  [0x7f, 0x9f],
  [0xad, 0xad],
  [0x61c, 0x61c],
  [0x180e, 0x180e],
  [0x200b, 0x200f],
  [0x2028, 0x202e],
  [0x2060, 0x206f],
  [0xfe00, 0xfe0f],
  [0xfeff, 0xfeff],
  [0xfff9, 0xfffb],
  [0xe0000, 0xe0fff],
];
const combining = /\p{M}/u;
const pictograph = /[\p{Extended_Pictographic}\p{Emoji_Modifier}]/u;
/** Joins pictographs into one, or chooses their look: harmless where there is one before it. */
const joining = new Set(["\u200d", "\ufe0f"]);
const maximum = 200;

function showCharacter(character: string): string {
  const replacement = visible[character];
  if (replacement !== undefined) return replacement;
  const code = character.codePointAt(0)!;
  if (code >= 0xd800 && code <= 0xdfff) return "\ufffd";
  if (hidden.some(([from, to]) => code >= from && code <= to))
    return `‹${code.toString(16).toUpperCase().padStart(2, "0")}›`;
  return character;
}

/** One line of harmless text for any label; long ones are cut at 200 characters. */
export function displayLabel(label: string): string {
  let text = "";
  let marks = 0;
  let count = 0;
  let before = "";
  for (const character of label) {
    if (++count > maximum) return `${text}…`;
    if (combining.test(character) && !joining.has(character)) {
      // A mark with nothing to stand on, or a heap of them, would draw over its neighbours.
      if (++marks > 2) continue;
      if (text === "") text = "\u25cc";
    } else marks = 0;
    const joins = joining.has(character) && (pictograph.test(before) || joining.has(before));
    text += joins ? character : showCharacter(character);
    before = character;
  }
  return text === "" ? "∅" : text;
}

/** A label for an axis: of special tokens such as `<|endoftext|>` the name alone, as their colour says what they are. */
export function axisLabel(label: string, mark: number): string {
  const text = displayLabel(label);
  const name = mark > 1 ? /^(?:<\|?|\[)([\p{L}\p{N}_ ·-]+)(?:\|?>|\])$/u.exec(text)?.[1] : undefined;
  return name ?? text;
}

/** The longest beginning of `text` that is at most `width` wide, with an ellipsis where it is cut. */
export function fitText(text: string, width: number, measure: (text: string) => number): string {
  if (measure(text) <= width) return text;
  const characters = [...text];
  let low = 0;
  let high = characters.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (measure(`${characters.slice(0, middle).join("")}…`) <= width) low = middle;
    else high = middle - 1;
  }
  return low === 0 ? "…" : `${characters.slice(0, low).join("")}…`;
}
