"""What defaults are worth: FVU, L0 and silent latents of architectures and options on activations, over seeds.

    lexray harvest examples/quickstart/harvest.yaml
    python -m benchmarks.defaults runs/quickstart/activations      the eight most used architectures at three lengths
    python -m benchmarks.defaults runs/quickstart/activations --steps 250 --arms mp mp:decoder_norm=ignored

An arm is an architecture with options as a sweep file has them, `lr` and `rows` of a batch among them. Each is trained
by lexray's trainer, one process a training, and judged on test documents. What is trained already is read again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.training.checkpoint.saved import CONFIG, load_dictionary, read_dictionary_config
from lexray.training.config import DataConfig, EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import dictionary_config
from lexray.training.engines.batches import raw_rows
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.setup import read_locally
from lexray.training.loop.trainer import Trainer
from lexray.training.measures.firing import FiringCounts

MOST_USED = ("topk", "batch_topk", "matryoshka_batch_topk", "relu", "gated", "jumprelu", "p_anneal", "mp")
OPTIMIZER = ("lr", "warmup", "decay", "precision")


class Job(NamedTuple):
    """One training."""

    arm: str
    steps: int
    seed: int
    config: TrainingConfig
    folder: str


class Result(NamedTuple):
    """A trained dictionary on test documents."""

    fvu: float
    l0: float
    silent: float
    """Share of the latents that no test row activates."""


def jobs_of(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the trainings, those of one seed together, so that the first numbers come early."""
    manifest = load_manifest(Store.at(args.dataset))
    for seed in args.seeds:
        for steps in args.steps:
            for arm in args.arms:
                config = training_config(args, arm, steps, seed, manifest.id)
                yield Job(arm, steps, seed, config, f"{args.output}/{config.trial}")


def training_config(args: argparse.Namespace, arm: str, steps: int, seed: int, dataset: str) -> TrainingConfig:
    """Return the configuration of one training: `ARCHITECTURE:OPTION=VALUE,OPTION=VALUE`."""
    name, _, given = arm.partition(":")
    options: dict[str, Any] = {
        key: yaml.safe_load(value) for key, _, value in (part.partition("=") for part in given.split(",") if part)
    }
    of_optimizer = {key: options.pop(key) for key in OPTIMIZER if key in options}
    return TrainingConfig(
        dictionary=dictionary_config({"architecture": name, "width": args.width, "target_l0": args.l0, **options}),
        data=DataConfig(
            url=args.dataset,
            dataset_id=dataset,
            inputs=(args.site,),
            batch_rows=args.batch_rows,
            held_out=args.held_out,
        ),
        rows=steps * args.batch_rows,
        optimizer=OptimizerConfig(**{"lr": args.lr, "decay": 0.3, **of_optimizer}),
        seed=seed,
        every=EveryConfig(evaluate=max(1, steps // 5), log=100, checkpoint=10**9, checkpoint_s=None),
    )


def run(job: Job) -> Result:
    """Train, unless it is done, and count which latents test rows activate."""
    torch.set_num_threads(1)
    ensure_process_group()
    folder = Store.at(job.folder)
    if not folder.exists(f"dictionary/{CONFIG}"):
        Trainer(config=job.config, store=folder, trial=job.config.trial).run()
    made = load_dictionary(folder.at_path("dictionary").url)
    spec = job.config.data.stream_spec("test")
    stream = BatchStream(spec=spec, source=read_locally(spec), batch_rows=job.config.data.batch_rows)
    firing = FiringCounts(made.config.width)
    with torch.no_grad():
        for batch in stream.every_row(job.config.every.eval_rows):
            firing.add(made.encode(raw_rows(batch, job.config.data, torch.device("cpu")).x_BD))
    held_out = read_dictionary_config(folder.at_path("dictionary"))["held_out"]
    return Result(held_out["fvu"], held_out["l0"], firing.document()["dead_fraction"])


def line(arm: str, steps: int, results: Sequence[Result]) -> str:
    """Return a row of the table: means over seeds, and the standard error of the FVU."""
    fvus = [result.fvu for result in results]
    error = f"{statistics.stdev(fvus) / len(fvus) ** 0.5:.4f}" if len(fvus) > 1 else ""
    l0, silent = (statistics.fmean(values) for values in ([r.l0 for r in results], [r.silent for r in results]))
    return (
        f"| {arm} | {steps} | {statistics.fmean(fvus):.4f} | {error} | {l0:.1f} | {100 * silent:.1f} % | {len(fvus)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder or URL of a dataset")
    parser.add_argument("--site", default="layer3")
    parser.add_argument("--arms", nargs="+", default=list(MOST_USED))
    parser.add_argument("--steps", nargs="+", type=int, default=[80, 250, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--l0", type=float, default=32)
    parser.add_argument("--batch-rows", type=int, default=1024)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--lr", type=yaml.safe_load, default="auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", default="runs/defaults", help="where the trained dictionaries lie")
    args = parser.parse_args()
    Path(args.output).mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, int], list[Result]] = {(arm, steps): [] for arm in args.arms for steps in args.steps}
    jobs = list(jobs_of(args))
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for number, (job, result) in enumerate(zip(jobs, pool.map(run, jobs), strict=True), 1):
            found[job.arm, job.steps].append(result)
            print(f"{number} of {len(jobs)}: {job.arm}, {job.steps} steps, seed {job.seed}: {result}", file=sys.stderr)
    print(f"width {args.width}, target L0 {args.l0:g}, batches of {args.batch_rows} rows, lr {args.lr}")
    print("| arm | steps | FVU | standard error | L0 | silent | seeds |\n|---|---|---|---|---|---|---|")
    for (arm, steps), results in found.items():
        print(line(arm, steps, results))


if __name__ == "__main__":
    main()
