"""The rooms of the package know only the rooms before them, and importing it stays light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ess_widgets

ROOT = Path(ess_widgets.__file__).parent
LEAVES = {"learn", "tasks", "demo", "cli", "lab"}
# What each room may import of the package, beside itself.
KNOWS = {
    "operators": set(),
    "metrics": {"operators"},
    "capture": {"operators"},
    "figures": {"operators", "metrics"},
    "widgets": {"operators", "metrics", "capture"},
    "tasks": set(),
    "learn": {"operators", "metrics", "capture", "figures", "widgets"},
    "lab": {"operators", "metrics", "capture", "widgets", "learn"},
    "demo": {"operators", "metrics", "capture", "figures", "widgets", "tasks", "learn"},
}
FRONT_ENDS = {"transformers", "matplotlib", "IPython", "anywidget", "ipywidgets", "traitlets", "jupyterlab"}
# Packages that a room must not import anywhere, not even inside a function.
FOREIGN = {
    "operators": FRONT_ENDS,
    "metrics": FRONT_ENDS,
    "capture": FRONT_ENDS,
    "widgets": {"transformers", "matplotlib"},
    "figures": {"transformers", "IPython", "anywidget", "ipywidgets"},
}


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a source imports, anywhere in it, as a full dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def files(room: str) -> list[Path]:
    module = ROOT / f"{room}.py"
    return [module] if module.exists() else sorted((ROOT / room).rglob("*.py"))


def names(room: str) -> set[tuple[str, ...]]:
    """What a room imports, as dotted names in parts."""
    found = set()
    for path in files(room):
        package = ".".join(["ess_widgets", *path.relative_to(ROOT).parts[:-1]])
        found |= {tuple(name.split(".")) for name in imports(path.read_text(encoding="utf-8"), package)}
    return found


def test_imports_are_found_wherever_and_however_they_are_written() -> None:
    source = """
import os, ess_widgets.demo.small
from ess_widgets import widgets as w
from . import reference
from .. import capture
from ..widgets.wire import pack
def f():
    from ess_widgets.tasks import x
    importlib.import_module("ess_widgets.learn.y")
"""
    assert set(imports(source, "ess_widgets.metrics")) == {
        "os",
        "ess_widgets.demo.small",
        "ess_widgets.widgets",
        "ess_widgets.metrics.reference",
        "ess_widgets.capture",
        "ess_widgets.widgets.wire.pack",
        "ess_widgets.tasks.x",
        "ess_widgets.learn.y",
    }


@pytest.mark.parametrize("room", ["operators", "metrics", "capture", "widgets"])
def test_rooms_exist(room: str) -> None:
    assert files(room)


@pytest.mark.parametrize("room", KNOWS)
def test_rooms_know_only_the_rooms_before_them(room: str) -> None:
    rooms = {parts[1] for parts in names(room) if parts[0] == "ess_widgets" and len(parts) > 1}
    assert rooms - {"__version__"} <= KNOWS[room] | {room}
    assert ("ess_widgets",) not in names(room)  # the package as a whole is every room


@pytest.mark.parametrize("room", FOREIGN)
def test_rooms_leave_foreign_packages_alone(room: str) -> None:
    assert not {parts[0] for parts in names(room)} & FOREIGN[room]


def test_nothing_imports_the_leaves() -> None:
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in LEAVES or parts == ("__init__",):  # the front door opens them when they are asked for
            continue
        package = ".".join(["ess_widgets", *parts[:-1]])
        for name in imports(path.read_text(encoding="utf-8"), package):
            assert name.split(".")[:1] != ["ess_widgets"] or not set(name.split(".")[1:2]) & LEAVES, (
                path,
                name,
            )


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_no_front_end() -> None:
    loaded = set(run("import sys, ess_widgets\nprint(*sys.modules)").split())
    assert "torch" in loaded
    assert not loaded & FRONT_ENDS
    assert not {name for name in loaded if name.split(".")[1:2] in [[room] for room in ("widgets", *LEAVES)]
                and name.startswith("ess_widgets.")}  # fmt: skip


def test_importing_the_rooms_for_training_stays_light() -> None:
    loaded = set(
        run("import sys, ess_widgets.learn, ess_widgets.tasks, ess_widgets.demo\nprint(*sys.modules)").split()
    )
    assert not loaded & {
        "pandas",
        "scipy",
        "matplotlib",
        "IPython",
        "transformers",
        "lightning",
        "tensorboard",
    }


def test_the_public_names() -> None:
    assert set(ess_widgets.__all__) <= set(dir(ess_widgets))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ess_widgets.nothing


@pytest.mark.parametrize("name", [name for name in ess_widgets.__all__ if name != "__version__"])
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(ess_widgets, name) is not None


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import ess_widgets.capture",
        "from ess_widgets.capture import Capture",
        "import ess_widgets.widgets",
        "import ess_widgets as ew; ew.Capture, ew.Explorer",
    ],
)
def test_capture_is_the_function_whatever_was_imported_before(before: str) -> None:
    """The subpackage of the same name must not take its place."""
    code = "import ess_widgets as ew\nfrom ess_widgets import capture\nprint(type(capture).__name__, ew.capture is capture)"
    assert run(f"{before}\n{code}").split() == ["function", "True"]
