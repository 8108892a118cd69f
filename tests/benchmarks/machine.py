"""What the benchmarks ran on."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kind(device: torch.device) -> str:
    """A name for files: ``cpu-2-cores``, ``nvidia-h100-80gb-hbm3``."""
    name = f"cpu {cores()} cores" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def heading(title: str, device: torch.device) -> str:
    """A title and what there is to say of the machine now, as Markdown."""
    lines = [f"{cpu()}, {cores()} cores, torch on {torch.get_num_threads()} of them"]
    if device.type != "cpu":
        lines.append(f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    lines.append(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}")
    today = datetime.datetime.now(datetime.timezone.utc).date()
    busy = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    lines.append(f"{today.isoformat()}{busy}")
    return f"# {title}: {kind(device)}\n\n" + "\n".join(f"- {line}" for line in lines)


def cpu() -> str:
    """The processor's own name for itself."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()
