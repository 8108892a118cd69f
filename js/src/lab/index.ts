/** The JupyterLab extension: a panel that finds the models in the kernel, and what is opened from it. */
import {
  ILabShell,
  ILayoutRestorer,
  type JupyterFrontEnd,
  type JupyterFrontEndPlugin,
} from "@jupyterlab/application";
import { ICommandPalette, WidgetTracker } from "@jupyterlab/apputils";
import { IConsoleTracker } from "@jupyterlab/console";
import { IDefaultFileBrowser } from "@jupyterlab/filebrowser";
import { ILauncher } from "@jupyterlab/launcher";
import { INotebookTracker } from "@jupyterlab/notebook";
import { ISettingRegistry } from "@jupyterlab/settingregistry";
import { ITranslator, nullTranslator } from "@jupyterlab/translation";
import { Actions } from "./actions";
import { addCommands, ids } from "./commands";
import { PanelModel } from "./model";
import { MemoryPanel } from "./panel";
import { defaults, followSettings, PLUGIN, type Settings } from "./settings";
import type { ViewTab } from "./tab";
import { PlaceTracker } from "./tracker";
import { Views } from "./views";

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: "A panel that finds the PyTorch models in the kernel and shows what they remember.",
  autoStart: true,
  requires: [INotebookTracker],
  optional: [
    IConsoleTracker,
    ISettingRegistry,
    ILayoutRestorer,
    ICommandPalette,
    ILauncher,
    IDefaultFileBrowser,
    ITranslator,
    ILabShell,
  ],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker,
    consoles: IConsoleTracker | null,
    registry: ISettingRegistry | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    browser: IDefaultFileBrowser | null,
    translator: ITranslator | null,
    labShell: ILabShell | null,
  ) => {
    const trans = (translator ?? nullTranslator).load("ess_widgets");
    const places = new PlaceTracker(notebooks, consoles, app.shell, trans);
    const model = new PanelModel(places);
    const tabs = new WidgetTracker<ViewTab>({ namespace: "ess-widgets-views" });
    let settings: Settings = defaults;
    const views = new Views(app.shell, labShell !== null, places, tabs, () => settings, trans);
    const actions = new Actions(model, views, () => settings, trans);
    const panel = new MemoryPanel(model, actions, trans);
    app.shell.add(panel, "left", { rank: 420, type: "Memory" });
    addCommands({ app, actions, model, panel, notebooks, palette, launcher, browser, trans });
    if (restorer) {
      restorer.add(panel, panel.id);
      void restorer.restore(tabs, {
        command: ids.restore,
        args: (tab) => ({ ...tab.spec }),
        name: (tab) => tab.id,
      });
    }
    const take = (next: Settings) => {
      settings = next;
      model.autoRefresh = next.autoRefresh;
    };
    followSettings(registry, take).catch((error: unknown) => {
      console.warn("ess-widgets: settings could not be read; defaults hold.", error);
    });
  },
};

export default [plugin];
