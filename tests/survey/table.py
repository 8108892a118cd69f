"""The survey's table for the docs, and its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "TABLE", "read", "status", "summary", "write"]

RESULTS = Path(__file__).parent / "results" / "survey.json"
TABLE = Path(__file__).parents[2] / "docs" / "capture.md"

_INTRO = """# What `capture` takes of transformers' causal language models

Every configuration that `AutoModelForCausalLM` knows, as a tiny model with random weights, run on a CPU and captured under
every attention implementation that it accepts there. Made by

```
python -m tests.survey
```

with torch {torch} and transformers {transformers}; the numbers are in `tests/survey/results/survey.json`.

* **Expected** are the mixers that a plain forward pass runs, counted by module hooks that know nothing of `capture`: an attention is one
  operator, a Mamba mixer one state-space operator and one convolution, a Gated DeltaNet one delta rule and its convolutions.
* **Whole**: every expected operator has an entry of its family, every residual `‖T u - y‖ / ‖y‖` is at most 1e-4 in float32 and 1e-2 in bfloat16
  (the worst sample and group counts), and the logits are those of the model's own forward pass. A model counts as whole if that holds for
  **every** implementation that it accepts, in float32 and bfloat16.
* **Padded**: the same with the first five tokens of one sample as padding, in float32.
* The counts are checked without names: in every model each module is run again with one token of its input changed; the innermost modules whose later outputs
  change should all lie inside expected mixers or cross-attention. Outside of them this finds {unlisted}.
* Entries beyond the expected, all within the residual's limit: {extra}.
* Of {operators} operators captured in float32 (eager), plain hooks on the modules saw the same output tensor for {seen}; the others lie between two lines of
  one module (before a gate, a bias or a skip), where only the residual and the logits vouch for them.
* Sequences have 24 tokens, windows 6, chunks and index selections 8, so that they bind. Cross-attention is left out. Flash attention needs a GPU, "paged" the engine of
  continuous batching: neither is tried. flex attention runs uncompiled.
"""
_SUMMARY = """**{whole} of {built} models that build here are captured whole: {share}.** {all} configurations; {not_built} cannot be built on this machine
and {not_causal} are not causal by nature; these do not count.
"""
_HEAD = """| model type | class | found / expected | eager | sdpa | flex | worst residual, fp32 | bf16 | padded | families |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def write(results: dict[str, Any], versions: dict[str, str]) -> None:
    """Keep the results, one model a line, and draw the table."""
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(result)}" for name, result in results.items()]
    RESULTS.write_text(
        '{"versions": ' + json.dumps(versions) + ',\n"models": {\n' + ",\n".join(lines) + "\n}}\n"
    )
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(_table(results, versions))


def read() -> dict[str, Any]:
    """The results so far, by model type."""
    models: dict[str, Any] = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    return models


