"""What a diagnosis looks like: text, table, HTML, the way into the explorer, the example in the docs, a real model."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_models import Attention, Model, ids, on_first
from torch import Tensor, nn

import ess_widgets as ew
from ess_widgets.learn import Diagnosis, diagnose

DOCS = Path(__file__).parents[2] / "docs"
NASTY = "<script>alert('x')</script>&\"'"
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Collects tags, attributes and text, and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def broken() -> Diagnosis:
    model = Model(Attention)
    with torch.no_grad():
        model.layers[1].out.weight[:, :8] = 0
    model.layers[0].bias[3] = on_first
    return diagnose(model, [ids(40, 1), ids(30, 1, seed=2)])


def test_table(broken: Diagnosis) -> None:
    table = broken.table
    assert list(zip(table["layer"], table["head"], strict=True)) == [
        (f"layers.{i}", h) for i in (0, 1) for h in range(4)
    ]
    assert set(table["measure"]) == {"entropy-ESS"}
    found = table[table["findings"] != ""]
    assert found[["layer", "head", "findings", "severity"]].to_numpy().tolist() == [
        ["layers.0", 3, "sink", "notice"],
        ["layers.1", 0, "dead", "warning"],
    ]
    cap = ew.capture(broken._model, ids(40, 1))
    one = ew.ess(cap["layers.1"].operator)[0, 2, 1:].mean()
    other = ew.ess(ew.capture(broken._model, ids(30, 1, seed=2))["layers.1"].operator)[0, 2, 1:].mean()
    assert table["ess"][6] == pytest.approx(float(one + other) / 2, rel=1e-3)


def test_measures_are_named(broken: Diagnosis) -> None:
    counted = diagnose(broken._model, ids(), kind="tolerance", tol=1e-2)
    assert set(counted.table["measure"]) == {"tolerance-ESS, τ = 0.01"}
    for text in (str(counted), counted._repr_html_(), counted.to_html()):
        assert "tolerance-ESS" in text and "entropy" not in text


def test_summary(broken: Diagnosis) -> None:
    lines = str(broken).splitlines()
    assert lines[0].startswith("Model: 2 layers, 8 heads; 2 inputs")
    assert lines[2].split() == ["warning", "dead", "layers.1,", "head", "0"]
    assert repr(broken) == "Diagnosis(Model, 2 layers, 8 rows: 1 warning, 1 notice)"
    assert str(broken.findings[0]).startswith("warning: dead in layers.1, head 0: ")
    assert all(len(line) <= 130 for line in lines if not line.startswith(" " * 20))


def test_page(broken: Diagnosis, tmp_path: Path) -> None:
    page = Balanced(broken.to_html(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    rows = [int(attrs["data-row"] or "") for tag, attrs in page.tags if tag == "tr" and "data-row" in attrs]
    assert rows[:2] == [4, 3] and sorted(rows) == list(range(8))  # worst first
    assert not [attrs for _, attrs in page.tags if "src" in attrs or "href" in attrs]  # nothing is fetched
    assert sum(tag == "svg" for tag, _ in page.tags) == 8
    for tag, attrs in page.tags:
        for value in (attrs.get("points") or "").split():
            x, y = map(float, value.split(","))
            assert 0 <= x <= 96 and 0 <= y <= 20, tag


def test_fragment(broken: Diagnosis) -> None:
    fragment = Balanced(broken._repr_html_())
    assert not any(tag == "script" for tag, _ in fragment.tags)
    assert "6 rows without findings" in fragment.text
    assert "var(--jp-ui-font-color1" in broken._repr_html_()


def test_what_models_say_is_escaped() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(NASTY.replace(".", ""), Attention())

        def forward(self, x: Tensor) -> Tensor:
            return next(iter(self.children()))(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    found = diagnose(Named(), torch.randn(1, 24, 32))
    view = found.view()
    try:
        for text in (found._repr_html_(), found.to_html(), view.rows.html):
            assert "<script>alert" not in text and "&lt;script&gt;" in text
            assert NASTY in Balanced(text).text
    finally:
        view.close()


def test_explore(broken: Diagnosis) -> None:
    for where, layer, head in (
        (broken.findings[0], "layers.1", 0),
        (6, "layers.1", 2),
        (("layers.0", 1), "layers.0", 1),
    ):
        explorer = broken.explore(where)
        explorer.wait()
        try:
            assert (explorer.selection.layer, explorer.selection.head) == (layer, head)
            row = next(row for row in broken.rows if (row.layer, row.head) == (layer, head))
            length = explorer.profile.shape[1]
            other = (
                70 - length
            )  # the row holds the mean of both samples; past the shorter one that of the longer
            if length > other:
                assert np.allclose(explorer.profile[head][other:], row.profile[other:], rtol=1e-3)
        finally:
            explorer.close()
    with pytest.raises(KeyError, match="head 9"):
        broken.explore(("layers.0", 9))
    with pytest.raises(IndexError):
        broken.explore(99)


def test_view(broken: Diagnosis) -> None:
    view = broken.view(kind="tolerance")
    try:
        assert view.rows.row == 4  # the worst
        assert view.explorer.selection.layer == "layers.1" and view.explorer.kind == "tolerance"
        first = view.explorer
        same = next(
            at for at, row in enumerate(broken.rows) if row.worst == broken.findings[0].sample and at != 4
        )
        view.rows.row = broken.rows.index(broken.rows[same])
        view.explorer.wait()
        assert view.explorer is first or view.children[-1] is view.explorer
        row = broken.rows[same]
        assert (view.explorer.selection.layer, view.explorer.selection.head) == (row.layer, row.head)
    finally:
        view.close()


def test_the_example_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "diagnose.md").read_text(encoding="utf-8")
    script = tmp_path / "example.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), encoding="utf-8")
    (expected,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = runpy.run_path(str(script))
    assert printed.getvalue() == expected + "layers.1.attention 1\n"
    before: Any = names["sound"]
    assert [(f.sign, f.layer, f.head) for f in before.findings] == [
        ("local", "layers.0.attention", h) for h in (0, 2)
    ]
    assert (tmp_path / "diagnosis.html").exists()


def test_every_sign_and_threshold_is_in_the_docs() -> None:
    from dataclasses import fields

    from ess_widgets.learn.diagnosis.advice import ADVICE
    from ess_widgets.learn.diagnosis.findings import SIGNS

    text = (DOCS / "diagnose.md").read_text(encoding="utf-8")
    assert set(ADVICE) == set(SIGNS)
    assert re.findall(r"^\| ([\w-]+) \|", text, re.MULTILINE)[2:] == list(SIGNS)
    for field in fields(ew.learn.Thresholds):
        assert f"`{field.name}`" in text, field.name


def test_a_trained_model_is_not_accused() -> None:
    model, tokenizer = ew.demo.load("SmolLM2-135M-Instruct", fallback=False)
    texts = [
        "The past is what a model keeps of it. A king had three daughters, and the youngest was called Ada. "
        * 2
    ]
    found = diagnose(model, texts, tokenizer)
    assert len(found.table) == 270 and found.table["residual"].max() < 1e-5
    assert {f.severity for f in found.findings} <= {"notice", "info"}
    assert sum(f.severity == "notice" for f in found.findings) <= 3
    assert {f.sign for f in found.findings} <= {"sink", "local"}
    contributions = found.table.groupby("layer")["contribution"].sum()
    assert contributions.tolist() == pytest.approx([1.0] * 30, abs=1e-3)
    sinks = found.table[found.table["findings"] == "sink"]
    assert len(sinks) > 50 and sinks["sink_contribution"].mean() < 0.1 * sinks["sink"].mean()


def test_diagnosing_needs_no_widgets() -> None:
    code = (
        "import sys, torch, ess_widgets as ew\n"
        "a = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)\n"
        "m = torch.nn.Transformer.generate_square_subsequent_mask(20)\n"
        "d = ew.diagnose(a, {'src': torch.randn(1, 20, 8), 'src_mask': m})\n"
        "str(d), d.to_html()\n"
        "print({'pandas', 'anywidget', 'ipywidgets', 'IPython', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.strip() == "set()"
