"""A directory made once and used many times: whole or absent, checked on every use, made by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["cache_root", "cached_directory", "is_intact"]

MANIFEST = "manifest.json"
LOCK_SECONDS = 900.0


def cache_root() -> Path:
    """The user's cache directory for this package; ``XDG_CACHE_HOME`` is respected on Linux."""
    from platformdirs import user_cache_path

    return Path(user_cache_path("ess-widgets", appauthor=False))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)


def is_intact(directory: Path) -> bool:
    """Whether every file that the manifest names is there with the contents it had when it was written."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(
            _sha256(directory / name) == digest for name, digest in manifest.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def cached_directory(
    target: Path, make: Callable[[Path], None], *, say: Callable[[str], None] = print
) -> Path:
    """Return ``target``, after filling it with ``make`` if it is missing or damaged.

    Parameters
    ----------
    target
        The finished directory. It appears by one rename, so that a process that is killed leaves nothing half done.
    make
        Called with an empty directory on the same file system, which it fills.
    say
        Told when a damaged directory is replaced.

    Raises
    ------
    TimeoutError
        Another process has held the lock for longer than a conversion can take.
    """
    from filelock import FileLock, Timeout

    if is_intact(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f"{target.name}.lock"), timeout=LOCK_SECONDS)
    try:
        with lock:
            if is_intact(target):  # another process made it while this one waited
                return target
            prefix = f".{target.name}-"
            for leftover in target.parent.glob(
                f"{prefix}*"
            ):  # of a process that was killed: we hold the lock
                shutil.rmtree(leftover, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                make(partial)
                manifest = {p.relative_to(partial).as_posix(): _sha256(p) for p in _files(partial)}
                (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                if target.exists():
                    say(f"The copy in {target} is damaged; replacing it.")
                    shutil.rmtree(target)
                os.replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise TimeoutError(f"another process has held {lock.lock_file} for {LOCK_SECONDS:.0f} s") from None
    return target
