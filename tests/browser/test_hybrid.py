"""A hybrid of Mamba and attention: layers of many channels beside heads, in one grid, each by its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .explorer_page import LOAD, TEXT, ExplorerPage
from .lab import Lab
from .test_layout import TEXTS, faults

# Random weights, scaled up so that what is remembered differs along the text.
HYBRID = f"""
{LOAD}
import torch
from transformers import AutoModelForCausalLM, JambaConfig

torch.manual_seed(0)
config = JambaConfig(
    vocab_size=49152, hidden_size=128, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, attn_layer_period=4, attn_layer_offset=2, mamba_d_state=8, mamba_dt_rank=8,
    use_mamba_kernels=False, num_experts=1, num_experts_per_tok=1, pad_token_id=0,
)
model = AutoModelForCausalLM.from_config(config)
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.15)
"""
CELL = f"explorer = ew.explore(model, tokenizer, {TEXT!r}, kind='tolerance', tol=1e-2)\nexplorer"


@pytest.fixture(scope="module")
def page(shared_lab: Lab) -> Iterator[ExplorerPage]:
    notebook = shared_lab.open([HYBRID, CELL])
    notebook.run_all()
    page = ExplorerPage(shared_lab, notebook)
    page.ready()
    page.notebook.execute("explorer.selection.update(layer='model.layers.1.mamba', head=8, position=41)")
    page.ready()
    yield page
    shared_lab.reset()
    shared_lab.set_size(1280, 900)


def test_every_mixer_has_a_row_and_its_family(page: ExplorerPage) -> None:
    families = dict(page.read("[(layer['name'], layer['family']) for layer in explorer.layers]"))
    mamba = {f"model.layers.{i}.mamba": "selective SSM" for i in (0, 1, 3)}
    convolutions = {f"{name}.conv1d": "convolution" for name in mamba}
    assert families == {**mamba, **convolutions, "model.layers.2.self_attn": "softmax attention"}
    assert page.read("max(layer['residual'] for layer in explorer.layers)") < 1e-5
    assert page.read("[layer['of'] for layer in explorer.layers]") == [256, 256, 256, 256, 4, 256, 256]
    status = page.root.locator(".ess-facts").inner_text()
    assert "selective SSM" in status
    assert "channel 64" in status


def test_a_channel_is_chosen_by_its_number(page: ExplorerPage) -> None:
    head = page.part("head")
    assert head.locator("option").all_inner_texts() == [str(8 * k) for k in range(32)]
    head.select_option("240")
    page.expect("explorer.selection.head", 30)
    page.expect("explorer.groups[explorer.selection.head]", 240)
    page.part("layer").select_option("2.self_attn")
    page.expect("explorer.selection.layer", "model.layers.2.self_attn")
    page.expect("explorer.selection.head", 3)  # it has no more
    assert "head 3" in page.root.locator(".ess-facts").inner_text()
    page.notebook.execute("explorer.selection.update(layer='model.layers.1.mamba', head=8)")
    page.expect("explorer.selection.head", 8)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_overlaps_is_cut_off_or_pale(page: ExplorerPage, theme: str, tmp_path: Path) -> None:
    page.lab.set_theme(theme)
    page.lab.set_size(1280, 1300)
    page.lab.settle()
    target = Path(os.environ.get("ESS_WIDGETS_PICTURES") or tmp_path) / f"hybrid-{theme}.png"
    page.lab.screenshot(page.root, target)
    assert faults(page.root.evaluate(TEXTS)) == []
