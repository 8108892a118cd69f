"""The command ``ess-widgets``."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

FIRST_PORT = 8888
TOUR = "tour.ipynb"


class CommandError(Exception):
    """Something the user can put right; shown as one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ess-widgets`` with ``argv`` (default: the process's arguments); returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        _demo(options)
    except CommandError as error:
        print(f"ess-widgets: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ess-widgets", description="See what a sequence model remembers, in linked views in Jupyter."
    )
    parser.add_argument("--version", action="version", version=f"ess-widgets {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="open JupyterLab on the tour notebook, with a trained language model",
        description="Open JupyterLab on your copy of the tour notebook, with the lessons beside it. Your edits are "
        "kept from start to start.",
    )
    demo.add_argument("--no-browser", action="store_true", help="only print the address")
    demo.add_argument(
        "--port", type=int, help=f"port to listen on (default: the first free one from {FIRST_PORT})"
    )
    demo.add_argument(
        "--model",
        metavar="NAME",
        help="a name on the model hub, a local directory, SmolLM2-135M-Instruct (the default), or small: "
        "the model inside this package",
    )
    demo.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where your copies of the notebooks live (default: your data directory)",
    )
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("ess-widgets")
    except importlib.metadata.PackageNotFoundError:
        return "from a source tree, not installed"


def _demo(options: argparse.Namespace) -> None:
    missing = [name for name in ("jupyterlab", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"the demo takes {' and '.join(missing)}: run pip install 'ess-widgets[demo]'")
    if options.model is not None:
        os.environ["ESS_WIDGETS_MODEL"] = checked_model(options.model)
    port = free_port() if options.port is None else checked_port(options.port)
    notebook = working_copy(options.directory or _data_directory())
    browser = not options.no_browser and has_display()

    from ess_widgets.demo.server import serve

    serve(notebook, port=port, browser=browser, token=secrets.token_hex(24))


def checked_model(name: str) -> str:
    """``name``, with a path made absolute: the notebook runs in another directory.

    A name that can only be a path must be a directory.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CommandError(f"--model {name}: no such directory")
    return name


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does: a port in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("localhost", port))
        except OSError:
            return False
    return True


def checked_port(port: int) -> int:
    """``port``, if a server can listen on it."""
    if not 0 < port < 65536:
        raise CommandError(f"--port {port}: a port lies between 1 and 65535")
    if not _can_listen(port):
        raise CommandError(f"--port {port}: in use or not allowed; try --port {free_port()}")
    return port


def free_port(first: int = FIRST_PORT) -> int:
    """The first port from ``first`` that is free, within 100, else any."""
    for port in range(first, first + 100):
        if _can_listen(port):
            return port
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def has_display() -> bool:
    """Whether a graphical browser can open; without one, Python might start a text browser in this terminal."""
    return sys.platform in ("win32", "darwin") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _data_directory() -> Path:
    from platformdirs import user_data_path

    return Path(user_data_path("ess-widgets", appauthor=False))


def shipped_notebooks() -> list[Path]:
    """The tour and the lessons of this installation: in the package, or in the repository of an editable install."""
    package = Path(__file__).resolve().parent
    for place in (package / "notebooks", package.parent / "notebooks"):
        if (place / TOUR).is_file():
            return sorted(place.glob("*.ipynb"))
    raise CommandError(f"no {TOUR} in {package / 'notebooks'}; reinstall ess-widgets")


def working_copy(directory: Path) -> Path:
    """The tour in ``directory`` with the lessons beside it: the user's copies, which keep their edits.

    A copy is made or brought up to date unless it was edited.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        kept = [source.name for source in shipped_notebooks() if not _bring_up_to_date(source, directory)]
    except OSError as error:
        raise CommandError(
            f"cannot write the notebooks to {directory} ({error}); choose another with --directory"
        ) from None
    for name in kept:
        print(f"This version's {name} is newer than your edited copy, which is kept: {directory / name}")
    if kept:
        print("Rename or delete a copy to get the new one.")
    return directory / TOUR


def _bring_up_to_date(source: Path, directory: Path) -> bool:
    """Copy a notebook unless the copy has it already; False where the copy was edited and is therefore behind."""
    copy = directory / source.name
    record = directory / f".{source.stem}.sha256"  # of the shipped notebook that the copy was made from
    shipped = _digest(source)
    if copy.is_file():
        present = _digest(copy)
        origin = record.read_text(encoding="ascii") if record.is_file() else None
        if shipped in (present, origin):
            return True
        if present != origin:
            return False
    shutil.copyfile(source, copy)
    record.write_text(shipped, encoding="ascii")
    return True


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
