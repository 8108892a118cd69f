/** Where code is put: JupyterLab's own actions on a notebook of a few lines. */
import { beforeEach, expect, test } from "vitest";
import { insertCode } from "../src/lab/insert_code";
import type { Place } from "../src/lab/tracker";
import { FakeConsole, FakeKernel } from "./lab_fakes";

interface Cell {
  cell_type: string;
  source: string;
  metadata: object;
}

/** As much of a notebook as is needed to insert a cell and to change its type. */
class FakeContent {
  cells: Cell[] = ["first", "second"].map((source) => ({ cell_type: "code", source, metadata: {} }));
  activeCellIndex = 0;
  mode = "command";
  notebookConfig = { defaultCell: "code" };
  readonly node = document.createElement("div");
  readonly model = {
    sharedModel: {
      insertCell: (at: number, cell: Cell) => this.cells.splice(at, 0, { ...cell }),
      deleteCell: (at: number) => this.cells.splice(at, 1),
      transact: (work: () => void) => work(),
    },
  };

  get widgets() {
    return this.cells.map((cell) => ({
      cell,
      model: {
        type: cell.cell_type,
        toJSON: () => cell,
        getMetadata: () => undefined,
        sharedModel: { setSource: (source: string) => (cell.source = source) },
      },
      outputArea: { pendingInput: false },
    }));
  }
  get activeCell() {
    return this.widgets[this.activeCellIndex] ?? null;
  }
  isSelectedOrActive({ cell }: { cell: Cell }): boolean {
    return cell === this.cells[this.activeCellIndex];
  }
  deselectAll(): void {}
  activate(): void {}
  scrollToItem(): Promise<void> {
    return Promise.resolve();
  }
}

let content: FakeContent;
const insert = (code: string) => insertCode({ notebook: { content } } as unknown as Place, code);
const cells = () => content.cells.map((cell) => [cell.cell_type, cell.source]);

beforeEach(() => {
  content = new FakeContent();
});

test("a notebook gets a new cell below the active one, ready to be changed", () => {
  expect(insert("a\nb")).toBe(true);
  expect(cells()).toEqual([
    ["code", "first"],
    ["code", "a\nb"],
    ["code", "second"],
  ]);
  expect(content.activeCellIndex).toBe(1);
  expect(content.mode).toBe("edit");
});

test("it is a code cell where new cells are text", () => {
  content.notebookConfig.defaultCell = "markdown";
  content.activeCellIndex = 1;
  insert("a");
  expect(cells().at(-1)).toEqual(["code", "a"]);
});

test("a notebook that is closed, or not read yet, gets nothing", () => {
  for (const notebook of [{ content, isDisposed: true }, { content: { model: null } }]) {
    expect(insertCode({ notebook } as unknown as Place, "a")).toBe(false);
  }
  expect(cells()).toHaveLength(2);
});

test("a console gets it in its prompt, where it has one", () => {
  const panel = new FakeConsole("Console 1", new FakeKernel());
  expect(insertCode({ notebook: null, console: panel } as unknown as Place, "a")).toBe(true);
  expect(panel.typed).toEqual(["a"]);
  const starting = { notebook: null, console: { console: { promptCell: null } } };
  expect(insertCode(starting as unknown as Place, "a")).toBe(false);
});
