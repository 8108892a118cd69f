"""The same extension in Notebook 7, which has one document a page."""

from __future__ import annotations

from playwright.sync_api import Browser

from .lab import Server, write_notebook
from .memory_panel import THREE


def test_a_model_is_found_and_explored_beside_the_notebook(server: Server, browser: Browser) -> None:
    write_notebook(server.notebooks / "notebook7.ipynb", [THREE])
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error.stack)))
    page.goto(f"{server.url}/notebooks/notebook7.ipynb?token={server.token}")
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    page.get_by_role("menuitem", name="View").click()
    page.get_by_text("Left Sidebar").hover()
    page.get_by_role("menuitem", name="Memory").click()
    row = page.locator("#ess-widgets-memory .jp-ess-model", has_text="gla")
    row.locator("[data-action=explore]").click()
    page.locator(".jp-ess-view .ess-explorer .ess-state[data-phase=ready]").wait_for()
    # Notebook 7.6 raises one of its own when its View menu opens, without this extension too.
    assert [error for error in errors if "ess-widgets" in error] == []
    page.close()
