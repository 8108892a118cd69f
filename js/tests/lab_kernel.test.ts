/** One kernel: can it be asked, is a cell running, what does it answer. */
import { beforeEach, describe, expect, it, test, vi } from "vitest";
import { KernelLink, type Asking, type Loss } from "../src/lab/kernel";
import { defaults } from "../src/lab/settings";
import { aListing, FakeKernel } from "./lab_fakes";

let kernel: FakeKernel;
let link: KernelLink;

beforeEach(() => {
  kernel = new FakeKernel();
  link = new KernelLink(kernel.connection);
});

/** Waits for what is queued; answers of the fakes come that way. */
const settle = () => new Promise((resolve) => setTimeout(resolve));

function counted(signal: KernelLink["executed"]): { times: number } {
  const count = { times: 0 };
  signal.connect(() => count.times++);
  return count;
}

describe("looking at what the kernel has", () => {
  test.each([
    ["'ready'", "ready"],
    ["'no package'", "no package"],
    ["'no torch'", "no torch"],
    ["'not loaded'", "not loaded"],
  ] as const)("%s", async (said, readiness) => {
    kernel.value = { status: "ok", data: { "text/plain": said } };
    expect(await link.prepare()).toBe(readiness === "ready");
    expect(link.readiness).toBe(readiness);
    expect(link.problem).toBe("");
  });

  it("runs nothing in a kernel of another language", async () => {
    kernel.language = "R";
    expect(await link.prepare()).toBe(false);
    expect(link.readiness).toBe("not python");
    expect(kernel.executed).toEqual([]);
  });

  it("says why the package cannot be used", async () => {
    kernel.value = { status: "error", ename: "ImportError", evalue: "numpy is too old" };
    expect(await link.prepare()).toBe(false);
    expect(link.readiness).toBe("broken");
    expect(link.problem).toBe("ImportError: numpy is too old");
    kernel.value = undefined;
    await link.prepare();
    expect(link.problem).toBe("no answer");
  });

  it("knows nothing where the request itself failed", async () => {
    kernel.value = { status: "ok", data: { "text/plain": "'no torch'" } };
    await link.prepare();
    kernel.replyStatus = "aborted";
    expect(await link.prepare()).toBe(false);
    expect(link.readiness).toBe("unknown");
  });

  it("looks again until it is ready, and then no more", async () => {
    kernel.value = { status: "ok", data: { "text/plain": "'no package'" } };
    await link.prepare();
    kernel.value = { status: "ok", data: { "text/plain": "'ready'" } };
    expect(await link.prepare()).toBe(true);
    expect(await link.prepare()).toBe(true);
    expect(kernel.executed).toHaveLength(2);
  });

  it("leaves no trace in the history", async () => {
    await link.prepare();
    expect(kernel.executed[0]).toMatchObject({ code: "", silent: true, store_history: false });
  });

  it("tells of changes only", async () => {
    const changed = counted(link.changed);
    kernel.value = { status: "ok", data: { "text/plain": "'no package'" } };
    await link.prepare();
    await link.prepare();
    expect(changed.times).toBe(1);
  });
});

describe("cells", () => {
  it("is busy while any runs, and tells when the last has ended", () => {
    const executed = counted(link.executed);
    const changed = counted(link.changed);
    kernel.begin("a");
    kernel.begin("b");
    kernel.end("a");
    expect(link.busy).toBe(true);
    expect(executed.times).toBe(0);
    kernel.end("b");
    expect(link.busy).toBe(false);
    expect(executed.times).toBe(1);
    expect(changed.times).toBe(2);
  });

  it("does not take its own request for a cell", async () => {
    const executed = counted(link.executed);
    const busy: boolean[] = [];
    kernel.iopubMessage.connect(() => busy.push(link.busy));
    await link.prepare();
    expect(busy).toEqual([false, false]);
    expect(executed.times).toBe(0);
  });

  it("heeds no other messages", () => {
    const executed = counted(link.executed);
    kernel.tell("a", "busy", "comm_msg");
    kernel.tell("a", "idle", "comm_msg");
    kernel.tell("a", "busy", "execute_request", "stream");
    expect(link.busy).toBe(false);
    expect(executed.times).toBe(0);
  });

  it("waits for a cell that was running before the page came", () => {
    kernel.status = "busy";
    const executed = counted(link.executed);
    expect(link.busy).toBe(true);
    kernel.become("idle");
    expect(link.busy).toBe(false);
    expect(executed.times).toBe(1);
  });

  it("once looked at, heeds cells and not the kernel's status", async () => {
    await link.prepare();
    const executed = counted(link.executed);
    kernel.become("busy");
    expect(link.busy).toBe(false);
    kernel.become("idle");
    expect(executed.times).toBe(0);
  });
});

