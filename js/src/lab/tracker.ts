/** Follows the notebook or console that is in front: where its kernel is, and what draws its widgets. */
import type { JupyterFrontEnd } from "@jupyterlab/application";
import type { ISessionContext } from "@jupyterlab/apputils";
import type { ConsolePanel, IConsoleTracker } from "@jupyterlab/console";
import type { INotebookTracker, NotebookPanel } from "@jupyterlab/notebook";
import type { IRenderMimeRegistry } from "@jupyterlab/rendermime";
import { nullTranslator, type TranslationBundle } from "@jupyterlab/translation";
import { Signal, type ISignal } from "@lumino/signaling";
import type { Widget } from "@lumino/widgets";
import { KernelLink } from "./kernel";

export interface Place {
  widget: Widget;
  /** Where it is now: a notebook may be renamed. */
  readonly path: string;
  readonly name: string;
  readonly renamed: ISignal<unknown, unknown>;
  session: ISessionContext;
  rendermime: IRenderMimeRegistry;
  notebook: NotebookPanel | null;
  console: ConsolePanel | null;
}

export class PlaceTracker {
  private readonly links = new WeakMap<object, KernelLink>();
  private readonly _changed = new Signal<this, void>(this);
  private place: Place | null = null;

  constructor(
    private readonly notebooks: INotebookTracker,
    private readonly consoles: IConsoleTracker | null,
    shell: Pick<JupyterFrontEnd.IShell, "currentChanged" | "currentWidget"> | null = null,
    private readonly trans: TranslationBundle = nullTranslator.load(""),
  ) {
    // Each tracker tells of its own kind alone: of going back to its last one it says nothing.
    shell?.currentChanged?.connect(() => {
      const place = this.placeOf(shell.currentWidget);
      if (place) this.follow(place);
    });
    notebooks.currentChanged.connect((_, panel) => this.follow(panel ? notebookPlace(panel) : this.other()));
    consoles?.currentChanged.connect((_, panel) => this.follow(panel ? consolePlace(panel) : this.other()));
    this.follow(this.other());
  }

  /** Another place is in front, or its kernel or its name is another one. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get current(): Place | null {
    return this.place?.widget.isDisposed ? null : this.place;
  }

  /** The kernel of a place; null while there is none. */
  link(place: Place | null): KernelLink | null {
    const kernel = this.home(place)?.session.session?.kernel;
    if (!kernel || kernel.isDisposed) return null;
    let link = this.links.get(kernel);
    if (!link || link.isDisposed) this.links.set(kernel, (link = new KernelLink(kernel, this.trans)));
    return link;
  }

  /** Of the places that share a kernel, the one that JupyterLab lets talk to widgets: a console of a notebook may not. */
  home(place: Place | null): Place | null {
    const kernel = place?.session.session?.kernel;
    if (!kernel || kernel.handleComms) return place;
    const talks = ({ sessionContext }: { sessionContext: ISessionContext }) => {
      const other = sessionContext.session?.kernel;
      return other?.id === kernel.id && other.handleComms;
    };
    const panel = this.notebooks.find(talks);
    if (panel) return notebookPlace(panel);
    const console = this.consoles?.find(talks);
    return console ? consolePlace(console) : place;
  }

  /** An open notebook or console by its path. */
  find(path: string): Place | null {
    const panel = this.notebooks.find((one) => one.context.path === path);
    if (panel) return notebookPlace(panel);
    const console = this.consoles?.find((one) => one.sessionContext.path === path);
    return console ? consolePlace(console) : null;
  }

  private placeOf(widget: Widget | null): Place | null {
    const panel = this.notebooks.find((one) => one === widget);
    if (panel) return notebookPlace(panel);
    const console = this.consoles?.find((one) => one === widget);
    return console ? consolePlace(console) : null;
  }

  private other(): Place | null {
    const { currentWidget: panel } = this.notebooks;
    if (panel) return notebookPlace(panel);
    const console = this.consoles?.currentWidget;
    return console ? consolePlace(console) : null;
  }

  private follow(place: Place | null): void {
    if (place?.widget === this.place?.widget) return;
    this.place?.session.kernelChanged.disconnect(this.onChange);
    this.place?.renamed.disconnect(this.onChange);
    this.place?.widget.disposed.disconnect(this.onClosed);
    this.place = place;
    place?.session.kernelChanged.connect(this.onChange);
    place?.renamed.connect(this.onChange);
    place?.widget.disposed.connect(this.onClosed);
    this._changed.emit();
  }

  private readonly onChange = (): void => this._changed.emit();

  private readonly onClosed = (widget: Widget): void => {
    if (this.place?.widget !== widget) return;
    this.place = null;
    const next = this.other();
    if (next && next.widget !== widget && !next.widget.isDisposed) this.follow(next);
    else this._changed.emit();
  };
}

export function notebookPlace(panel: NotebookPanel): Place {
  const { context } = panel;
  return {
    widget: panel,
    get path() {
      return context.path;
    },
    get name() {
      return context.path.split("/").pop() ?? context.path;
    },
    renamed: context.pathChanged,
    session: panel.sessionContext,
    rendermime: panel.content.rendermime,
    notebook: panel,
    console: null,
  };
}

function consolePlace(panel: ConsolePanel): Place {
  const { sessionContext } = panel;
  return {
    widget: panel,
    get path() {
      return sessionContext.path;
    },
    get name() {
      return sessionContext.name;
    },
    renamed: sessionContext.propertyChanged,
    session: sessionContext,
    rendermime: panel.console.rendermime,
    notebook: null,
    console: panel,
  };
}
