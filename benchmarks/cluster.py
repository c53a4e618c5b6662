"""What a cluster costs a sweep: the same on one node of Ray and on three, a killed node, more workers for one trial.

All nodes are `ray start` on this machine, so they share its cores: nothing here gets faster by more nodes, and what is
measured is what they cost. Sweeps are sent by `lexray submit`. Times of a busy machine are upper bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.raylets import Raylets, raylets, wait_until
from benchmarks.sharding import write_dataset
from benchmarks.sweep_runs import (
    COMMAND_TIMEOUT_S,
    covered_s,
    lexray,
    logged,
    records_of,
    sweep_content,
    times_of,
    write_sweep,
)

BETWEEN_LOGS = 5
"""Steps."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Seconds of a submitted sweep, and what came of its trials."""

    submit_s: float
    """Until the command was back."""
    first_s: float
    """From then until the first trial began."""
    trials_s: float
    """From the beginning of the first trial to the end of the last."""
    last_s: float
    """From then until the driver had written the results."""
    outside_s: float
    """Of one trial outside of its steps: finding a place, processes, evaluation, saving; the mean."""
    none_trains: float
    """Share of `trials_s` in which no trial was in its steps."""
    bytes_read: float
    """From the store."""

    @property
    def all_s(self) -> float:
        return self.submit_s + self.first_s + self.trials_s + self.last_s


def send(cluster: Raylets, folder: Path, content: dict[str, Any]) -> Sent:
    """Submit a sweep and wait for its end."""
    output = str(content["output"])
    submitted = lexray("submit", write_sweep(folder / f"{Path(output).name}.yaml", content), *cluster.target)
    wait_until(lambda: _state(output) not in ("", "running"), "the end of the sweep", COMMAND_TIMEOUT_S)
    ended_s = time.time()
    records = records_of(output)
    times = [times_of(output, record) for record in records]
    began_s, over_s = min(one.alive.begin_s for one in times), max(one.alive.end_s for one in times)
    back_s = submitted.began_s + submitted.seconds
    outside = [record.timing["total_s"] - record.timing["train_s"] for record in records]
    reads = [max((r.get("data/bytes_read", 0.0) for r in logged(output, one.trial)), default=0.0) for one in records]
    return Sent(
        submit_s=submitted.seconds,
        first_s=began_s - back_s,
        trials_s=over_s - began_s,
        last_s=ended_s - over_s,
        outside_s=sum(outside) / len(outside),
        none_trains=1 - covered_s([one.training for one in times]) / (over_s - began_s),
        bytes_read=sum(reads),
    )


def _state(output: str) -> str:
    """Of the driver, as it says itself; empty where there is none yet."""
    file = Path(output) / "driver.json"
    return str(json.loads(file.read_text())["state"]) if file.exists() else ""


def one_and_three(args: argparse.Namespace, folder: Path, data: str) -> None:
    """The same sweep on the same number of CPUs, as Ray counts them."""
    print(f"a sweep of {args.trials} trials, {args.steps} steps of {args.batch_rows} rows, three at once")
    print(
        f"{'':12} {'all':>8} {'submit':>8} {'to first':>9} {'trials':>8} {'results':>8} {'outside of steps':>17}",
        end="",
    )
    print(f" {'none trains':>12} {'store':>9}")
    found: dict[str, Sent] = {}
    for name, nodes in (("one node", (3,)), ("three nodes", (1, 1, 1))):
        axes = {"architecture": ["topk"], "width": [args.width], "target_l0": [8], "seed": list(range(args.trials))}
        output = str(folder / name.replace(" ", "-"))
        content = sweep_content(data, output, batch_rows=args.batch_rows, steps=args.steps, axes=axes)
        with raylets(folder) as cluster:
            for number, cpus in enumerate(nodes):
                cluster.add(f"n{number}", cpus)
            cluster.await_nodes()
            sent = found[name] = send(cluster, folder, content)
        print(
            f"{name:12} {sent.all_s:6.1f} s {sent.submit_s:6.1f} s {sent.first_s:7.1f} s {sent.trials_s:6.1f} s", end=""
        )
        print(f" {sent.last_s:6.1f} s {sent.outside_s:6.1f} s a trial {sent.none_trains:12.1%}", end="")
        print(f" {sent.bytes_read / 1e6:6.1f} MB", flush=True)
    one, three = found["one node"], found["three nodes"]
    print(f"three / one  {three.all_s / one.all_s:7.2f}   trials {three.trials_s / one.trials_s:.2f}", end="")
    print(f"   outside of steps {three.outside_s / one.outside_s:.2f}   store {three.bytes_read / one.bytes_read:.2f}")


