"""Fixtures that every kind of test shares."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: Playwright leaves an event loop running in this thread, where others start their own."""
    items.sort(key=lambda item: "browser" in item.path.parts)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fixtures of a module or session draw the same numbers, whichever test is the first to ask for them."""
    _seed()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whatever ran before it; what it seeds itself comes after."""
    _seed()


def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def smollm2() -> tuple[nn.Module, Any]:
    """The real SmolLM2-135M-Instruct in float32 and its tokenizer; fails, with the reasons, where it cannot be had."""
    from ess_widgets import demo

    return demo.load("SmolLM2-135M-Instruct", fallback=False)


@pytest.fixture(scope="session")
def small_model() -> tuple[nn.Module, Any]:
    """The small byte-level model inside the package and its tokenizer."""
    from ess_widgets import demo

    return demo.load("small")
