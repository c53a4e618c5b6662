"""What sharding costs: the whole path on one worker against a hand-written loop, and the bytes that a mesh moves.

The first part trains the same TopK dictionary on the same rows, in turns of some steps each in one process: by lexray,
from a dataset on this disk through its stream, loop and engine; and by a plain loop that has all rows in memory. With
`--ray` the windows come from a window server, an actor of a Ray started for it. The second part counts, on two
processes, what every step gives to torch's collectives, and prints it beside the formulas of `training.cost.traffic`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.turns import take_turns
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.storage.windows import LocalWindows, StreamSpec, WindowReader, WindowSource
from lexray.storage.writer import DatasetWriter
from lexray.training.config import DataConfig, OptimizerConfig, TrainingConfig
from lexray.training.cost.memory import shapes_of
from lexray.training.cost.step_memory import Rows
from lexray.training.cost.traffic import over_latents, over_rows
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.loop.build import build_dictionary, ensure_process_group, make_engine, place_in
from lexray.training.loop.loop import training_steps
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.mesh.mesh import ONE_RANK, connect
from lexray.training.mesh.settings import MeshConfig

LR = 1e-4


# The whole path against a plain loop --------------------------------------------------------------------------------


def write_dataset(folder: str, rows: int, site_width: int) -> Store:
    """Random rows in bfloat16."""
    store = Store.at(folder)
    writer = DatasetWriter(store=store, sites={"site": site_width}, chunk_rows=1024, shard_rows=16 * 1024)
    for start in range(0, rows, 8192):
        count = min(8192, rows - start)
        number = torch.arange(start, start + count).numpy()
        vectors = torch.randn(count, site_width, generator=torch.Generator().manual_seed(start)).bfloat16()
        writer.add({"site": vectors}, {"token_id": number % 997, "position": number % 64, "document": number // 64})
    writer.close()
    return store


def lexray_steps(config: TrainingConfig, source: Callable[[StreamSpec], WindowSource]) -> Generator[object]:
    """lexray's own loop: one record a step."""
    spec = config.data.stream_spec("train")
    stream = BatchStream(spec=spec, source=source(spec), batch_rows=config.data.batch_rows, rank=0, num_ranks=1)
    dictionary = build_dictionary(config, stream.manifest)
    yield from training_steps(config, stream, make_engine(dictionary, config, ONE_RANK), LOCAL_DATA, start=0)