def status(result: dict[str, Any]) -> str:
    """ "whole", "failed", "not causal" or "not built"."""
    rows = _plain(result)
    if "crash" in result:
        return "failed"
    if not any(row["stage"] == "captured" for row in rows):
        return "not built"
    if all(row["verdict"] in ("not causal", "not built") for row in rows):
        return "not causal"
    good = all(row["verdict"] in ("whole", "not built", "not causal") for row in rows)
    return "whole" if good else "failed"


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Counts of models by status, and of attempts by implementation and precision."""
    kinds = {name: status(result) for name, result in results.items()}
    counts: dict[str, Any] = {kind: sum(k == kind for k in kinds.values()) for kind in _STATUS}
    attempts: dict[str, list[int]] = {}
    for name, result in results.items():
        if kinds[name] not in ("whole", "failed"):
            continue
        for row in result["rows"]:
            if row["verdict"] in ("not built", "no padding", "not causal"):
                continue
            label = f"{row['implementation']}, " + ("float32, padded" if row["padding"] else row["dtype"])
            done = attempts.setdefault(label, [0, 0])
            done[0] += row["verdict"] == "whole"
            done[1] += 1
    return {**counts, "built": counts["whole"] + counts["failed"], "attempts": dict(sorted(attempts.items()))}


_STATUS = ("whole", "failed", "not causal", "not built")


def _plain(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if not row["padding"]]


def _table(results: dict[str, Any], versions: dict[str, str]) -> str:
    numbers = summary(results)
    built, whole = numbers["built"], numbers["whole"]
    share = f"{100 * whole / built:.1f} %" if built else "none"
    text = [
        _INTRO.format(**versions, **_checks(results)),
        "## Summary\n",
        _SUMMARY.format(
            share=share, all=len(results), **{k.replace(" ", "_"): v for k, v in numbers.items()}
        ),
        "| implementation | captured whole | of |\n| --- | --- | --- |",
        *(f"| {label} | {done} | {of} |" for label, (done, of) in numbers["attempts"].items()),
        "",
    ]
    groups = {kind: [name for name in results if status(results[name]) == kind] for kind in _STATUS}
    if groups["failed"]:
        text += ["## Failures\n", "| model type | where | reason |", "| --- | --- | --- |"]
        text += [line for name in groups["failed"] for line in _failures(name, results[name])]
        text.append("")
    padded = [n for n in groups["whole"] if any(r["padding"] and _bad(r) for r in results[n]["rows"])]
    if padded:
        text += ["Only with padding:\n", "| model type | where | reason |", "| --- | --- | --- |"]
        text += [line for name in padded for line in _failures(name, results[name])]
        text.append("")
    text += ["## Not counted\n", "| model type | class | reason |", "| --- | --- | --- |"]
    text += [
        f"| {name} | {results[name]['class']} | {kind}: {_why(results[name])} |"
        for kind in ("not causal", "not built")
        for name in groups[kind]
    ]
    text += [
        f"| {name}, {row['implementation']} only | {results[name]['class']} | not causal: {_why({'rows': [row]})} |"
        for name in groups["whole"] + groups["failed"]
        for row in _plain(results[name])
        if row["verdict"] == "not causal" and row["dtype"] == "float32"
    ]
    text += ["", "## All that count\n", _HEAD.rstrip()]
    text += [_line(name, results[name]) for name in results if status(results[name]) in ("whole", "failed")]
    return "\n".join(text) + "\n"


def _checks(results: dict[str, Any]) -> dict[str, Any]:
    """What the checks without names and by hooks found."""
    rows = {name: row for name, result in results.items() for row in result["rows"] if "hooked" in row}
    others = {name: row["unlisted"] for name, row in rows.items() if row.get("unlisted")}
    listed = "; ".join(f"{', '.join(modules)} in {name}" for name, modules in others.items())
    extra = {name: row["extra"] for name, row in rows.items() if row.get("extra")}
    beyond = "; ".join(f"{len(entries)} in {name} ({entries[0]}, ...)" for name, entries in extra.items())
    return {
        "unlisted": listed or "nothing",
        "extra": beyond or "none",
        "seen": sum(row["hooked"][0] for row in rows.values()),
        "operators": sum(row["hooked"][1] for row in rows.values()),
    }


def _bad(row: dict[str, Any]) -> bool:
    return row["verdict"] not in ("whole", "not built", "no padding", "not causal")


def _failures(name: str, result: dict[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for row in filter(_bad, result["rows"]):
        where = f"{row['implementation']} {_DTYPE[row['dtype']]}" + (", padded" if row["padding"] else "")
        reasons.setdefault(_cell(row["reason"], 300), []).append(where)
    if "crash" in result:
        reasons[result["crash"]] = ["process"]
    return [f"| {name} | {'; '.join(where)} | {reason} |" for reason, where in reasons.items()]


_DTYPE = {"float32": "fp32", "bfloat16": "bf16"}


def _why(result: dict[str, Any]) -> str:
    reasons = [row["reason"] for row in result["rows"]]
    answers = [row["answer"] for row in result["rows"] if "answer" in row]
    told = f". capture: {answers[0]}" if answers else ""
    return _cell((reasons[0] if reasons else "nothing ran") + told, 360)


def _line(name: str, result: dict[str, Any]) -> str:
    rows = result["rows"]
    captured = [row for row in rows if "residual" in row and not row["padding"]]
    first: dict[str, Any] = next((row for row in rows if "mixers" in row), {})
    found = min((row["found"] for row in captured), default=0)
    families = sorted({family for row in captured for family in row["families"]})
    cells = [
        name,
        result["class"],
        f"{found} / {first.get('mixers', '?')}",
        *(_mark([r for r in _plain(result) if r["implementation"] == i]) for i in _IMPLEMENTATIONS),
        *(_residual(captured, dtype) for dtype in ("float32", "bfloat16")),
        _mark([row for row in rows if row["padding"]]),
        ", ".join(families),
    ]
    return f"| {' | '.join(cells)} |"


_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


def _mark(rows: list[dict[str, Any]]) -> str:
    verdicts = {row["verdict"] for row in rows} - {"not built", "no padding", "not causal"}
    return "–" if not verdicts else "✓" if verdicts == {"whole"} else "✗"


def _residual(rows: list[dict[str, Any]], dtype: str) -> str:
    values = [row["residual"] for row in rows if row["dtype"] == dtype]
    return f"{max(values):.0e}" if values else "–"


def _cell(text: str, limit: int) -> str:
    text = text.replace("|", "/").replace("\n", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"
