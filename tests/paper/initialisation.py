"""ESS at initialisation against state-size, on Gaussian input of 512 positions.

``python -m tests.paper.initialisation`` from the root of the repository writes ``results/initialisation.csv`` beside
this file.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas

from ess_widgets.learn import find_scale, init_profile

STATES = (16, 32, 64, 128, 256)
# Where Δ = ln 2 and gates are 2^(-1/16), and where they depend on the input.
FEATURIZERS = [
    ("S6", {}),
    ("GLA-S6", {"alpha": 1.0}),
    ("GLA-S6", {"alpha": 16.0}),
    ("GLA-S6", {"alpha": 256.0}),
    ("GLA-S6", {"alpha": 1024.0}),
    ("GLA-S6", {"alpha": 16384.0}),
    ("GLA", {"beta": 16.0}),
    ("WLA", {"beta": 16.0}),
    ("LA", {}),
    ("GDN", {"beta": 16.0}),
    ("SA", {}),
    ("S6", {"spread": 1.0}),
    ("GLA-S6", {"alpha": 1024.0, "spread": 1.0}),
    ("GLA-S6", {"alpha": 16384.0, "spread": 1.0}),
    ("GLA", {"beta": 16.0, "spread": 1.0}),
    ("GDN", {"beta": 16.0, "spread": 1.0}),
]


def table() -> pandas.DataFrame:
    """A row for each featurizer and state-size; then, for a state of 64, the scales that give an ESS of 32."""
    frames = []
    for name, options in FEATURIZERS:
        for kind, tol in (("entropy", 0.0), ("tolerance", 1e-3)):
            found = init_profile(name, STATES, batch=8, kind=kind, tol=tol or 1e-3, **options)
            frames.append(found.frame().assign(slope=found.slope, tol=tol))
            print(found, flush=True)
    for name, parameter in (("GLA-S6", "alpha"), ("GLA", "beta")):
        for target in (8.0, 32.0, 48.0):
            scale = find_scale(name, target, 64, parameter, batch=8)
            print(f"{name}, state 64: {scale}", flush=True)
            row = {
                "featurizer": name,
                parameter: scale.value,
                "state": 64,
                "ess": scale.ess,
                "length": 512,
                "position": 256,
                "kind": "entropy",
                "wanted": target,
            }
            frames.append(pandas.DataFrame([row]))
    return pandas.concat(frames, ignore_index=True)


def main() -> None:
    begin = time.process_time()
    path = Path(__file__).parent / "results" / "initialisation.csv"
    path.parent.mkdir(exist_ok=True)
    table().to_csv(path, index=False, float_format="%.5g")
    print(f"{time.process_time() - begin:.0f} s of one core's time, {path.name} written")


if __name__ == "__main__":
    main()
