/** One kernel: whether it can be asked, when a cell has ended in it, questions and answers. */
import type { Kernel, KernelMessage } from "@jupyterlab/services";
import { nullTranslator, type TranslationBundle } from "@jupyterlab/translation";
import { Signal, type ISignal } from "@lumino/signaling";
import { TARGET, type Progress, type Questions, type Reply } from "./protocol";

export type Readiness =
  /** Not looked at yet. */
  | "unknown"
  | "dead"
  | "not python"
  | "no package"
  | "no torch"
  /** torch is installed, and nothing has imported it: there can be no model. */
  | "not loaded"
  /** The package is there and cannot be used: `problem` says why. */
  | "broken"
  | "ready";

// Looks before it imports anything: only where torch is loaded is the package, too. Leaves no name behind.
const boot = `(lambda sys, find:
  "no package" if find("ess_widgets") is None
  else "no torch" if find("torch") is None
  else "not loaded" if "torch" not in sys.modules
  else __import__("ess_widgets.lab.service", fromlist=["_"]).register()
)(__import__("sys"), __import__("importlib.util", fromlist=["_"]).find_spec)`;

/** Milliseconds in which all messages of one restart have come. */
const RESTART = 20_000;

/** Why what lived in the kernel cannot be reached any more: `elsewhere` is a restart that this page was not told of. */
export type Loss = "restarted" | "elsewhere" | "dead" | "disconnected";

/** Who asks a slow question: hears how far it is, and may end it. */
export interface Asking {
  progress?: (progress: Progress) => void;
  signal?: AbortSignal;
}

/** What the kernel answered instead of a value. */
export class KernelError extends Error {
  constructor(
    readonly kind: string,
    message: string,
  ) {
    super(message);
  }
}

export class KernelLink {
  readiness: Readiness = "unknown";
  problem = "";
  /**
   * The kernel was restarted behind JupyterLab's back: what widgets of this page say goes to a thread of the old
   * process, until the page is loaded anew.
   */
  stranded = false;
  private readonly running = new Set<string>();
  private readonly own = new Set<string>();
  private readonly pending = new Set<(error: Error) => void>();
  private readonly _executed = new Signal<this, void>(this);
  private readonly _changed = new Signal<this, void>(this);
  private readonly _lost = new Signal<this, Loss>(this);
  private disposed = false;
  /** Never opened: while there is one, JupyterLab keeps the kernel's thread for the others. */
  private anchor: Kernel.IComm | null = null;
  private readonly comms = new Set<Kernel.IComm>();
  /** Until when what the kernel says of a restart is of the one that is known. */
  private knownUntil = 0;

  constructor(
    readonly kernel: Kernel.IKernelConnection,
    private readonly trans: TranslationBundle = nullTranslator.load(""),
  ) {
    kernel.iopubMessage.connect(this.onMessage);
    kernel.statusChanged.connect(this.onStatus);
    kernel.disposed.connect(() => this.dispose());
  }

  /** A cell has ended and none is running. */
  get executed(): ISignal<this, void> {
    return this._executed;
  }
  /** Readiness or business changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }
  /** What lived in the kernel is gone, or out of reach. */
  get lost(): ISignal<this, Loss> {
    return this._lost;
  }

  /** Whether a cell is running: the kernel's status also tells of messages that run beside cells. */
  get busy(): boolean {
    return this.running.size > 0 || (this.readiness === "unknown" && this.kernel.status === "busy");
  }

  get isDisposed(): boolean {
    return this.disposed;
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.lose("disconnected");
    Signal.clearData(this);
  }

  /** Find out what the kernel has; returns whether it can be asked. Must not be called while a cell is running. */
  async prepare(): Promise<boolean> {
    if (this.readiness === "ready") return true;
    const { language_info: language } = await this.kernel.info;
    if (language.name !== "python") return this.become("not python");
    const future = this.kernel.requestExecute(
      {
        code: "",
        silent: true,
        store_history: false,
        stop_on_error: false,
        user_expressions: { ess_widgets: boot },
      },
      true,
    );
    this.own.add(future.msg.header.msg_id);
    const reply = await this.within(future.done);
    const { content } = reply;
    if (content.status !== "ok") return this.become("unknown");
    const said = content.user_expressions["ess_widgets"] as
      { status: string; data?: Record<string, string>; ename?: string; evalue?: string } | undefined;
    if (said?.status !== "ok") {
      return this.become("broken", said ? `${said.ename ?? "Error"}: ${said.evalue ?? ""}` : "no answer");
    }
    const word = (said.data?.["text/plain"] ?? "").replace(/^'|'$/g, "");
    return this.become(word as Readiness);
  }

