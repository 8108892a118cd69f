"""Every model type in a process of its own, with limits of time and memory: a crash is a row and not the end."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["all_types", "hide_kernels", "sweep"]

SECONDS = 300
CPU_SECONDS = 90
MEMORY = 6 << 30
# Their kernels need a GPU; transformers takes its own functions of torch where it cannot import them.
_KERNELS = ("fla", "causal_conv1d", "mamba_ssm", "flash_attn", "kernels")


def hide_kernels() -> None:
    """To be called before transformers is imported."""
    if "transformers" in sys.modules and any(sys.modules.get(name) is not None for name in _KERNELS):
        raise RuntimeError("transformers and its kernels are imported already: run this in a fresh process.")
    for name in _KERNELS:
        sys.modules[name] = None  # type: ignore[assignment]
    os.environ["TORCHDYNAMO_DISABLE"] = (
        "1"  # flex attention as written; a compiled one takes a minute per model
    )
    os.environ["HF_HUB_OFFLINE"] = "1"


def all_types() -> dict[str, str]:
    """Model types that ``AutoModelForCausalLM`` knows, with their classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {key: str(value) for key, value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}


def sweep(
    types: list[str], workers: int = 2, seconds: float = SECONDS
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(model type, {"rows": [...], ...})`` as they finish."""
    _import_early()
    waiting = list(reversed(types))
    running: dict[Any, tuple[str, Path, float]] = {}
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop()
                path = Path(folder) / f"{name}.json"
                process = context.Process(target=_child, args=(name, path))
                process.start()
                running[process] = (name, path, time.monotonic())
            for process, (name, path, start) in list(running.items()):
                late = time.monotonic() - start > seconds
                if process.is_alive() and not late:
                    continue
                if late:
                    process.kill()
                process.join()
                del running[process]
                yield name, _collect(path, process.exitcode, late, time.monotonic() - start)
            time.sleep(0.02)


def _collect(path: Path, code: int | None, late: bool, seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    result["seconds"] = round(seconds, 1)
    if late or code:
        why = f"took over {seconds:.0f} s" if late else f"process ended with {code}"
        result["crash"] = f"{why} at {result.get('now', 'import')}"
    result.pop("now", None)
    return result


def _child(model_type: str, path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        Path(os.devnull).open("w") as quiet,
        contextlib.redirect_stderr(quiet),
        contextlib.redirect_stdout(quiet),
    ):
        import torch

        from tests.survey.attempt import attempt
        from tests.survey.models import implementations

        torch.set_num_threads(1)
        result: dict[str, Any] = {"rows": []}
        plan = [(i, d, False) for i in implementations() for d in (torch.float32, torch.bfloat16)]
        plan += [(i, torch.float32, True) for i in ("eager", "sdpa")]
        refused: set[str] = set()
        for implementation, dtype, padding in plan:
            if implementation in refused:
                continue
            result["now"] = f"{implementation}, {dtype}"
            _write(path, result)
            row = attempt(model_type, implementation, dtype, padding)
            if row["verdict"] == "not built" and not padding:
                refused.add(implementation)
            result["rows"].append({key: value for key, value in row.items() if value not in ([], {})})
        result.pop("now")
        _write(path, result)


def _write(path: Path, result: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.replace(path)


def _import_early() -> None:
    """What every model needs, once, before the processes part."""
    import torch
    import transformers.generation
    import transformers.masking_utils
    import transformers.modeling_utils
    import transformers.models.auto.modeling_auto

    import tests.survey.attempt

    assert transformers and tests
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