def plain_steps(config: TrainingConfig, rows_RD: torch.Tensor, sites: Sites) -> Generator[object]:
    """Train by a hand-written loop: rows in memory, drawn at random; lexray's loss, torch's Adam, clipping."""
    dictionary = make_dictionary(config.dictionary, sites)
    adam = torch.optim.Adam(dictionary.parameters(), lr=LR, fused=True)
    while True:
        x_BD = rows_RD[torch.randint(len(rows_RD), (config.data.batch_rows,))].float()
        terms = dictionary.loss(x_BD, len(x_BD))
        terms.loss.backward()
        torch.nn.utils.clip_grad_norm_(dictionary.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        yield terms.loss.item()


@contextmanager
def served_by_ray() -> Iterator[Callable[[StreamSpec], WindowSource]]:
    """Windows of a server in an actor of a Ray of this machine."""
    import ray

    from lexray.storage.server import ServedWindows, start_server

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    server = start_server(ray.get_runtime_context().get_node_id(), keep_bytes=2**28)
    try:
        yield lambda spec: ServedWindows(spec, server, "benchmark")
    finally:
        ray.kill(server)
        ray.shutdown()


@contextmanager
def read_here() -> Iterator[Callable[[StreamSpec], WindowSource]]:
    yield lambda spec: LocalWindows(WindowReader(spec))


def compare_paths(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    ensure_process_group()
    with (
        tempfile.TemporaryDirectory() as folder,
        served_by_ray() if args.ray else read_here() as source,
        ExitStack() as left,
    ):
        store = write_dataset(folder, args.rows, args.site_width)
        spec = StreamSpec(store=store, sites=("site",))
        manifest = WindowReader(spec).describe().manifest
        config = training_config(
            "topk", args.width, args.l0, args.batch_rows, MeshConfig(), rows=10**9, url=store.url, dataset=manifest.id
        )
        in_memory = torch.randn(args.rows, args.site_width).bfloat16()
        loops = {
            "plain loop, rows in memory": plain_steps(config, in_memory, config.data.sites_in(manifest)),
            "lexray, the whole path": lexray_steps(config, source),
        }
        for loop in loops.values():  # before the server goes from which one of them reads
            left.enter_context(closing(loop))
        turns = {name: partial(_some, loop, args.steps) for name, loop in loops.items()}
        take_turns(turns, rounds=1)  # warm
        seconds = take_turns(turns, args.rounds)
    load = os.getloadavg()[0]
    print(f"TopK, site {args.site_width}, width {args.width}, L0 {args.l0}, batch {args.batch_rows}, load {load:.1f}")
    base = seconds["plain loop, rows in memory"]
    for name, value in seconds.items():
        rows_per_s = args.steps * args.batch_rows / value
        print(f"{name:28} {rows_per_s:10,.0f} rows/s   {value / args.steps * 1e3:7.1f} ms/step   {value / base:5.2f} x")


def _some(loop: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(loop)


def training_config(
    name: str,
    width: int,
    l0: int,
    batch_rows: int,
    mesh: MeshConfig,
    *,
    rows: int = 1,
    url: str = "",
    dataset: str = "",
) -> TrainingConfig:
    return TrainingConfig(
        dictionary=dictionary_config({"architecture": name, "width": width, "target_l0": l0}),
        data=DataConfig(url=url, dataset_id=dataset, inputs=("site",), batch_rows=batch_rows),
        rows=rows,
        optimizer=OptimizerConfig(lr=LR),
        mesh=mesh,
    )


# Bytes ----------------------------------------------------------------------------------------------------------------

COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "reduce")
MESHES = [
    *(("topk", MeshConfig(data=2, zero_stage=stage)) for stage in range(4)),
    *((name, MeshConfig(feature=2)) for name in ("topk", "batch_topk", "matryoshka_batch_topk", "hierarchical_topk")),
    *((name, MeshConfig(feature=2)) for name in ("relu", "gated", "jumprelu", "mp")),
]
BYTES_WIDTH, BYTES_SITE, BYTES_L0, BYTES_ROWS = 4096, 256, 16, 512


def compare_bytes() -> None:
    print(f"two ranks: width {BYTES_WIDTH}, site {BYTES_SITE}, L0 {BYTES_L0}, batch {BYTES_ROWS}; what a rank gives")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_count_on_rank, args=(folder,), nprocs=2)


def _count_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    counted = count_collectives()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    sites = Sites.same(SiteStatistics(mean=(0.0,) * BYTES_SITE, mean_squared_norm=float(BYTES_SITE)))
    for name, shape in MESHES:
        config = training_config(name, BYTES_WIDTH, BYTES_L0, BYTES_ROWS, shape)
        mesh = connect(place_in(config, rank), torch.device("cpu"))
        engine = make_engine(make_dictionary(config.dictionary, sites, axes=mesh.axes), config, mesh)
        x_BD = torch.randn(BYTES_ROWS // shape.data, BYTES_SITE)
        for _ in range(2):
            counted.clear()
            engine.backward(RawRows(x_BD, x_BD), BYTES_ROWS)
            engine.step(LR)
        shapes = shapes_of(config.dictionary, sites, shape.feature)
        rows = Rows(len(x_BD), BYTES_ROWS)
        planned = sum(over_rows(shapes, shape)) + (
            sum(over_latents(config.dictionary, shapes, rows)) if shape.feature > 1 else 0
        )
        if rank == 0:
            print(
                f"{name:22} {shape.data} x {shape.feature} ZeRO {shape.stage}   counted {sum(counted.values()):11,}   "
                f"formula {planned:11,}   {sum(counted.values()) / planned:6.4f}   "
                + ", ".join(f"{op} {size:,}" for op, size in counted.items())
            )
    dist.destroy_process_group()


def count_collectives() -> Counter[str]:
    """Count, from now on, the bytes that this process gives to collectives, DeepSpeed's and lexray's, by name."""
    counted: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            counted[name] += tensors[-1].numel() * tensors[-1].element_size()  # the output stands first
            return real(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site-width", type=int, default=512)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=2**16, help="rows of the dataset")
    parser.add_argument("--steps", type=int, default=16, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ray", action="store_true", help="windows come from a server, an actor of Ray")
    parser.add_argument("--only", choices=("path", "bytes"))
    args = parser.parse_args()
    if args.only != "bytes":
        compare_paths(args)
    if args.only != "path":
        compare_bytes()


if __name__ == "__main__":
    main()
