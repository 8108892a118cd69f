"""Teachers with more memory lose more when their state is cut: ``python -m tests.paper.distillation``.

GLA layers of state 16, untrained, whose gates forget more or less (``beta``), are distilled into copies of state 2, 4 and 8
that start as the teacher does but for what depends on the state. The paper matches operators for 800 steps and outputs for 3200; by
default here 150 and 250 (``--operator-steps``, ``--output-steps``). Beside each result: what balanced truncation of the teacher's own operator
to the same state leaves, a recurrence of its own for each sample, which no student of this family can be expected to reach.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

import ess_widgets as ew
from ess_widgets.demo.miniatures.mixers import GLA
from ess_widgets.learn import distil, reduce

RESULTS = Path(__file__).parent / "results" / "distillation.csv"
BETAS, SEEDS, STATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0), (0,), (2, 4, 8)
WIDTH, HEADS, STATE, LENGTH, SAMPLES = 32, 2, 16, 48, 24


def operator_of(layer: Any, x: Tensor) -> Tensor:
    """``T`` of a GLA layer, what capture finds, without running the layer: ``q_i · exp(G_i - G_j) k_j``, ``G`` the sum of log gates."""
    q, k = (part(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (layer.q, layer.k))
    g = torch.nn.functional.logsigmoid(layer.gate(x)).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    G = (g / layer.beta).cumsum(-2)
    decay = (G.unsqueeze(-2) - G.unsqueeze(-3)).clamp(max=0.0).exp()
    return torch.einsum("bhid,bhijd,bhjd->bhij", q * layer.scale, decay, k).tril()


def student_of(teacher: GLA, state: int) -> GLA:
    student = GLA(WIDTH, HEADS, state, beta=teacher.beta)
    same = student.state_dict()
    own = {name: value for name, value in teacher.state_dict().items() if value.shape == same[name].shape}
    student.load_state_dict(same | own)
    return student


def rows(operator_steps: int, output_steps: int) -> Iterator[dict[str, Any]]:
    for seed in SEEDS:
        for beta in BETAS:
            torch.manual_seed(seed)
            teacher = GLA(WIDTH, HEADS, STATE, beta=beta)
            x, held_out = torch.randn(SAMPLES, LENGTH, WIDTH), torch.randn(8, LENGTH, WIDTH)
            captured = ew.capture(teacher, held_out)[0]
            drift = (captured.operator.matrix() - operator_of(teacher, held_out)).abs().max()
            assert drift < 1e-5, f"the operator by hand is not the captured one: {drift}"
            for state in STATES:
                torch.manual_seed(seed)
                student = student_of(teacher, state)
                result = distil(
                    teacher,
                    student,
                    x,
                    operator_steps=operator_steps,
                    output_steps=output_steps,
                    rate=5e-3,
                    validation=held_out,
                    operator_of=operator_of,
                )
                cut = reduce(captured, rank=state)
                truncation = (cut.error.relative**2).mean()
                yield {
                    "seed": seed,
                    "beta": beta,
                    "teacher_ess": round(float(result.teacher_ess.min()), 4),
                    "state": state,
                    "operator_error_start": round(result.operator_error_before, 6),
                    "operator_error": round(result.operator_error_between, 6),
                    "output_error": round(result.output_error, 6),
                    "truncation_error": round(float(truncation), 6),
                    "operator_steps": operator_steps,
                    "output_steps": output_steps,
                }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operator-steps", type=int, default=150)
    parser.add_argument("--output-steps", type=int, default=250)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    start, table = time.process_time(), []
    for row in rows(given.operator_steps, given.output_steps):
        table.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items() if "steps" not in name), flush=True)
    given.results.parent.mkdir(exist_ok=True)
    with given.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    for state in STATES:
        chosen = [row for row in table if row["state"] == state]
        ess = [row["teacher_ess"] for row in chosen]
        correlations = {
            name: spearmanr(ess, [row[name] for row in chosen]).statistic
            for name in ("operator_error", "output_error", "truncation_error")
        }
        print(
            f"state {state}: Spearman of teacher ESS with",
            ", ".join(f"{k} {v:.2f}" for k, v in correlations.items()),
        )
    print(f"{len(table)} distillations, {time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
