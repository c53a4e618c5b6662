"""How fast dictionaries would train on clusters that are not here: a model, first held against real runs.

The model (`benchmarks.cluster_model`) gets what was measured on this machine (`--measure FILE` keeps it, `--costs FILE`
takes it again) and figures of GPUs, network and store, each with its source below and an option of its own. It predicts
rows/s, bytes read from the store and idle time for 8, 64 and 512 GPUs, and names what saturates first. `--check` trains
one dictionary on 1, 2 and 4 workers here by `lexray sweep` and prints predicted over measured rows/s.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks.cluster_model import Job, Outcome, Rates, simulate
from benchmarks.machine_costs import MachineCosts, measure_costs, parameters, read_costs, write_costs
from benchmarks.sharding import write_dataset
from benchmarks.sweep_runs import lexray, records_of, sweep_content, write_sweep
from lexray.storage.stream_memory import WINDOWS_AT_ONCE

CHECKED_WORKERS = (1, 2, 4)
ADAM_BYTES = 36
"""Of memory traffic for each parameter in a step: weight, gradient and both moments read, three written, the gradient
written and zeroed; 4 bytes each."""
GOAL = 0.2


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Stated, not measured here."""

    gpu_flops: float = 989e12
    """H100 SXM, dense bf16: NVIDIA's data sheet."""
    gpu_flops_share: float = 0.5
    """Of that in a large product: an assumption, what large matrix products are commonly reported to reach."""
    gpu_memory_bytes_per_s: float = 3.35e12
    """H100 SXM: NVIDIA's data sheet."""
    gpu_link_bytes_per_s: float = 450e9
    """NVLink of an H100, one direction: half of the data sheet's 900 GB/s."""
    pcie_bytes_per_s: float = 64e9
    """PCIe 5.0 x16, one direction: half of the H100 data sheet's 128 GB/s."""
    node_sum_bytes_per_s: float = 400e9
    """A node's network for sums: 3,200 Gbit/s of a p5.48xlarge, AWS' page of EC2 P5 instances."""
    node_store_bytes_per_s: float = 12.5e9
    """One node from S3: 100 Gbit/s, AWS' performance guidelines for S3."""
    store_gets_per_s: float = 5500.0
    """Of one prefix of S3: AWS' performance guidelines. More prefixes have more."""
    store_prefixes: float = 1.0
    """lexray writes a dataset under one."""
    store_latency_s: float = 0.1
    """First byte of S3: 100 to 200 ms, AWS' performance guidelines."""
    chunk_bytes: float = 4 * 2**20
    """Of one GET."""
    hop_latency_s: float = 1e-5
    """Of one hop of a sum: an assumption."""

    @property
    def store_bytes_per_s(self) -> float:
        return self.store_gets_per_s * self.store_prefixes * self.chunk_bytes


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dictionary that the GPUs train."""

    site_width: int
    width: int
    l0: int
    rows_per_worker: int

    @property
    def row_bytes(self) -> int:
        return 2 * self.site_width

    @property
    def parameters(self) -> int:
        return parameters(self.site_width, self.width)


def gpu_step_s(shape: Shape, figures: Figures) -> float:
    """A worker's step: products at their rate, then what passes through memory at its rate; nothing overlaps.

    Products of a row: 2 F D for the encoder, 8 K D for the active latents; through memory go the pre-activations (F),
    written and read, four times K atoms of D, and Adam's state.
    """
    D, F, K, rows = shape.site_width, shape.width, shape.l0, shape.rows_per_worker
    products_s = rows * (2 * F * D + 8 * K * D) / (figures.gpu_flops * figures.gpu_flops_share)
    moved = rows * 4 * (2 * F + 4 * K * D) + ADAM_BYTES * shape.parameters
    return products_s + moved / figures.gpu_memory_bytes_per_s


def gpu_job(shape: Shape, figures: Figures, gpus: int, per_node: int, per_trial: int, steps: int) -> Job:
    return Job(
        workers=gpus,
        workers_per_node=per_node,
        workers_per_trial=per_trial,
        batch_rows=shape.rows_per_worker * per_trial,
        row_bytes=shape.row_bytes,
        step_s=gpu_step_s(shape, figures),
        sum_bytes=4 * shape.parameters,
        steps=steps,
    )


def gpu_rates(figures: Figures, costs: MachineCosts) -> Rates:
    return Rates(
        store_bytes_per_s=figures.store_bytes_per_s,
        store_latency_s=figures.store_latency_s,
        inlet_bytes_per_s=figures.node_store_bytes_per_s,
        fabric_bytes_per_s=figures.node_sum_bytes_per_s,
        server_bytes_per_s=WINDOWS_AT_ONCE * costs.server_bytes_per_s,
        pcie_bytes_per_s=figures.pcie_bytes_per_s,
        link_bytes_per_s=figures.gpu_link_bytes_per_s,
        hop_latency_s=figures.hop_latency_s,
    )


def here(costs: MachineCosts, workers: int, batch_rows: int, steps: int) -> Outcome:
    """Return the model's result for one dictionary on so many workers of this machine."""
    rate = costs.sum_bytes_per_s.get(str(workers), float("inf"))
    job = Job(
        workers=workers,
        workers_per_node=workers,
        workers_per_trial=workers,
        batch_rows=batch_rows,
        row_bytes=2 * costs.site_width,
        step_s=costs.step_s(batch_rows / workers, workers),
        sum_bytes=4 * parameters(costs.site_width, costs.width),
        steps=steps,
    )
    fast = 1e12  # what a step here never waits for: its disk, its memory
    return simulate(
        job,
        Rates(
            store_bytes_per_s=fast,
            store_latency_s=0.0,
            inlet_bytes_per_s=fast,
            fabric_bytes_per_s=fast,
            server_bytes_per_s=costs.server_bytes_per_s,
            pcie_bytes_per_s=fast,
            link_bytes_per_s=rate,
            hop_latency_s=costs.hop_latency_s,
        ),
    )


