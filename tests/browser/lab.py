"""Drives a real JupyterLab in a real browser: notebooks from code cells, kernels, themes, widths, screenshots.

Nothing here sleeps for a fixed time: every step waits for the event that ends it.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page

import ess_widgets
from ess_widgets.demo import server as demo_server

SECONDS = 120.0

# `lab` in the page: what the methods below call. JupyterLab exposes its application as `window.jupyterapp`.
PAGE_SCRIPT = """
window.lab = {
  panel(path) {
    for (const widget of window.jupyterapp.shell.widgets('main')) {
      if (widget.context && widget.context.path === path) return widget;
    }
    throw new Error('no open notebook ' + path);
  },
  kernel(path) { return lab.panel(path).sessionContext.session.kernel; },
  within(seconds, promise, what) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(what + ' took longer than ' + seconds + ' s')), seconds * 1000);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
  },
  async open(path) {
    const panel = await window.jupyterapp.commands.execute('docmanager:open', { path, factory: 'Notebook' });
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.revealed;
    window.jupyterapp.shell.activateById(panel.id);
    await lab.execute(path, '');
  },
  async command(path, name, options) {
    window.jupyterapp.shell.activateById(lab.panel(path).id);
    return window.jupyterapp.commands.execute(name, options || {});
  },
  async execute(path, code) {
    const future = lab.kernel(path).requestExecute({ code, store_history: false });
    let text = '', error = null;
    future.onIOPub = (message) => {
      const content = message.content;
      if (message.header.msg_type === 'stream') text += content.text;
      if (message.header.msg_type === 'execute_result') text += content.data['text/plain'];
      if (message.header.msg_type === 'error') error = content.ename + ': ' + content.evalue;
    };
    await future.done;
    return { text, error };
  },
};
"""


class Server:
    """A JupyterLab of its own, isolated from the user's settings, on ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.notebooks = directory / "notebooks"
        self.notebooks.mkdir(parents=True)
        self.log = directory / "server.log"
        with socket.socket() as probe:  # any free port; other runs of these tests may be starting too
            probe.bind(("localhost", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://localhost:{self.port}"
        self.token = secrets.token_hex(16)
        private = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
        environment = os.environ | demo_server.environment()
        for name in private:
            key = "JUPYTERLAB" + name[3:] if name.startswith("LAB_") else f"JUPYTER_{name}"
            environment[key] = str(directory / name.lower())
        environment["IPYTHONDIR"] = str(directory / "ipython")
        environment["JUPYTER_PREFER_ENV_PATH"] = "1"
        root = str(Path(ess_widgets.__file__).parents[1])  # the kernels import what these tests import
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "jupyterlab", "--LabApp.expose_app_in_browser=True"]
        command += demo_server.arguments(self.notebooks, port=self.port, browser=False, token=self.token)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=directory)
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        give_up = time.monotonic() + SECONDS
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                self.get("/api/status")
                return
            except OSError:
                time.sleep(0.05)  # polling a port: there is no event to wait for
        raise RuntimeError(f"JupyterLab did not come up:\n{self.log.read_text(errors='replace')[-4000:]}")

    def get(self, path: str) -> Any:
        """The server's answer to ``GET path``, from JSON."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End the server and its kernels."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """Write a notebook of these code cells."""
    code = [
        {
            "cell_type": "code",
            "id": f"c{n}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": s,
        }
        for n, s in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    contents = {"cells": code, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(contents), encoding="utf-8")


class Notebook:
    """One notebook open in the browser."""

    def __init__(self, lab: Lab, path: str) -> None:
        self.lab, self.path = lab, path

    @property
    def page(self) -> Page:
        """The browser page it is in."""
        return self.lab.page

    @property
    def panel(self) -> Locator:
        """The notebook's element."""
        return self.page.locator(f"#{self._js('lab.panel(path).id')}")

    def _js(self, expression: str, *, seconds: float = SECONDS, **values: Any) -> Any:
        """Value of a JavaScript expression, in which ``path`` is this notebook's and ``values`` are known by name."""
        names = ", ".join(["path", *values])
        script = f"({{{names}}}) => lab.within({seconds}, Promise.resolve({expression}), {json.dumps(expression[:60])})"
        return self.page.evaluate(script, {"path": self.path, **values})

    def run_all(self, *, seconds: float = SECONDS) -> None:
        """Run every cell and wait until the last is done; a cell that raises is an AssertionError with its traceback."""
        self._js("lab.command(path, 'notebook:run-all-cells')", seconds=seconds)
        self.wait_idle(seconds=seconds)
        for index in range(self.cell_count()):
            for output in self.outputs(index):
                if output["output_type"] == "error":
                    raise AssertionError(f"cell {index} raised\n" + "\n".join(output["traceback"]))

    def start(self, index: int) -> None:
        """Run cell ``index`` without waiting for it."""
        self._js("void (lab.panel(path).content.activeCellIndex = index)", index=index)
        self._js("void lab.command(path, 'notebook:run-cell')")

    def run(self, index: int, *, seconds: float = SECONDS) -> list[dict[str, Any]]:
        """Run cell ``index``, wait for it, and return its outputs."""
        self._js("void (lab.panel(path).content.activeCellIndex = index)", index=index)
        self._js("lab.command(path, 'notebook:run-cell')", seconds=seconds)
        self.wait_idle(seconds=seconds)
        return self.outputs(index)

    def wait_idle(self, *, seconds: float = SECONDS) -> None:
        """Wait until the kernel is idle and no cell waits for it."""
        self.page.wait_for_function(
            """(path) => lab.kernel(path).status === 'idle'
                 && lab.panel(path).content.widgets.every((cell) => cell.model.executionState !== 'running')""",
            arg=self.path,
            timeout=seconds * 1000,
        )

    def cell_count(self) -> int:
        """Number of cells."""
        return int(self._js("lab.panel(path).content.widgets.length"))

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """Outputs of cell ``index`` as nbformat stores them."""
        return list(
            self._js("(lab.panel(path).content.widgets[index].model.toJSON().outputs || [])", index=index)
        )

    def cell(self, index: int) -> Locator:
        """The element of cell ``index``, scrolled into view."""
        self._js("lab.panel(path).content.scrollToItem(index, 'start')", index=index)
        return self.panel.locator(f".jp-Cell[data-windowed-list-index='{index}']")

    def execute(self, code: str, *, seconds: float = SECONDS) -> str:
        """Run ``code`` in the kernel beside the cells; what it printed, and the value of its last line."""
        answer = self._js("lab.execute(path, code)", code=code, seconds=seconds)
        if answer["error"]:
            raise AssertionError(f"the kernel raised {answer['error']}")
        return str(answer["text"])

    def rename(self, name: str) -> None:
        """Give the notebook another name, as a user would by its tab."""
        self._js("lab.panel(path).context.rename(name)", name=name)
        self.path = name

    def interrupt(self) -> None:
        """Interrupt the kernel."""
        self._js("lab.kernel(path).interrupt()")

    def restart(self) -> None:
        """Restart the kernel and wait until it answers."""
        self._js("lab.panel(path).sessionContext.restartKernel()")
        self.execute("")

    def save(self) -> dict[str, Any]:
        """Save, and return the file's contents."""
        self._js("lab.panel(path).context.save()")
        return dict(json.loads((self.lab.server.notebooks / self.path).read_text(encoding="utf-8")))

    def close(self, *, shutdown: bool = False) -> None:
        """Close the tab, unsaved changes included in no file; the kernel goes on unless ``shutdown``."""
        if shutdown:
            self._js("lab.panel(path).sessionContext.shutdown()")
        self._js("void ((panel) => { panel.context.model.dirty = false; panel.close(); })(lab.panel(path))")
        self.page.wait_for_function(
            "(path) => ![...jupyterapp.shell.widgets('main')].some((w) => w.context && w.context.path === path)",
            arg=self.path,
        )

    def reopen(self) -> None:
        """Open the saved file again; it finds its kernel if that is still running."""
        self.lab.show(self.path)


