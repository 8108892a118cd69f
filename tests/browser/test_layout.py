"""How the explorer looks: at every width and in both themes nothing overlaps, nothing is cut off, all text is legible.

The pictures are kept where the environment variable ESS_WIDGETS_PICTURES says, else in pytest's temporary directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .explorer_page import LOAD, TEXT, ExplorerPage
from .lab import Lab

CELL = f"explorer = ew.explore(model, tokenizer, {TEXT!r}, kind='tolerance', tol=1e-2)\nexplorer"

# Every visible run of text in the element: its box, what it says, its contrast, and by how much it is cut off.
TEXTS = """
(root) => {
  const luminance = ([r, g, b]) => {
    const f = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const style = getComputedStyle(element);
    if (!node.data.trim() || style.visibility === 'hidden' || element.closest('option, [hidden]')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = [...range.getClientRects()].filter((box) => box.width > 0.5 && box.height > 0.5);
    if (boxes.length === 0) continue;
    const background = behind(element);
    const [a, b] = [luminance(over(rgba(style.color), background)), luminance(background)].sort((x, y) => y - x);
    let cut = 0;
    const clip = element.closest('.ess-tokens, textarea') ? null : element;
    if (clip) cut = Math.max(clip.scrollWidth - clip.clientWidth, 0) * (style.display === 'inline' ? 0 : 1);
    found.push({
      text: node.data.trim().slice(0, 60),
      contrast: (a + 0.05) / (b + 0.05),
      cut,
      scrolled: Boolean(element.closest('.ess-tokens')),
      boxes: boxes.map(({ left, top, right, bottom }) => [left, top, right, bottom]),
    });
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def page(shared_lab: Lab) -> Iterator[ExplorerPage]:
    """One explorer for the pictures of this file."""
    notebook = shared_lab.open([LOAD, CELL])
    notebook.run_all()
    page = ExplorerPage(shared_lab, notebook)
    page.ready()
    page.notebook.execute("explorer.selection.update(layer=15, head=1, position=41)")
    page.ready()
    yield page
    shared_lab.reset()
    shared_lab.set_size(1280, 900)


def overlap(a: list[float], b: list[float]) -> float:
    """Smaller side of the intersection of two boxes, in pixels."""
    return min(min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))


def faults(texts: list[dict[str, Any]]) -> list[str]:
    """What a reader would complain of."""
    found = [f"contrast {t['contrast']:.2f}: {t['text']!r}" for t in texts if t["contrast"] < 4.5]
    found += [f"cut off by {t['cut']} px: {t['text']!r}" for t in texts if t["cut"] > 1]
    still = [t for t in texts if not t["scrolled"]]
    for n, first in enumerate(still):
        for second in still[n + 1 :]:
            # Two pixels: the boxes of text are taller than its letters.
            if max(overlap(a, b) for a in first["boxes"] for b in second["boxes"]) > 2:
                found.append(f"{first['text']!r} overlaps {second['text']!r}")
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [700, 1000, 1280, 1600])
def test_nothing_overlaps_is_cut_off_or_pale(
    page: ExplorerPage, theme: str, width: int, tmp_path: Path
) -> None:
    page.lab.set_theme(theme)
    page.lab.set_size(width, 1300)
    page.lab.settle()
    target = Path(os.environ.get("ESS_WIDGETS_PICTURES") or tmp_path) / f"explorer-{theme}-{width}.png"
    with Image.open(page.lab.screenshot(page.root, target)) as image:
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50, "the picture is almost empty"
    texts = page.root.evaluate(TEXTS)
    assert len(texts) > 40
    assert faults(texts) == []
    overflow = page.root.evaluate("(root) => root.scrollWidth - root.clientWidth")
    assert overflow <= 1, f"the explorer is {overflow} px wider than its place"


def test_the_check_sees_faults(page: ExplorerPage) -> None:
    """A pale label, laid over another and cut off, is found."""
    page.root.evaluate(
        """(root) => {
          const bad = document.createElement('div');
          bad.className = 'planted';
          bad.textContent = 'a planted label that is far too long';
          const over = root.querySelector('h3').getBoundingClientRect(), box = root.getBoundingClientRect();
          Object.assign(bad.style, { position: 'absolute', color: '#aaa', background: '#fff', width: '60px',
            whiteSpace: 'nowrap', overflow: 'hidden', left: over.left - box.left + 'px', top: over.top - box.top + 'px' });
          root.style.position = 'relative';
          root.append(bad);
        }"""
    )
    try:
        found = " ".join(faults(page.root.evaluate(TEXTS)))
        assert "contrast" in found and "cut off" in found and "overlaps" in found
    finally:
        page.root.evaluate("(root) => { root.querySelector('.planted').remove(); root.style.position = ''; }")
