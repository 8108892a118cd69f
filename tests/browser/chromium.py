"""Finds a Chromium or Chrome to test in, or gets one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VARIABLES = ("CHROME", "CHROME_PATH", "CHROMIUM", "PLAYWRIGHT_CHROMIUM_EXECUTABLE_PATH")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome.exe")
PLACES = (
    "/usr/lib/chromium/chromium",
    "/opt/google/chrome/chrome",
    "/snap/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
)
DEBIAN_PACKAGES = ("chromium", "fonts-dejavu-core", "fonts-liberation")
HOW_TO_GET_ONE = (
    "The browser tests need Chromium or Chrome and none was found or could be installed: run "
    "`python -m playwright install chromium` or `apt-get install chromium`, or set CHROME to an executable."
)


def _installed() -> Iterator[str]:
    yield from (os.environ[name] for name in VARIABLES if os.environ.get(name))
    yield from (path for name in NAMES if (path := shutil.which(name)))
    yield from PLACES


def _first(candidates: Iterator[str]) -> str | None:
    return next((path for path in candidates if os.access(path, os.X_OK) and Path(path).is_file()), None)


def _quietly(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=600, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_chromium(playwrights_own: str) -> str | None:
    """Path of a browser: an installed one, else Playwright's (installed now if need be), else Debian's.

    Parameters
    ----------
    playwrights_own
        Where Playwright's own Chromium is, or would be once installed.

    Returns
    -------
    str or None
        None where there is none and none can be installed.
    """
    found = _first(_installed()) or _first(iter([playwrights_own]))
    if found is None and _quietly(sys.executable, "-m", "playwright", "install", "chromium"):
        found = _first(iter([playwrights_own]))
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if found is None and is_root and shutil.which("apt-get"):
        _quietly("apt-get", "update")
        _quietly("apt-get", "install", "-y", "--no-install-recommends", *DEBIAN_PACKAGES)
        found = _first(_installed())
    return found
