/** Commands of the palette, the launcher and the context menu. */
import type { JupyterFrontEnd } from "@jupyterlab/application";
import { Notification, type ICommandPalette } from "@jupyterlab/apputils";
import type { IDefaultFileBrowser } from "@jupyterlab/filebrowser";
import type { ILauncher } from "@jupyterlab/launcher";
import type { INotebookTracker } from "@jupyterlab/notebook";
import type { TranslationBundle } from "@jupyterlab/translation";
import type { Actions } from "./actions";
import { PointerMemory } from "./context_menu";
import { memoryIcon } from "./icons";
import type { PanelModel } from "./model";
import type { MemoryPanel } from "./panel";
import { tourIn } from "./tour";
import type { ViewSpec } from "./tab";

export const ids = {
  show: "ess-widgets:show",
  refresh: "ess-widgets:refresh",
  explore: "ess-widgets:explore",
  scan: "ess-widgets:scan",
  diagnose: "ess-widgets:diagnose",
  code: "ess-widgets:insert-code",
  here: "ess-widgets:explore-here",
  tour: "ess-widgets:tour",
  restore: "ess-widgets:restore-view",
} as const;

interface Parts {
  app: JupyterFrontEnd;
  actions: Actions;
  model: PanelModel;
  panel: MemoryPanel;
  notebooks: INotebookTracker;
  palette: ICommandPalette | null;
  launcher: ILauncher | null;
  browser: IDefaultFileBrowser | null;
  trans: TranslationBundle;
}

export function addCommands(parts: Parts): void {
  const { app, actions, model, panel, notebooks, palette, launcher, browser, trans } = parts;
  const { commands } = app;
  const category = trans.__("Memory (ESS)");
  const onModel = (id: string, label: string, run: (name?: string) => Promise<void>) => {
    commands.addCommand(id, {
      label,
      isEnabled: () => model.place !== null,
      execute: (args) => run(typeof args["name"] === "string" ? args["name"] : undefined),
      describedBy: { args: { type: "object", properties: { name: { type: "string" } } } },
    });
    palette?.addItem({ command: id, category });
  };

  commands.addCommand(ids.show, {
    label: trans.__("Show the Memory Panel"),
    icon: memoryIcon,
    // In Notebook 7.4 this would fold a panel that is open.
    execute: () => {
      if (panel.isVisible) panel.activate();
      else app.shell.activateById(panel.id);
    },
  });
  palette?.addItem({ command: ids.show, category });

  commands.addCommand(ids.refresh, {
    label: trans.__("Look for Models in the Kernel"),
    isEnabled: () => model.link !== null,
    execute: () => model.refresh(),
  });
  palette?.addItem({ command: ids.refresh, category });

  onModel(ids.explore, trans.__("Explore the Memory of a Model…"), async (name) => {
    const found = await actions.pick(name);
    if (found) actions.explore(found);
  });
  onModel(ids.scan, trans.__("Scan a Model's Layers…"), async (name) => {
    const found = await actions.pick(name);
    if (found) actions.scan(found);
  });
  onModel(ids.diagnose, trans.__("Diagnose a Model…"), async (name) => {
    const found = await actions.pick(name);
    if (found) actions.diagnose(found);
  });
  onModel(ids.code, trans.__("Insert the Code that Explores a Model…"), async (name) => {
    const found = await actions.pick(name);
    if (found) actions.code(found);
  });

  const pointer = new PointerMemory();
  const pointed = () => pointer.name(notebooks.currentWidget);
  commands.addCommand(ids.here, {
    label: () => trans.__("Explore memory of `%1`", pointed() ?? ""),
    icon: memoryIcon,
    isVisible: () => {
      const name = pointed();
      if (name === null) return false;
      // Where models are not known yet, any name may be one.
      return !model.memory?.listing || model.memory.stale || model.find(name) !== null;
    },
    execute: async () => {
      const name = pointed();
      const found = name === null ? null : await actions.pick(name);
      if (found) actions.explore(found);
    },
  });

  commands.addCommand(ids.tour, {
    label: (args) =>
      args["isLauncher"] ? trans.__("Memory Tour") : trans.__("Open the Tour of ess_widgets"),
    caption: trans.__("What a sequence model remembers: a notebook to walk through"),
    icon: memoryIcon,
    execute: async (args) => {
      const cwd = typeof args["cwd"] === "string" ? args["cwd"] : (browser?.model.path ?? "");
      try {
        await commands.execute("docmanager:open", { path: await tourIn(app, cwd), factory: "Notebook" });
      } catch (error) {
        Notification.error(trans.__("The tour could not be opened: %1", String(error)), { autoClose: 8000 });
      }
    },
  });
  palette?.addItem({ command: ids.tour, category });
  launcher?.add({ command: ids.tour, category: trans.__("Other"), rank: 10, args: { isLauncher: true } });

  commands.addCommand(ids.restore, {
    label: trans.__("Show an Explorer Again"),
    isVisible: () => false,
    execute: (args) => {
      const spec = args as unknown as ViewSpec;
      const find = async () => {
        await app.restored;
        const place = model.places.find(spec.path);
        await place?.session.ready;
        return place;
      };
      // Not awaited: the page's layout is not restored before this command is done.
      void actions.views.restore(spec, find());
    },
  });
}
