"""The survey's own parts: its small models, what it expects of them, and that it notices what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.capture.core import LayerCapture
from ess_widgets.operators import Dense
from tests.survey import attempt as attempts
from tests.survey import models, table
from tests.survey.attempt import attempt, judge
from tests.survey.expected import expected_mixers, kind_of_class
from tests.survey.hooked import watching
from tests.survey.mixing import mixing_modules, unlisted

F32, BF16 = torch.float32, torch.bfloat16
_CORE = sys.modules[LayerCapture.__module__]


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("model_type", "implementation", "operators"),
    [
        ("llama", "eager", {"attention": 2}),
        ("llama", "sdpa", {"attention": 2}),
        ("bert", "sdpa", {"attention": 2}),
        ("gemma3_text", "eager", {"attention": 2}),
        ("deepseek_v3", "sdpa", {"attention": 2}),
    ],
)
def test_attention_is_captured_whole(
    model_type: str, implementation: str, dtype: torch.dtype, operators: dict[str, int]
) -> None:
    row = attempt(model_type, implementation, dtype)
    assert row["verdict"] == "whole", row["reason"]
    assert row["expected"] == operators
    assert row["found"] == row["mixers"] == 2
    assert row["extra"] == row["missing"] == []
    assert 0 < row["residual"] <= (1e-6 if dtype is F32 else 1e-2)
    assert row["output_error"] <= 1e-6


def test_padding() -> None:
    row = attempt("llama", "sdpa", F32, padding=True)
    assert row["verdict"] == "whole", row["reason"]
    assert models.padded({"inputs_embeds": torch.zeros(2, models.LENGTH, 8)}) is None


_OPERATORS = {
    "jamba": {"SSM": 1, "convolution": 1, "attention": 1},
    "recurrent_gemma": {"linear recurrence": 2, "convolution": 2, "attention": 1},
    "qwen3_next": {"delta rule": 1, "convolution": 1, "attention": 1},
    "lfm2": {"convolution": 1, "attention": 1},
    "minimax": {"linear attention": 1, "attention": 1},
    "longcat_flash": {"attention": 4},
}
_SCRIPT = """
import json, os, sys, time
from collections import Counter
from tests.survey import run
run.hide_kernels()
import torch
import tests.survey.attempt as attempts
from tests.survey import models
from tests.survey.expected import expected_mixers
built = {}
for name in sys.argv[1:]:
    model = models.build(name, "eager", torch.float32)
    expected, _ = expected_mixers(model, models.call(name))
    built[name] = [sum((m.operators for m in expected), Counter()), sum(p.numel() for p in model.parameters())]
def attempt(model_type, implementation, dtype, padding=False):
    if model_type == "crashes":
        os.abort()
    if model_type == "hangs":
        time.sleep(60)
    return {"implementation": implementation, "padding": padding, "verdict": "whole"}
attempts.attempt = attempt
swept = dict(run.sweep(["crashes", "hangs", "works"], seconds=3))
print("RESULT" + json.dumps([built, swept]))
"""


@pytest.fixture(scope="module")
def fresh() -> Any:
    """What a script finds in an interpreter of its own, where transformers is imported without kernels."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *_OPERATORS],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("RESULT")[2])


def test_every_kind_of_layer_is_built_and_expected(fresh: Any) -> None:
    built, _ = fresh
    assert {name: operators for name, (operators, _) in built.items()} == _OPERATORS
    assert max(size for _, size in built.values()) < 300_000


def test_a_crash_and_a_hang_are_rows_and_not_the_end(fresh: Any) -> None:
    _, swept = fresh
    assert "process ended with -6" in swept["crashes"]["crash"]
    assert "took over 3 s" in swept["hangs"]["crash"]
    assert "crash" not in swept["works"]
    assert {row["implementation"] for row in swept["works"]["rows"]} >= {"eager", "sdpa", "flex_attention"}


