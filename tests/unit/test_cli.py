"""The command `ess-widgets`, run as a user runs it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

import ess_widgets
from ess_widgets import cli

ROOT = Path(ess_widgets.__file__).parents[1]


def environment(home: Path) -> dict[str, str]:
    """No display, and a user's directories of our own."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "ESS_WIDGETS_MODEL")
    }
    private = {
        "XDG_DATA_HOME": home / "data",
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
    }
    return {
        **kept,
        **{k: str(v) for k, v in private.items()},
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ess_widgets.cli", *arguments]
    return subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, check=False, timeout=120
    )


@contextmanager
def demo(*arguments: str, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `ess-widgets demo` and the address that it printed."""
    command = [sys.executable, "-m", "ess_widgets.cli", "demo", *arguments]
    process = subprocess.Popen(
        command, env=environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        seen = ""
        while (found := re.search(r"http://\S+", seen)) is None:
            line = process.stdout.readline()
            assert line, f"it ended without an address:\n{seen}"
            seen += line
        yield process, found.group()
    finally:
        process.kill()
        process.wait()


def fetch(url: str, path: str, post: dict[str, str] | None = None) -> Any:
    """The server's answer to GET (or POST) ``path``, with the token in ``url``."""
    base, token = re.fullmatch(r"(http://[^/]+)/.*token=(\w+)", url).groups()  # type: ignore[union-attr]
    request = urllib.request.Request(
        base + path,
        headers={"Authorization": f"token {token}"},
        data=None if post is None else json.dumps(post).encode(),
    )
    give_up = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def test_version_and_help(tmp_path: Path) -> None:
    version = run("--version", home=tmp_path)
    assert version.returncode == 0
    assert version.stdout.strip() == f"ess-widgets {importlib.metadata.version('ess-widgets')}"
    bare = run(home=tmp_path)
    assert bare.returncode == 0
    assert "demo" in bare.stdout
    assert run("nonsense", home=tmp_path).returncode == 2


def test_demo_serves_the_tour_with_the_lessons_and_ends_on_interrupt(tmp_path: Path) -> None:
    shipped = {path.name: path for path in cli.shipped_notebooks()}
    assert len(shipped) > 1
    with demo("--model", "small", home=tmp_path) as (process, url):
        assert "/lab/tree/tour.ipynb?token=" in url
        tour = fetch(url, "/api/contents/tour.ipynb?type=file&format=text")
        assert tour["content"] == shipped["tour.ipynb"].read_text(encoding="utf-8")
        beside = {file["name"] for file in fetch(url, "/api/contents/")["content"]}
        assert beside == set(shipped)
        kernel = fetch(url, "/api/kernels", post={"name": "python3"})
        connection = next((tmp_path / "runtime").glob(f"kernel-{kernel['id']}*.json"))
        client = BlockingKernelClient(connection_file=str(connection))
        client.load_connection_file()
        client.start_channels(hb=False)  # a kernel that is slow to start is not dead
        client.wait_for_ready(timeout=60)
        client.stop_channels()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert not connection.exists(), "the kernel was left behind"
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()


def test_edits_survive_a_second_start_and_what_was_deleted_comes_back(tmp_path: Path) -> None:
    copy = cli.working_copy(tmp_path)
    assert copy.name == "tour.ipynb"
    shipped = cli.shipped_notebooks()
    for source in shipped:
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()
    lesson, deleted = (tmp_path / source.name for source in shipped[:2])
    copy.write_text("edited", encoding="utf-8")
    lesson.write_text("edited", encoding="utf-8")
    deleted.unlink()
    assert cli.working_copy(tmp_path) == copy
    assert copy.read_text(encoding="utf-8") == lesson.read_text(encoding="utf-8") == "edited"
    assert deleted.read_bytes() == shipped[1].read_bytes()


def test_newer_notebooks_replace_only_unedited_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unedited, edited, other = tmp_path / "unedited", tmp_path / "edited", tmp_path / "other"
    cli.working_copy(unedited)
    cli.working_copy(edited).write_text("edited", encoding="utf-8")
    lesson = next(path.name for path in cli.shipped_notebooks() if path.name != "tour.ipynb")
    other.mkdir()
    (other / lesson).write_text("a notebook of the user's own that has the same name", encoding="utf-8")
    newer = tmp_path / "newer"
    newer.mkdir()
    for name in ("tour.ipynb", lesson):
        (newer / name).write_text("newer", encoding="utf-8")
    monkeypatch.setattr(cli, "shipped_notebooks", lambda: sorted(newer.glob("*.ipynb")))

    def contents(directory: Path) -> list[str]:
        return [(directory / name).read_text(encoding="utf-8") for name in ("tour.ipynb", lesson)]

    assert cli.working_copy(unedited) == unedited / "tour.ipynb"
    assert contents(unedited) == ["newer", "newer"]
    assert capsys.readouterr().out == ""
    cli.working_copy(edited)
    assert contents(edited) == ["edited", "newer"]
    assert f"tour.ipynb is newer than your edited copy, which is kept: {edited}" in capsys.readouterr().out
    cli.working_copy(other)
    assert contents(other) == ["newer", "a notebook of the user's own that has the same name"]
    assert f"{lesson} is newer than your edited copy" in capsys.readouterr().out


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run("demo", "--directory", str(tmp_path / "file" / "below"), home=tmp_path)
    assert done.returncode == 1
    assert "--directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_an_error_and_is_passed_over_by_default(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("demo", "--port", str(port), home=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"--port {port}: in use" in done.stderr
        assert cli.free_port(port) != port
    assert run("demo", "--port", "70000", home=tmp_path).returncode == 1


def test_models_are_checked_before_the_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    assert cli.checked_model("weights") == str(tmp_path / "weights")
    assert cli.checked_model("someone/some-model") == "someone/some-model"
    done = run("demo", "--model", "./missing", home=tmp_path)
    assert done.returncode == 1
    assert "--model ./missing: no such directory" in done.stderr


def test_without_jupyterlab_the_extra_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['jupyterlab'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'jupyterlab' else find(name)\n"
        "from ess_widgets.cli import main; raise SystemExit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'ess-widgets[demo]'" in done.stderr


NO_DELAY = """
import asyncio, socket, sys, warnings
from pathlib import Path
from jupyterlab.labapp import LabApp
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect
from ess_widgets.cli import free_port
from ess_widgets.demo.server import NoDelayConnection, arguments

async def main():
    app = LabApp.initialize_server(argv=arguments(Path(sys.argv[1]), port=free_port(), browser=False, token="t"))
    app.start_app()
    kernel = await app.kernel_manager.start_kernel()
    request = HTTPRequest(f"ws://localhost:{app.port}/api/kernels/{kernel}/channels?session_id=s&token=t")
    browser = await websocket_connect(request)
    [connection] = NoDelayConnection._open_sockets
    stream = connection.websocket_handler.ws_connection.stream
    print("option:", stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    browser.close()
    await app._cleanup()

asyncio.run(main())
"""


def test_the_kernel_websocket_sends_small_messages_at_once(tmp_path: Path) -> None:
    """TCP_NODELAY, read from the server's socket of a real connection to a real kernel."""
    done = subprocess.run(
        [sys.executable, "-c", NO_DELAY, str(tmp_path)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    options = re.findall(r"^option: (\d+)$", done.stdout, flags=re.MULTILINE)
    assert len(options) == 1, done.stderr
    assert int(options[0]) != 0
