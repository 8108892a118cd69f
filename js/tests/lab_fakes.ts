/** Kernels, notebooks, consoles and models for the tests of the side panel. */
import type { IConsoleTracker } from "@jupyterlab/console";
import type { INotebookTracker } from "@jupyterlab/notebook";
import type { Kernel, KernelMessage } from "@jupyterlab/services";
import { nullTranslator } from "@jupyterlab/translation";
import { Signal } from "@lumino/signaling";
import { Widget } from "@lumino/widgets";
import type { Listing, Mixer, Model, Questions, ScannedLayer } from "../src/lab/protocol";

export const trans = nullTranslator.load("ess_widgets");

export class FakeComm {
  onMsg: (message: KernelMessage.ICommMsgMsg) => void = () => undefined;
  onClose: (message: KernelMessage.ICommCloseMsg) => void = () => undefined;
  subshellStarted?: Promise<void>;
  /** What it was opened with; null before. */
  question: Record<string, unknown> | null = null;
  isDisposed = false;
  /** By the page: the kernel is told. */
  closed = false;

  constructor(
    readonly target: string,
    private readonly opened: (comm: FakeComm) => void,
  ) {}

  open(data: Record<string, unknown>): void {
    this.question = data;
    this.opened(this);
  }
  /** By the page, which JupyterLab tells the page itself, too. */
  close(): void {
    this.closed = true;
    this.end();
  }
  dispose(): void {
    this.isDisposed = true;
  }
  send(data: unknown): void {
    this.onMsg({ content: { data } } as never);
  }
  answer(value: unknown): void {
    this.send({ ok: true, value });
    this.end();
  }
  refuse(kind: string, message: string): void {
    this.send({ ok: false, error: { kind, message } });
    this.end();
  }
  /** By the kernel, or in any other way. */
  end(): void {
    this.isDisposed = true;
    this.onClose({} as never);
  }
}

type Handlers = { [K in keyof Questions]?: (args: Questions[K][0]) => Questions[K][1] };

export class FakeKernel {
  status: Kernel.Status = "idle";
  handleComms = true;
  supportsSubshells = false;
  isDisposed = false;
  language = "python";
  /** What each expression of an execution evaluates to, as the kernel writes it. */
  value: unknown = { status: "ok", data: { "text/plain": "'ready'" } };
  replyStatus = "ok";
  executed: Record<string, unknown>[] = [];
  comms: FakeComm[] = [];
  /** Questions that are answered at once; an error refuses them. All others wait for the test. */
  handlers: Handlers = {};
  subshell?: Promise<void>;

  readonly iopubMessage = new Signal<this, KernelMessage.IIOPubMessage>(this);
  readonly statusChanged = new Signal<this, Kernel.Status>(this);
  readonly disposed = new Signal<this, void>(this);

  constructor(readonly id = "kernel") {}

  get info(): Promise<unknown> {
    return Promise.resolve({ language_info: { name: this.language } });
  }

  get connection(): Kernel.IKernelConnection {
    return this as unknown as Kernel.IKernelConnection;
  }

  createComm(target: string): FakeComm {
    const comm = new FakeComm(target, (one) => void this.hear(one));
    if (this.subshell) comm.subshellStarted = this.subshell;
    this.comms.push(comm);
    return comm;
  }

  requestExecute(content: Record<string, unknown>): unknown {
    this.executed.push(content);
    const id = `execution ${this.executed.length}`;
    return { msg: { header: { msg_id: id } }, done: this.execute(id) };
  }

  /** What was asked, oldest first. */
  get asked(): unknown[] {
    return this.comms.flatMap((comm) => (comm.question ? [comm.question["ask"]] : []));
  }

  /** The comm of the newest question of a kind. */
  question(ask: keyof Questions): FakeComm {
    const found = [...this.comms].reverse().find((comm) => comm.question?.["ask"] === ask);
    if (!found) throw new Error(`${ask} was not asked`);
    return found;
  }

  begin(cell: string): void {
    this.tell(cell, "busy");
  }
  end(cell: string): void {
    this.tell(cell, "idle");
  }

  tell(id: string, state: string, parent = "execute_request", type = "status"): void {
    this.iopubMessage.emit({
      header: { msg_type: type },
      parent_header: { msg_id: id, msg_type: parent },
      content: { execution_state: state },
    } as never);
  }

  become(status: Kernel.Status): void {
    this.status = status;
    this.statusChanged.emit(status);
  }

  dispose(): void {
    this.isDisposed = true;
    this.disposed.emit();
  }