def test_expected_counts_calls_and_leaves_out_wrappers_and_cross_attention() -> None:
    class SelfAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class OuterAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = SelfAttention()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out

    class TinyMambaMixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1d = nn.Conv1d(4, 4, 3, groups=4)
            self.mix = nn.Conv1d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x

    class TheCrossAttention(SelfAttention):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.unused = (
                OuterAttention(),
                TinyMambaMixer(),
                TheCrossAttention(),
                SelfAttention(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(self.a(x))))  # type: ignore[no-any-return]

    model = Model()
    expected, output = expected_mixers(model, {"x": torch.ones(1, 4, 4)})
    assert [(mixer.path, dict(mixer.operators)) for mixer in expected] == [
        ("a.inner", {"attention": 2}),
        ("b", {"SSM": 1, "convolution": 1}),
    ]
    assert torch.equal(output, torch.ones(1, 4, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("LlamaAttention", "attention"),
        ("T5CrossAttention", "cross-attention"),
        ("KimiLinearAttention", "attention"),
        ("KimiLinearDeltaAttention", "delta rule"),
        ("MiniMaxLightningAttention", "linear attention"),
        ("RwkvSelfAttention", "RWKV"),
        ("NemotronHMamba2Mixer", "SSM"),
        ("Lfm2ShortConv", "convolution"),
        ("xLSTMLayer", "mLSTM"),
        ("LlamaMLP", None),
        ("LlamaRMSNorm", None),
        ("BertSelfOutput", None),
    ],
)
def test_kinds_by_name(name: str, kind: str | None) -> None:
    assert kind_of_class(name) == kind


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mamba", "lfm2"])
def test_modules_that_mix_are_those_expected(model_type: str) -> None:
    """What is expected by name is what mixes: found by changing a token."""
    model, call = models.build(model_type, "eager", F32), models.call(model_type)
    expected, _ = expected_mixers(model, call)
    assert unlisted(model, call, models.LENGTH, expected) == []
    mixing = {id(module) for module in mixing_modules(model, call, models.LENGTH).values()}
    for mixer in expected:
        assert any(id(part) in mixing for part in mixer.module.modules())
    assert len(unlisted(model, call, models.LENGTH, expected[:1])) == len(expected) - 1


def _row(model: nn.Module, call: dict[str, Any]) -> dict[str, Any]:
    expected, output = expected_mixers(model, call)
    return judge(model, call, expected, output, F32)


class _Future(Dense):
    def matrix(self) -> Tensor:
        T = super().matrix().clone()
        T[..., 0, -1] = 1e-7  # too little for the residual
        return T


class _Fault(LayerCapture):
    """A capture of the second layer gone wrong in one way."""

    fault = ""

    @property
    def operator(self) -> Any:
        found = super().operator
        if "layers.1." not in self.name:
            return found
        T = found.matrix().clone()
        if self.fault == "mask":  # a token too many is hidden
            T[..., -1, 0] = 0
            T = T / T.sum(-1, keepdim=True)
        elif self.fault == "scale":
            T = T * 1.001
        elif self.fault == "shift":
            T = T.roll(1, -1).tril()
        elif self.fault == "future":
            return _Future(T)
        return Dense(T)

    @property
    def outputs(self) -> Tensor:
        found = super().outputs
        if self.fault == "outputs" and "layers.1." in self.name:
            found = found.flip(2)
        return found * 0 if self.fault == "zeros" else found

    @property
    def inputs(self) -> Tensor:
        return super().inputs * 0 if self.fault == "zeros" else super().inputs

    @property
    def residual(self) -> Tensor:
        from ess_widgets.capture.residual import residual

        return residual(self.operator, self.inputs, self.outputs, self.valid)