# Against real runs ----------------------------------------------------------------------------------------------------


def check(costs: MachineCosts, batch_rows: int, steps: int) -> None:
    """Real trials, one after another, each alone on the machine."""
    print(f"predicted / measured rows/s on {costs.cores} cores, batch {batch_rows}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "data")
        write_dataset(data, max(2**15, batch_rows * 8), costs.site_width)
        for workers in CHECKED_WORKERS:
            predicted = here(costs, workers, batch_rows, steps).rows_per_s
            measured = _measured(costs, Path(folder) / f"{workers}", data, workers, batch_rows, steps)
            ratio = predicted / measured
            verdict = "" if abs(ratio - 1) <= GOAL else f"   not within {GOAL:.0%}"
            print(f"  {workers} workers {predicted:10,.0f} / {measured:10,.0f} = {ratio:5.2f}{verdict}", flush=True)


def _measured(costs: MachineCosts, folder: Path, data: str, workers: int, batch_rows: int, steps: int) -> float:
    """Rows/s of lexray: one thread a worker, whose processes share the cores where they are more."""
    folder.mkdir()
    content = sweep_content(
        data,
        str(folder / "out"),
        batch_rows=batch_rows,
        steps=steps,
        axes={"architecture": ["topk"], "width": [costs.width], "target_l0": [costs.l0]},
        resources={
            "workers": workers,
            "cpus_per_worker": min(1.0, costs.cores / max(CHECKED_WORKERS)),
            "zero_stage": 0,
        },
    )
    lexray("sweep", write_sweep(folder / "sweep.yaml", content))
    (record,) = records_of(str(folder / "out"))
    return record.timing["rows_per_s"]


# Predictions ----------------------------------------------------------------------------------------------------------


def predict(shape: Shape, figures: Figures, costs: MachineCosts, args: argparse.Namespace) -> None:
    step_ms = 1e3 * gpu_step_s(shape, figures)
    print(
        f"TopK, site {shape.site_width}, width {shape.width}, L0 {shape.l0}, {shape.rows_per_worker} rows a GPU and "
        f"step, {step_ms:.1f} ms; store {figures.store_bytes_per_s / 1e9:.0f} GB/s"
    )
    print(f"{'trials':>26} {'GPUs':>5} {'rows/s':>13} {'store':>11} {'each row read':>14} {'idle':>6}  busiest")
    for name, per_trial in (("one a GPU", 1), ("one a node", args.gpus_per_node), ("one over all nodes", 0)):
        found: dict[int, Outcome] = {}
        for gpus in args.sizes:
            job = gpu_job(shape, figures, gpus, args.gpus_per_node, per_trial or gpus, args.steps)
            found[gpus] = simulate(job, gpu_rates(figures, costs))
            print(f"{name:>26} {gpus:>5} {_line(found[gpus], job)}", flush=True)
        print(f"{'':26} {first_to_saturate(found)}")


def _line(outcome: Outcome, job: Job) -> str:
    reads = outcome.rows_read / (job.batch_rows * job.steps)
    busiest = ", ".join(f"{name} {share:.0%}" for name, share in _by_share(outcome)[:3])
    store = outcome.bytes_read / outcome.seconds / 1e9
    return f"{outcome.rows_per_s:13,.0f} {store:7.2f} GB/s {reads:8.0f} times {outcome.idle:6.1%}  {busiest}"


def _by_share(outcome: Outcome) -> list[tuple[str, float]]:
    return sorted(outcome.busy.items(), key=lambda pair: -pair[1])


def first_to_saturate(found: dict[int, Outcome]) -> str:
    """The smallest cluster where something works longer than the devices; else what comes next to them."""
    for gpus, outcome in sorted(found.items()):
        if outcome.limit != "devices":
            return f"first to saturate: {outcome.limit}, at {gpus} GPUs or before"
    largest = max(found)
    name, share = next(pair for pair in _by_share(found[largest]) if pair[0] != "devices")
    return f"nothing saturates before the GPUs; next are the {name}, {share:.0%} at {largest} GPUs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="FILE", help="where to keep what is measured here")
    parser.add_argument("--costs", metavar="FILE", help="measure nothing, take what was kept")
    parser.add_argument("--check", action="store_true", help="against real trials of 1, 2 and 4 workers")
    parser.add_argument("--sizes", type=int, nargs="*", default=[8, 64, 512], help="GPUs")
    parser.add_argument("--steps", type=int, default=60, help="simulated, and of each real trial")
    here_group = parser.add_argument_group("the dictionary that is measured here")
    here_group.add_argument("--here-site-width", type=int, default=512)
    here_group.add_argument("--here-width", type=int, default=4096)
    here_group.add_argument("--here-l0", type=int, default=32)
    here_group.add_argument("--here-batch-rows", type=int, default=2048)
    here_group.add_argument("--seconds", type=float, default=5.0, help="of each kind of measurement")
    there = parser.add_argument_group("the dictionary of the GPUs")
    there.add_argument("--site-width", type=int, default=4096)
    there.add_argument("--width", type=int, default=131_072)
    there.add_argument("--l0", type=int, default=64)
    there.add_argument("--rows-per-worker", type=int, default=8192)
    there.add_argument("--gpus-per-node", type=int, default=8)
    stated = parser.add_argument_group("stated figures")
    for one in fields(Figures):
        stated.add_argument(f"--{one.name.replace('_', '-')}", type=float, default=one.default)
    args = parser.parse_args()
    costs = read_costs(args.costs) if args.costs else _measured_here(args)
    if args.measure:
        write_costs(args.measure, costs)
    if args.check:
        check(costs, args.here_batch_rows, args.steps)
    figures = replace(Figures(), **{one.name: getattr(args, one.name) for one in fields(Figures)})
    shape = Shape(site_width=args.site_width, width=args.width, l0=args.l0, rows_per_worker=args.rows_per_worker)
    predict(shape, figures, costs, args)


def _measured_here(args: argparse.Namespace) -> MachineCosts:
    workers: Sequence[int] = CHECKED_WORKERS
    costs = measure_costs(
        site_width=args.here_site_width,
        width=args.here_width,
        l0=args.here_l0,
        batch_rows=args.here_batch_rows,
        workers=workers,
        seconds=args.seconds,
    )
    beside = ", ".join(f"{1e3 * taken:.0f} ms among {ranks}" for ranks, taken in costs.in_step_s.items())
    sums = ", ".join(f"{rate / 1e9:.2f} GB/s among {ranks}" for ranks, rate in costs.sum_bytes_per_s.items())
    print(
        f"measured on {costs.cores} cores (load {costs.load:.1f}): a step {1e3 * costs.alone.fixed_s:.1f} ms and "
        f"{1e6 * costs.alone.row_s:.0f} us a row, {beside}; a window server's core "
        f"{costs.server_bytes_per_s / 1e9:.2f} GB/s; sums {sums}"
    )
    return costs


if __name__ == "__main__":
    main()
