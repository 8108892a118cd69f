"""What capturing costs: ``python -m tests.benchmarks.capture``.

Time: every layer of a language model, without materialising an operator, against the plain forward pass, one after the
other in the same run, with one thread and with two, through sdpa and written out ("eager"). Memory: what a capture keeps,
and what it adds to the peak, in a process of its own for each length. The page goes to ``results/capture-<machine>.md``
beside this file; the script ends with 1 where an operator is not the model's, or memory grows faster than the length.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ess_widgets import demo
from ess_widgets.capture import Capture, run

from . import machine
from .clock import figure
from .explorer import name
from .large import peak

IMPLEMENTATIONS = ("sdpa", "eager")
LENGTHS = (256, 512, 1024)
RATIO = 1.30
RESIDUAL = 1e-5
# Memory proportional to the length has the exponent 1; a mask that all layers share adds little to it.
EXPONENT = 1.1


@dataclass(frozen=True)
class Cost:
    """Seconds of the plain forward pass and of a capture, in turn, by the clock on the wall and of the processor."""

    implementation: str
    threads: int
    layers: int
    length: int
    plain: list[float]
    captured: list[float]
    plain_cpu: list[float]
    captured_cpu: list[float]
    residual: float

    @property
    def ratio(self) -> float:
        return _ratio(self.captured, self.plain)

    def __str__(self) -> str:
        mark = " **above**" if self.ratio > RATIO else ""
        cells = (
            f"{self.implementation}, {self.layers} layers, {self.length} tokens",
            f"{self.threads}",
            figure(statistics.median(self.plain)),
            figure(statistics.median(self.captured)),
            f"{self.ratio:.3f}{mark}",
            f"{_ratio(self.captured_cpu, self.plain_cpu):.3f}",
            f"≤ {RATIO:.2f}",
            f"{self.residual:.1e}",
        )
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Memory:
    """Bytes: of q, k, v and y with as many heads as there are queries', kept by a capture, added to the peak."""

    implementation: str
    length: int
    own: int
    kept: int
    added: int

    def __str__(self) -> str:
        cells = (
            f"{self.implementation}, {self.length} tokens",
            *(f"{size / 2**20:,.1f} MiB" for size in (self.own, self.kept, self.added)),
            f"{self.kept / self.own:.2f}",
        )
        return f"| {' | '.join(cells)} |"


def cost(model: nn.Module, ids: Tensor, implementation: str, threads: int, repeat: int) -> Cost:
    """Time ``repeat`` pairs, and check every operator against the model's own output."""
    before = torch.get_num_threads()
    _choose(model, implementation)
    plain: list[tuple[float, float]] = []
    captured: list[tuple[float, float]] = []
    try:
        torch.set_num_threads(threads)
        for turn in range(repeat + 1):  # the first warms up
            first, _ = _timed(lambda: _plain(model, ids))
            second, cap = _timed(lambda: _capture(model, ids))
            if turn:
                plain.append(first)
                captured.append(second)
        worst = max(float(layer.residual.max()) for layer in cap.values())
    finally:
        torch.set_num_threads(before)
    return Cost(
        implementation, threads, len(cap), ids.shape[1],
        *([float(pair[i]) for pair in pairs] for i in (0, 1) for pairs in (plain, captured)),
        worst,
    )  # fmt: skip


def memory(implementation: str, length: int, model: str | None = None) -> Memory:
    """Measure in a process of its own."""
    command = [
        sys.executable,
        "-m",
        f"{__package__}.capture",
        f"--child={implementation}",
        f"--tokens={length}",
    ]
    command += [f"--model={model}"] if model else []
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return Memory(implementation, length, **json.loads(done.stdout.splitlines()[-1]))


def measured(model: nn.Module, ids: Tensor, implementation: str) -> dict[str, int]:
    """Sizes in this process; what it has held before must be small."""
    _choose(model, implementation)
    _plain(model, ids)
    before = peak()
    cap = _capture(model, ids)
    added = peak() - before
    own = sum(4 * layer.outputs.numel() * layer.outputs.element_size() for layer in cap.values())
    return {"own": own, "kept": kept(cap), "added": round(added * 2**30)}


def kept(cap: Capture) -> int:
    """Bytes of the distinct memory that a capture refers to."""
    seen: set[int] = set()
    found: dict[int, int] = {}
    queue: list[Any] = list(cap.values())
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type | str) or type(item).__name__ in ("module", "function"):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        else:
            queue.extend(vars(item).values() if hasattr(item, "__dict__") else gc.get_referents(item))
    return sum(found.values())


