"""One JupyterLab and one browser for all browser tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from .chromium import HOW_TO_GET_ONE, find_chromium
from .lab import Lab, Server

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Playwright's driver."""
    with sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """One Chromium; fails with one line where there is none."""
    executable = find_chromium(playwright.chromium.executable_path)
    if executable is None:
        pytest.fail(HOW_TO_GET_ONE, pytrace=False)
    browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One JupyterLab."""
    server = Server(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_lab(server: Server, browser: Browser) -> Lab:
    """The page that all tests use one after another."""
    return Lab(server, browser.new_page(viewport={"width": 1280, "height": 900}))


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """JupyterLab without open notebooks, in the light theme, 1280 px wide."""
    shared_lab.errors.clear()
    yield shared_lab
    shared_lab.reset()


Figure = Callable[[str, str], None]
FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def figure(pytestconfig: pytest.Config) -> Figure:
    """Takes a measured figure, to be printed at the end of the run."""
    figures = pytestconfig.stash.setdefault(FIGURES, [])
    return lambda name, value: figures.append((name, value))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured, whether or not anything failed."""
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("measured in the browser")
    for name, value in figures:
        terminalreporter.write_line(f"{name}: {value}")
