/** Puts code where the user can run it: a new cell below the active one, or a console's prompt. */
import { NotebookActions } from "@jupyterlab/notebook";
import type { Place } from "./tracker";

export function insertCode(place: Place, code: string): boolean {
  if (place.notebook) {
    const { content } = place.notebook;
    if (place.notebook.isDisposed || !content.model) return false;
    NotebookActions.insertBelow(content);
    NotebookActions.changeCellType(content, "code");
    content.activeCell?.model.sharedModel.setSource(code);
    content.mode = "edit";
    return true;
  }
  const prompt = place.console?.console.promptCell;
  if (!prompt) return false;
  prompt.model.sharedModel.setSource(code);
  return true;
}