describe("questions", () => {
  it("brings the value", async () => {
    const answer = link.ask("models", { expanded: ["gla"] });
    await settle();
    const comm = kernel.question("models");
    expect(comm.target).toBe("ess_widgets.lab");
    expect(comm.question).toEqual({ ask: "models", expanded: ["gla"] });
    comm.answer(aListing());
    expect(await answer).toEqual(aListing());
  });

  it("brings the kernel's error", async () => {
    const answer = link.ask("close", { model_id: "1" });
    await settle();
    kernel.question("close").refuse("LabError", "There is no such view.");
    await expect(answer).rejects.toMatchObject({ kind: "LabError", message: "There is no such view." });
  });

  it("has to look at the kernel anew where it closes without an answer", async () => {
    await link.prepare();
    const answer = link.ask("close", { model_id: "1" });
    await settle();
    kernel.question("close").end();
    await expect(answer).rejects.toMatchObject({ kind: "NoAnswer" });
    expect(link.readiness).toBe("unknown");
  });

  it("stays what it is where it never could be asked", async () => {
    kernel.value = { status: "ok", data: { "text/plain": "'not loaded'" } };
    await link.prepare();
    const answer = link.ask("close", { model_id: "1" });
    await settle();
    kernel.question("close").end();
    await expect(answer).rejects.toMatchObject({ kind: "NoAnswer" });
    expect(link.readiness).toBe("not loaded");
  });

  it("stays ready where it closes after the answer", async () => {
    await link.prepare();
    kernel.handlers = { close: () => null };
    expect(await link.ask("close", { model_id: "1" })).toBeNull();
    expect(link.readiness).toBe("ready");
  });

  it("is refused by a connection that may not talk to widgets", async () => {
    kernel.handleComms = false;
    await expect(link.ask("close", { model_id: "1" })).rejects.toMatchObject({ kind: "NoComms" });
    expect(kernel.comms).toEqual([]);
  });

  it("keeps one comm that is never opened", async () => {
    kernel.handlers = { close: () => null };
    await link.ask("close", { model_id: "1" });
    await link.ask("close", { model_id: "2" });
    const unopened = () => kernel.comms.filter((comm) => comm.question === null);
    expect(unopened()).toHaveLength(1);
    kernel.become("restarting");
    await link.ask("close", { model_id: "3" });
    expect(unopened()).toHaveLength(2);
    expect(kernel.comms).toHaveLength(5);
  });

  it("waits for the thread beside the cells where there is one", async () => {
    let start: () => void = () => undefined;
    kernel.supportsSubshells = true;
    kernel.subshell = new Promise((resolve) => (start = resolve));
    kernel.handlers = { close: () => null };
    const answer = link.ask("close", { model_id: "1" });
    await settle();
    expect(kernel.asked).toEqual([]);
    start();
    expect(await answer).toBeNull();
  });

  it("does not wait where the kernel has no such threads", async () => {
    kernel.subshell = new Promise(() => undefined);
    kernel.handlers = { close: () => null };
    expect(await link.ask("close", { model_id: "1" })).toBeNull();
  });

  it("fails where the thread cannot be started", async () => {
    kernel.supportsSubshells = true;
    kernel.subshell = Promise.reject(new Error("no thread"));
    await expect(link.ask("close", { model_id: "1" })).rejects.toThrow("no thread");
  });
});

describe("slow questions", () => {
  const scan = (asking: Asking) =>
    link.ask("scan", { name: "gla", source: { inputs: "x" }, options: defaults.options }, asking);

  it("tell how far they are until they are answered", async () => {
    const progress = vi.fn();
    const answer = scan({ progress });
    await settle();
    const comm = kernel.question("scan");
    comm.send({ progress: { done: 1, of: 3 } });
    comm.send({ progress: { done: 2, of: 3 } });
    comm.answer({ layers: [], skipped: {} });
    comm.send({ progress: { done: 3, of: 3 } });
    expect(await answer).toEqual({ layers: [], skipped: {} });
    expect(progress.mock.calls).toEqual([[{ done: 1, of: 3 }], [{ done: 2, of: 3 }]]);
  });

  it("are stopped, of which the kernel is told", async () => {
    await link.prepare();
    const abort = new AbortController();
    const progress = vi.fn();
    const answer = scan({ signal: abort.signal, progress });
    await settle();
    const comm = kernel.question("scan");
    abort.abort();
    await expect(answer).rejects.toMatchObject({ kind: "Cancelled" });
    expect(comm.closed).toBe(true);
    expect(link.readiness).toBe("ready");
    comm.send({ progress: { done: 1, of: 3 } });
    expect(progress).not.toHaveBeenCalled();
  });

  it("are not asked at all where they were stopped before", async () => {
    const abort = new AbortController();
    abort.abort();
    await expect(scan({ signal: abort.signal })).rejects.toMatchObject({ kind: "Cancelled" });
    await settle();
    expect(kernel.asked).toEqual([]);
  });

  it("are not asked where they were stopped while their thread was started", async () => {
    let start: () => void = () => undefined;
    kernel.supportsSubshells = true;
    kernel.subshell = new Promise((resolve) => (start = resolve));
    const abort = new AbortController();
    const answer = scan({ signal: abort.signal });
    abort.abort();
    start();
    await expect(answer).rejects.toMatchObject({ kind: "Cancelled" });
    await settle();
    expect(kernel.asked).toEqual([]);
    expect(kernel.comms.some((comm) => comm.closed)).toBe(false);
  });

  it("that are answered cannot be stopped", async () => {
    const abort = new AbortController();
    kernel.handlers.scan = () => ({ layers: [], skipped: {} });
    await scan({ signal: abort.signal });
    abort.abort();
    expect(kernel.question("scan").closed).toBe(false);
  });
});

