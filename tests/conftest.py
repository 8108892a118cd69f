"""Fixtures that every kind of test shares."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: Playwright leaves an event loop running in this thread, where others start their own."""
    items.sort(key=lambda item: "browser" in item.path.parts)


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