def growth(sizes: Sequence[Memory]) -> float:
    """The exponent of what is kept in the length, between the shortest and the longest."""
    short, *_, long = sorted(sizes, key=lambda size: size.length)
    return math.log(long.kept / short.kept) / math.log(long.length / short.length)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as ess_widgets.demo.load takes it; SmolLM2-135M-Instruct by default")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=9, metavar="N", help="pairs, 9 by default")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=list(LENGTHS), help="of the measured memory"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes")
    parser.add_argument("--child", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    device = torch.device("cpu")
    heading = machine.heading("What a capture costs", device)
    model, tokenizer = demo.load(args.model, fallback=False)
    model.float()
    ids = tokens(tokenizer, args.tokens)
    if args.child:
        print(json.dumps(measured(model, ids, args.child)))
        return 0
    costs, sizes = [], []
    for threads in args.threads:
        for implementation in IMPLEMENTATIONS:
            costs.append(cost(model, ids, implementation, threads, args.repeat))
            print(costs[-1], flush=True)
    for implementation in IMPLEMENTATIONS:
        for length in args.lengths:
            sizes.append(memory(implementation, length, args.model))
            print(sizes[-1], flush=True)
    output = args.output
    if output is None and args.model is None:
        output = machine.RESULTS / f"capture-{machine.kind(device)}.md"
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(heading, name(model), costs, sizes), encoding="utf-8")
        print(f"written to {output}")
    return 0 if right(costs, sizes) else 1


def right(costs: Sequence[Cost], sizes: Sequence[Memory]) -> bool:
    """Whether the operators are the model's own, and memory grows with the length alone."""
    grown = [growth(some) for some in _by_implementation(sizes)]
    return all(cost.residual <= RESIDUAL for cost in costs) and all(
        exponent <= EXPONENT for exponent in grown
    )


def page(heading: str, model: str, costs: Sequence[Cost], sizes: Sequence[Memory]) -> str:
    """The page of results."""
    time_text = (
        f"{model}, float32. Seconds of the plain forward pass and of a capture of every layer, in turn; medians, and the "
        "median of the ratios of neighbours, by the clock on the wall and in processor time. The residual is the worst of "
        "all layers and heads; it is computed afterwards."
    )
    times = [
        "| attention | threads | forward | capture | ratio | ratio, processor | demanded | residual |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *map(str, costs),
    ]
    memory_text = (
        "Memory: q, k, v and y of all layers, with as many heads as there are queries'; what the capture keeps; what it "
        "adds to the peak of the process, whose forward pass has been run before."
    )
    memories = [
        "| attention | q, k, v, y | kept | added to the peak | kept, relative |",
        "| --- | ---: | ---: | ---: | ---: |",
        *map(str, sizes),
    ]
    parts = [heading, time_text, "\n".join(times)]
    if sizes:
        exponents = ", ".join(
            f"{some[0].implementation}: {growth(some):.2f}" for some in _by_implementation(sizes)
        )
        told = f"What is kept grows with this power of the length: {exponents} (demanded: ≤ {EXPONENT:g})."
        parts += [memory_text, "\n".join(memories), told]
    return "\n\n".join(parts) + "\n"


def tokens(tokenizer: Any, length: int) -> Tensor:
    """A text of so many tokens."""
    from .explorer import TEXT

    ids = tokenizer.encode(TEXT)
    return torch.tensor([(ids * (1 + length // len(ids)))[:length]])


def _by_implementation(sizes: Sequence[Memory]) -> list[list[Memory]]:
    found: dict[str, list[Memory]] = {}
    for size in sizes:
        found.setdefault(size.implementation, []).append(size)
    return [some for some in found.values() if len(some) > 1]


def _choose(model: nn.Module, implementation: str) -> None:
    choose = getattr(model, "set_attn_implementation", None)
    if choose is not None:  # transformers' own
        choose(implementation)


def _plain(model: nn.Module, ids: Tensor) -> Any:
    with torch.no_grad():
        return model(ids)


def _capture(model: nn.Module, ids: Tensor) -> Capture:
    return run(model, (ids,), {}, keep_output=False)


def _timed(call: Any) -> tuple[tuple[float, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    sys.exit(main())