  private async execute(id: string): Promise<unknown> {
    await Promise.resolve();
    this.tell(id, "busy");
    this.tell(id, "idle");
    const found = this.value === undefined ? {} : { ess_widgets: this.value };
    return { content: { status: this.replyStatus, user_expressions: found } };
  }

  private async hear(comm: FakeComm): Promise<void> {
    const { ask, ...args } = comm.question as { ask: keyof Questions };
    const handler = this.handlers[ask] as ((args: unknown) => unknown) | undefined;
    if (!handler) return;
    await Promise.resolve();
    try {
      comm.answer(handler(args));
    } catch (error) {
      comm.refuse("ValueError", (error as Error).message);
    }
  }
}

export class FakeSession {
  readonly kernelChanged = new Signal<this, unknown>(this);
  readonly propertyChanged = new Signal<this, unknown>(this);
  session: { kernel: FakeKernel | null } | null;

  constructor(
    kernel: FakeKernel | null,
    readonly path: string,
    readonly name: string,
  ) {
    this.session = { kernel };
  }

  change(kernel: FakeKernel | null): void {
    this.session = { kernel };
    this.kernelChanged.emit(undefined);
  }
}

/** Draws a widget as its number. */
export class FakeRendermime {
  canDraw = true;
  drawn: unknown[] = [];

  preferredMimeType(): string | undefined {
    return this.canDraw ? "application/vnd.jupyter.widget-view+json" : undefined;
  }
  createRenderer(type: string): Widget {
    const renderModel = ({ data }: { data: Record<string, { model_id: string }> }) => {
      this.drawn.push(data[type]?.model_id);
      return Promise.resolve();
    };
    return Object.assign(new Widget(), { renderModel });
  }
}

export class FakeNotebook extends Widget {
  readonly context: { path: string; pathChanged: Signal<unknown, string> };
  readonly sessionContext: FakeSession;
  readonly content = { rendermime: new FakeRendermime() };

  constructor(path: string, kernel: FakeKernel | null) {
    super();
    this.context = { path, pathChanged: new Signal<unknown, string>(this) };
    this.sessionContext = new FakeSession(kernel, path, path);
  }

  rename(path: string): void {
    this.context.path = path;
    this.context.pathChanged.emit(path);
  }
}

export class FakeConsole extends Widget {
  readonly sessionContext: FakeSession;
  /** What was put in the prompt. */
  readonly typed: string[] = [];
  readonly console = {
    rendermime: new FakeRendermime(),
    promptCell: { model: { sharedModel: { setSource: (code: string) => this.typed.push(code) } } },
  };

  constructor(name: string, kernel: FakeKernel | null) {
    super();
    this.sessionContext = new FakeSession(kernel, `console-${name}`, name);
  }
}

export class FakeTracker<T extends Widget> {
  readonly currentChanged = new Signal<this, T | null>(this);
  readonly all: T[] = [];
  currentWidget: T | null = null;

  constructor(...all: T[]) {
    for (const one of all) this.show(one);
  }

  show(widget: T | null): void {
    if (widget && !this.all.includes(widget)) this.all.push(widget);
    this.currentWidget = widget;
    this.currentChanged.emit(widget);
  }
  find(test: (widget: T) => boolean): T | undefined {
    return this.all.find((one) => !one.isDisposed && test(one));
  }
}

export function asNotebooks(tracker: FakeTracker<FakeNotebook>): INotebookTracker {
  return tracker as unknown as INotebookTracker;
}
export function asConsoles(tracker: FakeTracker<FakeConsole>): IConsoleTracker {
  return tracker as unknown as IConsoleTracker;
}

export function aModel(patch: Partial<Model> = {}): Model {
  return {
    name: "model",
    id: "1",
    kind: "GLA",
    module: "ess_widgets.models",
    parameters: 1234,
    complete: true,
    device: "cpu",
    dtype: "float32",
    training: false,
    language: true,
    aliases: [],
    mixers: null,
    ...patch,
  };
}

export function aMixer(patch: Partial<Mixer> = {}): Mixer {
  return {
    path: "layers.0",
    kind: "Attention",
    family: "softmax attention",
    group: "head",
    count: 2,
    state: null,
    grows: true,
    ...patch,
  };
}

export function aScannedLayer(patch: Partial<ScannedLayer> = {}): ScannedLayer {
  return {
    path: "layers.0",
    family: "softmax attention",
    group: "head",
    count: 2,
    state: null,
    grows: true,
    residual: 2e-7,
    limit: 1e-5,
    verified: true,
    ...patch,
  };
}

export function aListing(...models: Model[]): Listing {
  return { models, tokenizers: [], inputs: [], omitted: 0, seconds: 0.01 };
}