describe("a kernel that goes", () => {
  test.each([
    ["restarting", "unknown", "The kernel was restarted.", "restarted"],
    ["autorestarting", "unknown", "The kernel was restarted.", "restarted"],
    ["dead", "dead", "The kernel died.", "dead"],
  ] as const)("%s", async (status, readiness, message, loss) => {
    await link.prepare();
    const losses: Loss[] = [];
    link.lost.connect((_, one) => losses.push(one));
    const answer = link.ask("close", { model_id: "1" });
    kernel.begin("a");
    kernel.become(status);
    await expect(answer).rejects.toMatchObject({ kind: "KernelGone", message });
    expect(link.readiness).toBe(readiness);
    expect(link.busy).toBe(false);
    expect(losses).toEqual([loss]);
  });

  it("tells by its own messages of a restart by another page", async () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    await link.prepare();
    const losses: Loss[] = [];
    link.lost.connect((_, one) => losses.push(one));
    const answer = link.ask("close", { model_id: "1" });
    const comms = kernel.comms.length;
    kernel.tell("x", "busy", "shutdown_request");
    await expect(answer).rejects.toMatchObject({ kind: "KernelGone" });
    expect(kernel.comms.every((comm) => comm.isDisposed)).toBe(true);
    kernel.tell("x", "idle", "shutdown_request");
    kernel.tell("", "starting", "");
    expect(losses).toEqual(["elsewhere"]);
    expect(link.readiness).toBe("unknown");
    vi.setSystemTime(Date.now() + 60_000);
    await link.prepare();
    kernel.tell("", "starting", "");
    expect(losses).toEqual(["elsewhere", "elsewhere"]);
    void link.ask("close", { model_id: "1" }).catch(() => undefined);
    expect(kernel.comms).toHaveLength(comms + 2);
    vi.useRealTimers();
  });

  it("restarted by another page is out of reach where it has threads, until this page restarts it", async () => {
    kernel.supportsSubshells = true;
    await link.prepare();
    kernel.tell("x", "busy", "shutdown_request");
    expect(link.stranded).toBe(true);
    await expect(link.ask("close", { model_id: "1" })).rejects.toMatchObject({ kind: "Stranded" });
    kernel.become("restarting");
    expect(link.stranded).toBe(false);
  });

  it("that starts for the first time has lost nothing", () => {
    const losses: Loss[] = [];
    link.lost.connect((_, one) => losses.push(one));
    kernel.tell("", "starting", "");
    expect(losses).toEqual([]);
  });

  it("is not told of twice where the page itself restarted it", async () => {
    await link.prepare();
    const losses: Loss[] = [];
    link.lost.connect((_, one) => losses.push(one));
    kernel.become("restarting");
    kernel.tell("x", "busy", "shutdown_request");
    kernel.become("idle"); // that of the shutdown
    kernel.tell("x", "idle", "shutdown_request");
    kernel.tell("", "starting", "");
    await link.prepare();
    kernel.tell("", "starting", "");
    expect(losses).toEqual(["restarted"]);
  });

  it("is not waited for while it is looked at", async () => {
    vi.spyOn(kernel, "requestExecute").mockReturnValue({
      msg: { header: { msg_id: "own" } },
      done: new Promise(() => undefined),
    });
    const ready = link.prepare();
    await settle();
    kernel.become("restarting");
    await expect(ready).rejects.toMatchObject({ kind: "KernelGone" });
  });

  it("is read again as soon as it is there again", async () => {
    await link.prepare();
    kernel.become("restarting");
    const executed = counted(link.executed);
    kernel.become("idle");
    expect(executed.times).toBe(1);
  });

  it("rejects what was asked when it is closed", async () => {
    const answer = link.ask("close", { model_id: "1" });
    const losses: Loss[] = [];
    link.lost.connect((_, one) => losses.push(one));
    kernel.dispose();
    expect(losses).toEqual(["disconnected"]);
    await expect(answer).rejects.toMatchObject({ kind: "KernelGone", message: "The kernel is gone." });
    expect(link.isDisposed).toBe(true);
  });
});