  /**
   * One question; rejects with a `KernelError` where the kernel refused, or when it is gone. Slow ones tell their
   * `progress`, and end when `signal` is aborted.
   */
  ask<K extends keyof Questions>(
    what: K,
    args: Questions[K][0],
    { progress, signal }: Asking = {},
  ): Promise<Questions[K][1]> {
    type Value = Questions[K][1];
    if (this.stranded) {
      return Promise.reject(
        new KernelError(
          "Stranded",
          this.trans.__("The kernel was restarted by another page: reload this one."),
        ),
      );
    }
    if (!this.kernel.handleComms) {
      return Promise.reject(
        new KernelError(
          "NoComms",
          this.trans.__("This kernel belongs to a notebook that is not open: open that notebook."),
        ),
      );
    }
    this.anchor ??= this.createComm();
    const comm = this.createComm();
    let settled = false;
    let opened = false;
    const answer = new Promise<Value>((resolve, reject) => {
      const refuse = (error: Error) => {
        settled = true;
        reject(error);
      };
      comm.onMsg = (message) => {
        const data = message.content.data as unknown as Reply<Value>;
        if ("progress" in data) {
          if (!settled) progress?.(data.progress);
          return;
        }
        if (data.ok) {
          settled = true;
          resolve(data.value);
        } else refuse(new KernelError(data.error.kind, data.error.message));
      };
      comm.onClose = () => {
        if (settled) return;
        if (this.readiness === "ready") this.become("unknown");
        refuse(
          new KernelError(
            "NoAnswer",
            this.trans.__("The kernel does not know this panel any more; refresh."),
          ),
        );
      };
      const cancel = () => {
        if (settled) return;
        refuse(new KernelError("Cancelled", this.trans.__("Stopped.")));
        if (opened && !comm.isDisposed && !this.kernel.isDisposed) comm.close();
        else comm.dispose();
      };
      if (signal?.aborted) {
        cancel();
        return;
      }
      signal?.addEventListener("abort", cancel, { once: true });
      this.ownThread(comm).then(() => {
        if (settled) return;
        opened = true;
        comm.open({ ask: what, ...args } as never);
      }, refuse);
    });
    return this.within(answer).finally(() => this.comms.delete(comm));
  }

  private createComm(): Kernel.IComm {
    const comm = this.kernel.createComm(TARGET);
    this.comms.add(comm);
    return comm;
  }

  /** Waits for the thread beside the running cells that JupyterLab gives a comm where the kernel can. */
  private async ownThread(comm: object): Promise<void> {
    const { subshellStarted } = comm as { subshellStarted?: Promise<void> };
    if (this.kernel.supportsSubshells) await subshellStarted;
  }

  /** A promise that is rejected when the kernel goes. */
  private within<T>(promise: Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.pending.add(reject);
      promise.then(resolve, reject).finally(() => this.pending.delete(reject));
    });
  }

  private lose(loss: Loss): void {
    this.running.clear();
    this.own.clear();
    this.anchor = null;
    const words = {
      restarted: this.trans.__("The kernel was restarted."),
      elsewhere: this.trans.__("The kernel was restarted."),
      dead: this.trans.__("The kernel died."),
      disconnected: this.trans.__("The kernel is gone."),
    };
    for (const reject of [...this.pending]) reject(new KernelError("KernelGone", words[loss]));
    this.pending.clear();
    // With its last comm JupyterLab forgets the thread that they had: in a new process there is none of that name.
    for (const comm of this.comms) if (!comm.isDisposed && !this.kernel.isDisposed) comm.dispose();
    this.comms.clear();
    this.stranded = loss === "elsewhere" && this.kernel.supportsSubshells;
    this.become(loss === "dead" ? "dead" : "unknown");
    this._lost.emit(loss);
  }

  private become(readiness: Readiness, problem = ""): boolean {
    if (readiness !== this.readiness || problem !== this.problem) {
      this.readiness = readiness;
      this.problem = problem;
      this._changed.emit();
    }
    return readiness === "ready";
  }

  private readonly onMessage = (_: unknown, message: KernelMessage.IIOPubMessage): void => {
    if (message.header.msg_type !== "status") return;
    const parent = message.parent_header as Partial<KernelMessage.IHeader>;
    const state = (message as KernelMessage.IStatusMsg).content.execution_state;
    if (state === "starting" || parent.msg_type === "shutdown_request") {
      // Somebody else's restart: JupyterLab says nothing of it to this page. A new kernel only starts.
      const first = state === "starting" && this.readiness === "unknown";
      if (first || Date.now() < this.knownUntil) return;
      this.knownUntil = Date.now() + RESTART;
      this.lose("elsewhere");
      return;
    }
    if (parent.msg_type !== "execute_request") return;
    const id = parent.msg_id ?? "";
    if (this.own.has(id)) {
      if (state === "idle") this.own.delete(id);
      return;
    }
    const before = this.busy;
    if (state === "busy") this.running.add(id);
    else if (state === "idle") this.running.delete(id);
    if (before !== this.busy) this._changed.emit();
    if (state === "idle" && this.running.size === 0) this._executed.emit();
  };

  private readonly onStatus = (_: unknown, status: Kernel.Status): void => {
    if (status === "restarting" || status === "autorestarting" || status === "dead") {
      this.knownUntil = Date.now() + RESTART;
      this.lose(status === "dead" ? "dead" : "restarted");
      return;
    }
    if (this.readiness === "unknown" && this.running.size === 0) {
      // Where it was busy when the page came, its first idle status is the end of a cell.
      if (status === "idle") this._executed.emit();
      else this._changed.emit();
    }
  };
}
