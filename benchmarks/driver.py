"""What the driver of a sweep takes, where trials cost nothing: hundreds of them that only wait.

The driver is lexray's own with everything that it does for a sweep: Ray Tune, the placer, views that read what trials
write, records, results. A trial asks for its nodes, writes its metrics and record, and sleeps in between. So whatever a
place is empty for between two trials is the driver's, and Ray's, and the machine is idle but for them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from benchmarks.sharding import write_dataset
from benchmarks.sweep_runs import Interval, records_of, sweep_content, write_sweep
from lexray.cluster.ray_backend.connect import PROCESS_ENV
from lexray.storage.config_file import read_config_file
from lexray.tuning.driver import Driver
from lexray.tuning.driver_record import this_place
from lexray.tuning.endings.budget import UsageMeter, read_usage
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.ray_backend.tuner import Work
from lexray.tuning.records import new_record
from lexray.tuning.results.report import build_results
from lexray.tuning.sweep_folder import DONE, RUNNING, TrialRecord
from lexray.tuning.sweep_plan import plan_sweep
from lexray.tuning.views.progress import TerminalView

REPORTS = 20
"""What a training tells Tune at most."""
SITE_WIDTH, BATCH_ROWS = 16, 128


def waiting(seconds: float) -> Work:
    """A trial's function that waits so long."""

    def trial(config: dict[str, Any]) -> None:
        run: TrialRun = config["run"]
        began_s = time.time()
        record = new_record(run.trial, status=RUNNING)
        run.folder.write_trial(record)
        assert run.rooms is not None
        assert run.rooms.take(run.trial.id, run.trial.name, run.meshes) is not None
        for step, metrics in enumerate(_metrics(), 1):
            time.sleep(max(0.0, began_s + seconds * step / REPORTS - time.time()))
            run.store.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in _metrics()[:step]).encode())
            tune.report(metrics)
        meter = UsageMeter(
            store=run.store, footprint=run.trial.footprint, before=read_usage(run.store), began_s=began_s
        )
        meter.note(time.time())
        result = {"l0": 4.0, "fvu": 1 / REPORTS, "explained_variance": 1 - 1 / REPORTS, "dead_fraction": 0.0}
        timing = {"began_s": began_s, "train_s": seconds, "total_s": time.time() - began_s}
        run.folder.write_trial(replace(record, status=DONE, result=result, timing=timing))
        run.rooms.release(run.trial.id)

    return trial


def _metrics() -> list[dict[str, float]]:
    """What a training of `REPORTS` evaluations might have logged."""
    return [
        {"step": step, "rows": step * BATCH_ROWS, "eval/l0": 4.0, "eval/fvu": 1 / step}
        for step in range(1, REPORTS + 1)
    ]


def sweep(trials: int, places: int, seconds: float, folder: Path) -> None:
    """Run it in this process, on a Ray that believes in so many CPUs, and print where its time went."""
    data, output = str(folder / "data"), str(folder / "out")
    write_dataset(data, 8192, SITE_WIDTH)
    axes = {"architecture": ["topk"], "width": [32], "target_l0": [4], "seed": list(range(trials))}
    file = write_sweep(folder / "sweep.yaml", sweep_content(data, output, batch_rows=BATCH_ROWS, steps=5, axes=axes))
    plan = plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())
    view = TerminalView(console=Console(file=StringIO()), num_trials=trials, num_reused=0)
    driver = Driver(store=plan.folder.store, place=this_place("", ""))
    os.environ.update(PROCESS_ENV)
    ray.init(address="local", num_cpus=places, log_to_driver=False, runtime_env={"env_vars": PROCESS_ENV})
    processor_s, began_s = time.process_time(), time.time()
    run_sweep(plan, [view], driver, work=waiting(seconds))
    wall_s, processor_s = time.time() - began_s, time.process_time() - processor_s
    ray.shutdown()
    print(
        f"{trials} trials of {seconds:g} s, {places} at once: {wall_s:.1f} s from the first thing to the report",
        end="; ",
    )
    print(f"the driver's processor time {processor_s:.1f} s, {processor_s / wall_s:.2%} of that")
    spans = [_span(record) for record in records_of(output)]
    first_s, last_s = min(one.begin_s for one in spans), max(one.end_s for one in spans)
    print(f"  before the first trial {first_s - began_s:.1f} s, after the last {began_s + wall_s - last_s:.1f} s")
    show_gaps(spans, places)
    began = time.perf_counter()
    build_results(plan.folder, [trial.id for trial in plan.trials])
    print(f"results and report alone: {time.perf_counter() - began:.1f} s")


def show_gaps(spans: Sequence[Interval], places: int) -> None:
    """Print how long places were empty between trials; the one that is free for longest is taken first."""
    begins, ends = sorted(one.begin_s for one in spans), sorted(one.end_s for one in spans)
    first = sum(begin < ends[0] for begin in begins)
    gaps = sorted(begin - end for begin, end in zip(begins[first:], ends, strict=False))
    if not gaps:
        return
    print(f"  {first} places were filled within {begins[first - 1] - begins[0]:.1f} s", end="; ")
    print(f"from then on empty for {gaps[len(gaps) // 2]:.3f} s (median) and {gaps[-1]:.3f} s (longest) between trials")
    places_s = places * (ends[-1] - begins[0])
    print(f"  driver overhead: {sum(gaps) / places_s:.2%} of the time of all places", end="; ")
    print(f"with their first filling and last emptying {1 - (sum(ends) - sum(begins)) / places_s:.2%}")


def _span(record: TrialRecord) -> Interval:
    began_s = record.timing["began_s"]
    return Interval(begin_s=began_s, end_s=began_s + record.timing["total_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--places", type=int, default=10, help="trials at once")
    parser.add_argument("--seconds", type=float, default=10.0, help="that a trial waits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep(options.trials, options.places, options.seconds, Path(folder))


if __name__ == "__main__":
    main()
