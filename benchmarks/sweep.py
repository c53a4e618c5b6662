"""What a sweep costs: eight TopK dictionaries by `lexray sweep`, against one loop that trains them one after another.

The loops are hand-written PyTorch with all rows in memory and all cores: one with dense products, one with lexray's
sparse ones. Same rows, same number of steps; lexray reads a dataset from this disk, starts Ray and a process for each
trial, evaluates, measures, saves and reports, which is in its time. Before it `lexray plan --measure` foresees time,
memory and bytes, which are compared with what came. `--dummy N` runs N trials of a few steps instead, for what a sweep
takes besides its trials.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.sharding import write_dataset
from benchmarks.sweep_loops import Loop, run_loop
from benchmarks.sweep_runs import (
    Answer,
    Times,
    covered_s,
    lexray,
    logged,
    records_of,
    sweep_content,
    times_of,
    write_sweep,
)
from lexray.tuning.planning.outcome import outcomes
from lexray.tuning.sweep_folder import TrialRecord

TARGET_L0S = (8, 16, 24, 32, 40, 48, 56, 64)
DUMMY_WIDTH, DUMMY_SITE, DUMMY_BATCH, DUMMY_STEPS = 32, 16, 128, 5


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Plan, sweep, loops; each alone on the machine."""
    data, output = str(folder / "data"), str(folder / "out")
    write_dataset(data, args.rows, args.site_width)
    axes = {"architecture": ["topk"], "width": [args.width], "target_l0": list(TARGET_L0S[: args.trials])}
    content = sweep_content(data, output, batch_rows=args.batch_rows, steps=args.steps, axes=axes)
    file = write_sweep(folder / "sweep.yaml", content)
    planned = lexray("plan", file, "--measure", "--json")
    plan = json.loads(planned.out)
    swept = lexray("sweep", file)
    records = records_of(output)
    print(
        f"{len(records)} TopK, site {args.site_width}, width {args.width}, {args.steps} steps of {args.batch_rows} "
        f"rows, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; lexray ran {plan['at_once']} at once"
    )
    last = sum(logged(output, record.trial)[-1]["train/fvu"] for record in records) / len(records)
    _against_loops(args, swept, data, last)
    _shares(swept, output, records, plan["at_once"])
    _plan_and_truth(plan, swept, output, records)
    size = sum(path.stat().st_size for path in Path(data).rglob("*.safetensors"))
    read = sum(_bytes_read(output, record.trial) for record in records)
    print(f"read from the store: {read / 1e6:,.0f} MB, {read / size:.2f} x the dataset; {len(records)} trials")


def _against_loops(args: argparse.Namespace, swept: Answer, data: str, last: float) -> None:
    """`last` is the FVU of lexray's last batches, the mean over trials."""
    torch.set_num_threads(os.cpu_count() or 1)
    for name, is_sparse in (("dense products", False), ("sparse products", True)):
        loop = Loop(
            width=args.width,
            target_l0s=TARGET_L0S[: args.trials],
            steps=args.steps,
            batch_rows=args.batch_rows,
            is_sparse=is_sparse,
        )
        seconds, fvu = run_loop(loop, data)
        print(f"one loop, {name:16} {seconds:7.1f} s   lexray sweep {swept.seconds:7.1f} s", end="")
        print(f"   {swept.seconds / seconds:5.2f} x the loop   last FVU {sum(fvu) / len(fvu):.3f}, lexray {last:.3f}")


def _shares(swept: Answer, output: str, records: Sequence[TrialRecord], at_once: int) -> None:
    """Of the command's wall time."""
    times = [times_of(output, record) for record in records]
    training_s = covered_s([one.training for one in times])
    steps_s = sum(record.timing["train_s"] for record in records)
    places_s = at_once * swept.seconds
    print(f"some trial trained for {training_s / swept.seconds:.1%} of the sweep's wall time", end="; ")
    print(f"steps filled {steps_s / places_s:.1%} of {at_once} places over that time")
    _parts(swept, times, at_once)


def _parts(swept: Answer, times: Sequence[Times], at_once: int) -> None:
    """Where the wall time went."""
    first_s = min(one.alive.begin_s for one in times)
    last_s = max(one.alive.end_s for one in times)
    span_s = last_s - first_s
    alive_s = sum(one.alive.end_s - one.alive.begin_s for one in times)
    none_s = span_s - covered_s([one.alive for one in times])
    ended_s = swept.began_s + swept.seconds
    print(f"  start-up {first_s - swept.began_s:.1f} s, trials {span_s:.1f} s, results {ended_s - last_s:.1f} s")
    print(f"  between first and last trial: none was there for {none_s / span_s:.2%} of the time", end=", ")
    print(f"places were empty for {max(0.0, 1 - alive_s / (at_once * span_s)):.2%}", end=", ")
    print(f"none trained for {1 - covered_s([one.training for one in times]) / span_s:.1%}")


def _plan_and_truth(plan: dict[str, Any], swept: Answer, output: str, records: Sequence[TrialRecord]) -> None:
    metrics = {record.trial: logged(output, record.trial) for record in records}
    for outcome in outcomes(plan, records, metrics):
        print(f"plan / truth  {outcome.name:26} {outcome.ratio:5.2f}   {outcome.predicted:,.0f} / {outcome.real:,.0f}")
    estimated = {trial["id"]: trial for trial in plan["trials"]}
    steps = {r.trial: (estimated[r.trial]["seconds"], r.timing["total_s"]) for r in records}
    ratios = sorted(predicted / real for predicted, real in steps.values())
    print(f"plan / truth  {'wall time of a trial':26} {ratios[0]:5.2f} to {ratios[-1]:.2f}")
    seconds, real = plan["seconds"], swept.seconds
    print(f"plan / truth  {'wall time of the command':26} {seconds / real:5.2f}   {seconds:,.0f} / {real:,.0f}")


def _bytes_read(output: str, trial: str) -> float:
    return max((record.get("data/bytes_read", 0.0) for record in logged(output, trial)), default=0.0)


def dummy(args: argparse.Namespace, folder: Path) -> None:
    """Trials that hardly train."""
    data, output = str(folder / "data"), str(folder / "out")
    write_dataset(data, 8192, DUMMY_SITE)
    axes = {"architecture": ["topk"], "width": [DUMMY_WIDTH], "target_l0": [4], "seed": list(range(args.dummy))}
    steps = DUMMY_STEPS
    content = sweep_content(data, output, batch_rows=DUMMY_BATCH, steps=steps, axes=axes)
    file = write_sweep(folder / "sweep.yaml", content)
    at_once = json.loads(lexray("plan", file, "--json").out)["at_once"]
    swept = lexray("sweep", file)
    records = records_of(output)
    each_s = sum(record.timing["total_s"] for record in records) / len(records)
    print(f"{len(records)} trials of {steps} steps, {at_once} at once, {swept.seconds:.1f} s; {each_s:.1f} s a trial")
    _parts(swept, [times_of(output, record) for record in records], at_once)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site-width", type=int, default=512)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--batch-rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=150, help="of each trial; its rows are one epoch at most")
    parser.add_argument("--rows", type=int, default=2**17 + 2**15, help="rows of the dataset")
    parser.add_argument("--trials", type=int, choices=range(1, len(TARGET_L0S) + 1), default=len(TARGET_L0S))
    parser.add_argument("--dummy", type=int, metavar="N", help="N trials of a few steps, nothing else")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.dummy:
            dummy(args, Path(folder))
        else:
            compare(args, Path(folder))


if __name__ == "__main__":
    main()
