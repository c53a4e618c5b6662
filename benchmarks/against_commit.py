"""A benchmark in this checkout and in that of another commit, in turns: how many times the other's its figures are.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.against_commit /tmp/before -- benchmarks.training_step --steps 10

Each round runs the module in a fresh process of each checkout, with this interpreter and its packages; every line of
its output that has `NAME ... N ms` is a figure. Medians over the rounds are compared, and the range over rounds of the
ratios of runs beside each other says how far to trust them.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

FIGURE = re.compile(r"^(?P<name>\S+(?: \S+)*)  .*?(?P<ms>[\d.,]+) ms\b", re.MULTILINE)
HERE = Path(__file__).parents[1]


def figures(checkout: Path, command: list[str]) -> dict[str, float]:
    """Run a benchmark in a checkout; return its milliseconds by name."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=checkout, env=environment, check=True, capture_output=True, text=True
    )
    return {found["name"]: float(found["ms"].replace(",", "")) for found in FIGURE.finditer(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="checkout of the other commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("command", nargs="+", help="after --: a module of benchmarks and its arguments")
    args = parser.parse_args()
    here: dict[str, list[float]] = defaultdict(list)
    there: dict[str, list[float]] = defaultdict(list)
    for number in range(args.rounds):
        for checkout, seconds in sorted(((HERE, here), (args.other.resolve(), there)), reverse=bool(number % 2)):
            for name, value in figures(checkout, args.command).items():
                seconds[name].append(value)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    for name in (name for name in here if name in there):
        ratios = [mine / other for mine, other in zip(here[name], there[name], strict=True)]
        mine, other = statistics.median(here[name]), statistics.median(there[name])
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:28} {mine:8.1f} ms, {other:8.1f} ms there: {mine / other:.3f} x ({spread})")


if __name__ == "__main__":
    main()