class Lab:
    """A browser page with JupyterLab in it, used by one test after another.

    Attributes
    ----------
    errors
        Uncaught exceptions and console errors of the page since `reset`.
    """

    def __init__(self, server: Server, page: Page) -> None:
        self.server, self.page = server, page
        self.errors: list[str] = []
        self._numbers = itertools.count()
        self._opened: list[Notebook] = []
        page.add_init_script(PAGE_SCRIPT)
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.load()

    def load(self) -> None:
        """Load the page (again) and wait until JupyterLab is ready."""
        self.page.goto(f"{self.server.url}/lab?token={self.server.token}&reset")
        self.page.wait_for_function("() => window.jupyterapp && jupyterapp.restored.then(() => true)")
        self.page.evaluate("() => jupyterapp.shell.collapseLeft()")

    def open(self, cells: Sequence[str], *, name: str | None = None) -> Notebook:
        """Write a notebook of these code cells and open it; its kernel is up when this returns."""
        path = name or f"test-{next(self._numbers)}.ipynb"
        write_notebook(self.server.notebooks / path, cells)
        return self.show(path)

    def show(self, path: str) -> Notebook:
        """Open a notebook that lies in the server's directory."""
        script = f"(path) => lab.within({SECONDS}, lab.open(path), 'opening ' + path)"
        self.page.evaluate(script, path)
        notebook = Notebook(self, path)
        self._opened.append(notebook)
        return notebook

    def set_theme(self, theme: str) -> None:
        """Change to ``"light"`` or ``"dark"`` and wait until it is applied."""
        name = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}[theme]
        self.page.evaluate("(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })", name)
        self.page.wait_for_function("(name) => document.body.dataset.jpThemeName === name", arg=name)

    def set_size(self, width: int, height: int = 900) -> None:
        """Set the viewport, in CSS pixels, and wait until JupyterLab has laid itself out."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.settle()

    def settle(self) -> None:
        """Wait for two frames: layout and resize observers have run and been painted."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def screenshot(self, element: Locator, path: Path) -> Path:
        """Picture of a whole element, which may be taller than the viewport, as PNG."""
        size = self.page.viewport_size or {"width": 1280, "height": 900}
        element.scroll_into_view_if_needed()
        box = element.bounding_box()
        if box is None:
            raise AssertionError("the element to photograph is not shown")
        if box["height"] + 200 > size["height"]:
            self.set_size(size["width"], int(box["height"]) + 300)
            element.scroll_into_view_if_needed()
        path.parent.mkdir(parents=True, exist_ok=True)
        element.screenshot(path=path, animations="disabled")
        if self.page.viewport_size != size:
            self.set_size(size["width"], size["height"])
        return path

    def reset(self) -> None:
        """Close every notebook with its kernel, and go back to the light theme and the usual size."""
        for notebook in {n.path: n for n in self._opened}.values():
            open_paths = self.page.evaluate(
                "() => [...jupyterapp.shell.widgets('main')].filter((w) => w.context).map((w) => w.context.path)"
            )
            if notebook.path in open_paths:
                notebook.close(shutdown=True)
        self._opened.clear()
        self.set_theme("light")
        self.set_size(1280)
        self.errors.clear()
