"""``python -m tests.survey``: run the survey and write its table."""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version

from tests.survey.run import all_types, hide_kernels, sweep
from tests.survey.table import read, status, summary, write


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.survey", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all of them by default")
    parser.add_argument("--resume", action="store_true", help="only those without a result")
    parser.add_argument("--failures", action="store_true", help="only those that are not captured whole")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    hide_kernels()
    known = all_types()
    versions = {name: version(name) for name in ("torch", "transformers")}
    results = read()
    chosen = options.types or list(known)
    if options.resume:
        chosen = [name for name in chosen if name not in results]
    if options.failures:
        chosen = [name for name in chosen if name not in results or status(results[name]) != "whole"]
    start = time.monotonic()
    for number, (name, result) in enumerate(sweep(chosen, options.processes), 1):
        results[name] = {"class": known[name], **result}
        write({key: results[key] for key in known if key in results}, versions)
        told = ", ".join(
            f"{row['implementation']} {row['dtype']}: {row['verdict']}" for row in result["rows"]
        )
        print(
            f"{number}/{len(chosen)} {name} ({result['seconds']} s) {status(results[name])}: {told}",
            flush=True,
        )
    write({key: results[key] for key in known if key in results}, versions)
    numbers = summary(results)
    print(f"{numbers['whole']} of {numbers['built']} captured whole; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
