/** The variable under the pointer when a menu opens in a cell. */
import type { CodeEditor } from "@jupyterlab/codeeditor";
import type { NotebookPanel } from "@jupyterlab/notebook";

const name = /[\p{L}_][\p{L}\p{N}_]*(?:\.[\p{L}_][\p{L}\p{N}_]*)*/gu;
const keywords = new Set(
  (
    "False None True and as assert async await break class continue def del elif else except finally for from global " +
    "if import in is lambda nonlocal not or pass raise return try while with yield"
  ).split(" "),
);

/** The name, dots included up to the part that is pointed at, which holds the column of a line; null where there is none. */
export function nameAt(line: string, column: number): string | null {
  for (const match of line.matchAll(name)) {
    const start = match.index;
    if (column < start || column > start + match[0].length) continue;
    const rest = line.slice(column, start + match[0].length).search(/\./u);
    const found = rest < 0 ? match[0] : line.slice(start, column + rest);
    return keywords.has(found) ? null : found;
  }
  return null;
}

/** Remembers where the last menu was asked for: a menu tells its commands no more than an element. */
export class PointerMemory {
  private at: { x: number; y: number; target: Node } | null = null;

  constructor() {
    const listener = (event: MouseEvent) => {
      this.at = { x: event.clientX, y: event.clientY, target: event.target as Node };
    };
    document.addEventListener("contextmenu", listener, { capture: true });
  }

  /** The name in a code cell of `panel` that the menu was opened on. */
  name(panel: NotebookPanel | null): string | null {
    const { at } = this;
    if (!at || !panel) return null;
    const cell = panel.content.widgets.find(
      (one) => one.model.type === "code" && one.node.contains(at.target),
    );
    const editor: CodeEditor.IEditor | null = cell?.editor ?? null;
    const where = editor?.getPositionForCoordinate({
      left: at.x,
      top: at.y,
      right: at.x,
      bottom: at.y,
      x: at.x,
      y: at.y,
      width: 0,
      height: 0,
    } as CodeEditor.ICoordinate);
    if (!editor || !where) return null;
    const line = editor.getLine(where.line);
    return line === undefined ? null : nameAt(line, where.column);
  }
}