@pytest.mark.parametrize("fault", ["mask", "scale", "shift", "outputs"])
def test_a_planted_fault_is_a_failure(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    model, call = models.build("llama", "sdpa", F32), models.call("llama")
    assert _row(model, call)["verdict"] == "whole"
    monkeypatch.setattr(_CORE, "LayerCapture", _Fault)
    monkeypatch.setattr(_Fault, "fault", fault)
    row = _row(model, call)
    assert row["verdict"] == "failed"
    assert "in model.layers.1.self_attn and 0 more" in row["reason"]


@pytest.mark.parametrize(
    ("fault", "reason"), [("future", "reads the future"), ("zeros", "zeros alone as outputs")]
)
def test_what_a_residual_does_not_show_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    model, call = models.build("llama", "sdpa", F32), models.call("llama")
    monkeypatch.setattr(_CORE, "LayerCapture", _Fault)
    monkeypatch.setattr(_Fault, "fault", fault)
    row = _row(model, call)
    assert row["verdict"] == "failed"
    assert reason in row["reason"]
    assert row["residual"] <= 1e-6


def test_a_missing_mixer_and_another_output_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = models.build("llama", "sdpa", F32), models.call("llama")
    expected, output = expected_mixers(model, call)
    whole = ew.capture

    def one_layer(model: nn.Module, **call: Any) -> Any:
        return whole(model, layers=0, **call)

    monkeypatch.setattr(attempts.ew, "capture", one_layer)
    row = judge(model, call, expected, output, F32)
    assert row["verdict"] == "failed"
    assert row["missing"] == ["1 attention in model.layers.1.self_attn (LlamaAttention)"]
    assert (row["found"], row["mixers"]) == (1, 2)
    monkeypatch.undo()
    output.logits = output.logits + 1e-3 * output.logits.abs().max()
    row = judge(model, call, expected, output, F32)
    assert row["verdict"] == "failed"
    assert "output differs from the model's own by 1.0e-03" in row["reason"]


def test_a_family_of_another_kind_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = models.build("llama", "sdpa", F32), models.call("llama")

    class Renamed(LayerCapture):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.family = "linear attention"

    monkeypatch.setattr(_CORE, "LayerCapture", Renamed)
    row = _row(model, call)
    assert row["verdict"] == "failed"
    assert row["found"] == 0
    assert len(row["extra"]) == 2


def test_models_that_read_the_future_are_told_apart() -> None:
    for model_type, reads in (("llama", False), ("cpmant", True)):
        model, call = models.build(model_type, "eager", F32), models.call(model_type)
        _, output = expected_mixers(model, call)
        assert models.reads_the_future(model, call, output) is reads
    assert attempt("cpmant", "eager", F32)["verdict"] == "not causal"


def test_outputs_are_those_that_hooks_see() -> None:
    model, call = models.build("llama", "sdpa", F32), models.call("llama")
    expected, _ = expected_mixers(model, call)
    with torch.no_grad(), watching(mixer.module for mixer in expected) as seen:
        model(**call)
    for layer in ew.capture(model, **call).values():
        assert seen.holds(layer.outputs)
        assert not seen.holds(layer.outputs.flip(2))
        assert not seen.holds(layer.outputs * 1.001)


def test_what_cannot_be_built_is_a_row() -> None:
    row = attempt("gpt2", "no_such_attention", F32)
    assert (row["verdict"], row["stage"]) == ("not built", "build")
    assert "no_such_attention" in row["reason"]


def _result(*rows: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    return {
        "class": "X",
        **more,
        "rows": [
            {
                "implementation": implementation,
                "dtype": dtype,
                "padding": False,
                "verdict": verdict,
                "reason": "why | not",
                "stage": "build" if verdict == "not built" else "captured",
            }
            for implementation, dtype, verdict in rows
        ],
    }


def test_summary_counts_every_implementation_and_no_model_that_cannot_be_built() -> None:
    results = {
        "good": _result(("eager", "float32", "whole"), ("sdpa", "float32", "not built")),
        "half": _result(("eager", "float32", "whole"), ("sdpa", "float32", "failed")),
        "refused": _result(("eager", "float32", "refused")),
        "crashed": _result(("eager", "float32", "whole"), crash="process ended with -11 at sdpa"),
        "dead": _result(crash="process ended with -11 at import"),
        "absent": _result(("eager", "float32", "not built")),
        "encoder": _result(("eager", "float32", "not causal")),
    }
    kinds = [table.status(result) for result in results.values()]
    assert kinds == ["whole", "failed", "failed", "failed", "failed", "not built", "not causal"]
    numbers = table.summary(results)
    assert (numbers["whole"], numbers["built"]) == (1, 5)
    assert numbers["attempts"] == {"eager, float32": [3, 4], "sdpa, float32": [0, 1]}


def test_results_are_read_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results" / "survey.json")
    monkeypatch.setattr(table, "TABLE", tmp_path / "docs" / "capture.md")
    assert table.read() == {}
    results = {"good": _result(("eager", "float32", "whole")), "bad": _result(("eager", "float32", "failed"))}
    table.write(results, {"torch": "2.0", "transformers": "5.0"})
    assert table.read() == results
    text = (tmp_path / "docs" / "capture.md").read_text()
    assert "**1 of 2 models that build here are captured whole: 50.0 %.**" in text
    assert "| bad | eager fp32 | why / not |" in text
