"""One head of 4,096 in a process of its own, so that what it takes is this case's: seconds and memory.

``python -m tests.benchmarks.large --output FILE`` leaves the counts there and prints the rest as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import baseline, checks, inputs
from .clock import seconds

LENGTH = 4096
TOL = 1e-3
SECONDS = 10.0
GIB = 1.5


@dataclass(frozen=True)
class Large:
    """Seconds of the first call of a fresh process, and the peak of its memory in GiB, before the call and in it."""

    seconds: float
    before: float
    peak: float
    gpu: float | None
    length: int
    loop: baseline.Loop
    verdict: checks.Verdict

    @property
    def within(self) -> bool:
        # A GPU's libraries alone fill as much of the process.
        memory = self.peak if self.gpu is None else self.gpu
        return self.seconds <= SECONDS and memory <= GIB


def measure(device: torch.device, length: int = LENGTH) -> Large:
    """Run the case in a process of its own, and check its counts here at a sample of positions."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "profile.pt")
        options = [f"--device={device}", f"--length={length}", f"--output={output}"]
        command = [sys.executable, "-m", __name__, *options]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        told = json.loads(done.stdout)
        values, band = torch.load(output)
    T = inputs.softmax(length, 1).to(device)
    loop = baseline.run(lambda heads: T[heads], length, 1)
    return Large(**told, length=length, loop=loop, verdict=checks.counts(values, band, loop, TOL, False))


def peak() -> float:
    """The most memory that this process has held, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose maximum a process inherits from the one that started it.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 2**20
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _child(device: torch.device, length: int) -> tuple[dict[str, float | None], tuple[Tensor, Tensor]]:
    from ess_widgets.metrics import profile

    if device.type == "cuda":
        torch.zeros(1, device=device)
    before = peak()
    T = inputs.softmax(length, 1).to(device)
    took, found = seconds(lambda: profile(T, "tolerance", TOL), device)
    gpu = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    told = {"seconds": took, "before": before, "peak": peak(), "gpu": gpu}
    return told, (found.values.cpu(), found.error.cpu())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    told, found = _child(torch.device(args.device), args.length)
    torch.save(found, args.output)
    print(json.dumps(told))