def recovery(args: argparse.Namespace, folder: Path, data: str) -> None:
    """A node is killed amid a trial of two workers on two of three nodes."""
    output = str(folder / "killed")
    axes = {"architecture": ["topk"], "width": [args.width], "target_l0": [8]}
    content = sweep_content(
        data,
        output,
        batch_rows=args.batch_rows,
        steps=args.recovery_steps,
        axes=axes,
        resources={"workers": 2},
        every={"log": BETWEEN_LOGS, "evaluate": 10**6, "checkpoint": args.checkpoint_steps},
    )
    with raylets(folder) as cluster:
        names = [f"n{number}" for number in range(3)]
        for name in names:
            cluster.add(name, 1)
        cluster.await_nodes()
        lexray("submit", write_sweep(folder / "killed.yaml", content), *cluster.target)
        wait_until(lambda: _step(output) > args.checkpoint_steps, "a checkpoint", COMMAND_TIMEOUT_S)
        victim = next(name for name in names if cluster.trains(name))
        before = _step(output)
        cluster.kill(victim)
        seconds = wait_until(lambda: _step(output) > before, "a step beyond", COMMAND_TIMEOUT_S)
        print(
            f"a node is killed at step {before} of {args.recovery_steps}, a step beyond after {seconds:.1f} s",
            flush=True,
        )
        wait_until(lambda: _state(output) not in ("", "running"), "the end of the sweep", COMMAND_TIMEOUT_S)
    (record,) = records_of(output)
    steps = [entry["step"] for entry in logged(output, record.trial)]
    is_once = steps == sorted({*range(BETWEEN_LOGS, args.recovery_steps, BETWEEN_LOGS), args.recovery_steps})
    print("  every logged step is there once" if is_once else f"  logged steps are not there once each: {steps}")


def _step(output: str) -> int:
    return max((r["step"] for file in Path(output).glob("trials/*") for r in logged(output, file.name)), default=0)


def scaling(args: argparse.Namespace, folder: Path, data: str) -> None:
    """One dictionary on more workers of one node; one after another."""
    cores = os.cpu_count() or 1
    print(
        f"one dictionary on more workers, batch {args.batch_rows}; they share {cores} cores, so {cores} x is the most"
    )
    speeds: dict[int, float] = {}
    with raylets(folder) as cluster:
        cluster.add("n0", 4)
        cluster.await_nodes()
        for workers in (1, 2, 4):
            axes = {"architecture": ["topk"], "width": [args.width], "target_l0": [8]}
            output, resources = str(folder / f"workers-{workers}"), {"workers": workers}
            content = sweep_content(
                data, output, batch_rows=args.batch_rows, steps=args.steps, axes=axes, resources=resources
            )
            send(cluster, folder, content)
            (record,) = records_of(output)
            speeds[workers] = record.timing["rows_per_s"]
            print(
                f"  {workers} workers {speeds[workers]:10,.0f} rows/s {speeds[workers] / speeds[1]:6.2f} x", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site-width", type=int, default=256)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=2**17)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--recovery-steps", type=int, default=1500)
    parser.add_argument("--checkpoint-steps", type=int, default=50)
    parts = {"nodes": one_and_three, "recovery": recovery, "scaling": scaling}
    parser.add_argument("--only", choices=tuple(parts))
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, TopK, site {args.site_width}, width {args.width}")
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "data")
        write_dataset(data, args.rows, args.site_width)
        for name, part in parts.items():
            if args.only in (None, name):
                part(args, Path(folder), data)


if __name__ == "__main__":
    main()
