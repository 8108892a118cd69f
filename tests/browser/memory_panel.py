"""The side panel in JupyterLab, and how its parts are found there."""

from __future__ import annotations

from playwright.sync_api import Locator

from .lab import Lab

THREE = """
import torch, ess_widgets as ew
from ess_widgets import demo
model, tokenizer = demo.load("small")
gla, _ = demo.load("bytes-GLA")
lstm = torch.nn.LSTM(8, 16, batch_first=True)
x = torch.randn(1, 24, 8)
"""


class MemoryPanel:
    """The panel, opened."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.page = lab, lab.page
        self.root: Locator = self.page.locator("#ess-widgets-memory")
        self.page.evaluate("() => jupyterapp.commands.execute('ess-widgets:show')")
        self.root.wait_for()

    @property
    def names(self) -> list[str]:
        """Names of the models that are listed."""
        return self.root.locator(".jp-ess-name").all_inner_texts()

    def model(self, name: str) -> Locator:
        """The row of a model, waited for."""
        row = self.root.locator(".jp-ess-model").filter(
            has=self.page.locator(".jp-ess-name").get_by_text(name, exact=True)
        )
        row.wait_for()
        return row

    def press(self, name: str, action: str) -> None:
        """Press a button of a model's row."""
        self.model(name).locator(f"[data-action={action}]").click()

    def layers(self) -> Locator:
        """Rows of layers."""
        return self.root.locator(".jp-ess-layer")

    @property
    def views(self) -> Locator:
        """Tabs that the panel opened."""
        return self.page.locator(".jp-ess-view")

    def close_views(self) -> None:
        """Close every tab that the panel opened, and fold it."""
        self.page.evaluate(
            """() => {
              for (const area of ['main', 'right']) {
                for (const one of [...jupyterapp.shell.widgets(area)]) {
                  if (one.id.startsWith('ess-widgets-view')) one.dispose();
                }
              }
              if (jupyterapp.shell.collapseLeft) jupyterapp.shell.collapseLeft();
            }"""
        )
