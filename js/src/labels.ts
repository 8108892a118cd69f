/** Token labels as they can be drawn: untrusted text, on one line, with invisible characters visible. */

const visible: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "⇥", " ": "·", "\u00a0": "·" };

/** Controls, and what reorders or hides its surroundings: bidi marks and overrides, zero-width characters. */
const hidden =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb]/u;
const combining = /\p{M}/u;
const maximum = 200;

function showCharacter(character: string): string {
  const replacement = visible[character];
  if (replacement !== undefined) return replacement;
  const code = character.codePointAt(0)!;
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "␡";
  if (code >= 0xd800 && code <= 0xdfff) return "\ufffd";
  if (hidden.test(character)) return `‹${code.toString(16).toUpperCase().padStart(4, "0")}›`;
  return character;
}

/** One line of harmless text for any label; long ones are cut at 200 characters. */
export function displayLabel(label: string): string {
  let text = "";
  let marks = 0;
  let count = 0;
  for (const character of label) {
    if (++count > maximum) return `${text}…`;
    if (combining.test(character)) {
      // A mark with nothing to stand on, or a heap of them, would draw over its neighbours.
      if (++marks > 2) continue;
      if (text === "") text = "\u25cc";
    } else marks = 0;
    text += showCharacter(character);
  }
  return text === "" ? "∅" : text;
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
