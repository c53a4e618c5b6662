"""How fast the stream is: against plain GETs, for many consumers, for a trainer, and against other libraries.

Readers are processes of their own that take turns epoch by epoch on the same rows (width 768, bfloat16), so that a
busy machine slows them alike; a ratio is the median of the rounds' ratios. Needs the `bench` extra, in an environment
of its own: see benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import s3_server
from benchmarks.stream_data import (
    ROW_BYTES,
    SHARD_ROWS,
    write_lexray,
    write_litdata,
    write_mds,
    write_safetensors,
)
from benchmarks.stream_readers import (
    BATCH_ROWS,
    Place,
    local_stream,
    plain_gets,
    plain_gets_by_boto3,
    unpermuted_stream,
)
from benchmarks.stream_turns import OpenReader, print_turns, rows_per_s, take_turns

THROTTLED_MB_PER_S = 100
LIMITED_MB_PER_S = 300
"""A store on the same two cores takes the reader's processor time when it gives all it can; one elsewhere does not."""
STREAM = "lexray, local stream"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Amounts of rows that are read."""

    shards: int
    """Of the dataset that is read against plain GETs."""
    peer_shards: int
    """Of those that other libraries read, which take longer."""
    rounds: int
    wait_steps: int


FULL = Sizes(shards=48, peer_shards=4, rounds=5, wait_steps=40)
QUICK = Sizes(shards=8, peer_shards=2, rounds=2, wait_steps=12)


def against_plain_gets(root: Path, endpoint: str, sizes: Sizes) -> float:
    """Print stream and plain GETs from the same server, and what permuting costs; the stream's rows/s."""
    with s3_server.serving(root, mb_per_s=LIMITED_MB_PER_S) as limited:
        place = Place(url="s3://bucket/lexray", endpoint=limited)
        of_limited: dict[str, OpenReader] = {
            STREAM: partial(local_stream, place),
            "plain GETs, lexray's store": partial(plain_gets, place),
        }
        found = take_turns(of_limited, 2, steady=True)
        print_turns(f"From S3 at {LIMITED_MB_PER_S} MB/s, 8 reads at once", found, STREAM, ROW_BYTES)
    place = Place(url="s3://bucket/lexray", endpoint=endpoint)
    readers: dict[str, OpenReader] = {
        STREAM: partial(local_stream, place),
        "the same without permuting": partial(unpermuted_stream, place),
        "plain GETs, lexray's store": partial(plain_gets, place),
        "plain GETs, boto3": partial(plain_gets_by_boto3, place),
    }
    found = take_turns(readers, sizes.rounds, steady=True)
    print_turns("From S3, 8 reads at once", found, STREAM, ROW_BYTES)
    place = Place(url=str(root / "bucket" / "lexray"))
    readers = {
        STREAM: partial(local_stream, place),
        "the same without permuting": partial(unpermuted_stream, place),
        "plain reads": partial(plain_gets, place),
    }
    local = take_turns(readers, sizes.rounds, steady=True)
    print_turns("From a local disk, files in the system's memory", local, STREAM, ROW_BYTES)
    turns = found[STREAM]
    assert isinstance(turns, list), turns
    return rows_per_s(turns)


def many_consumers(root: Path, endpoint: str, sizes: Sizes) -> None:
    """Print what eight consumers of a node cost against one."""
    import ray

    from benchmarks.stream_node import on_one_node, print_costs, start_ray

    start_ray()
    try:
        with s3_server.serving(root, mb_per_s=THROTTLED_MB_PER_S) as throttled:
            for title, address in (
                (f"A store that gives {THROTTLED_MB_PER_S} MB/s", throttled),
                ("A store on this machine", endpoint),
            ):
                place = Place(url="s3://bucket/lexray", endpoint=address)
                print_costs(title, *on_one_node(place, 2 if address == throttled else sizes.rounds))
    finally:
        ray.shutdown()


def waits(endpoint: str, sizes: Sizes, stream_rows_per_s: float) -> None:
    """Print the share of time in which trainings of several speeds wait for data."""
    from benchmarks.stream_waits import wait_of_a_gpu, wait_of_a_trainer

    place = Place(url="s3://bucket/lexray", endpoint=endpoint)
    batch_s = BATCH_ROWS / stream_rows_per_s
    print(f"\nWaiting for data; the stream gives a batch every {batch_s * 1e3:,.0f} ms")
    wait, speed = wait_of_a_trainer(place, 1024, sizes.wait_steps)
    print(f"  {f'TopK of width 1,024, one core, {speed:,.0f} rows/s':58} {wait:6.1%}")
    for factor in (4.0, 2.0, 0.5):
        wait = wait_of_a_gpu(place, factor * batch_s, 3 * sizes.wait_steps)
        pace = f"{factor:g} times slower" if factor > 1 else f"{1 / factor:g} times faster"
        print(f"  {f'a trainer elsewhere, {pace} than the stream':58} {wait:6.1%}", flush=True)


def against_peers(root: Path, endpoint: str, sizes: Sizes) -> None:
    """Print shuffled batches of 4096 rows by other libraries: from memory, from disk, from S3."""
    from benchmarks.stream_peers import LitData, Mosaic, TorchLoader

    bucket = root / "bucket"

    def readers(place: Callable[[str], Place], workers: tuple[int, ...], torch_loaders: bool) -> dict[str, OpenReader]:
        found: dict[str, OpenReader] = {STREAM: partial(local_stream, place("peer-lexray"))}
        for number in workers:
            found[f"mosaicml-streaming, {number} workers"] = partial(Mosaic, place("mds"), number)
            found[f"litdata, {number} workers"] = partial(LitData, place("litdata"), number)
            if torch_loaders:
                here = place("safetensors")
                found[f"DataLoader, rows, {number} workers"] = partial(TorchLoader, here, number, False)
                found[f"DataLoader, whole batches, {number} workers"] = partial(TorchLoader, here, number, True)
        return found

    rounds = max(1, sizes.rounds // 2)
    titles = {
        "Shuffled batches, files in the system's memory": readers(
            lambda kind: Place(url=str(bucket / kind)), (0, 2), True
        ),
        "Shuffled batches, files on disk alone": readers(
            lambda kind: Place(url=str(bucket / kind), cold=True), (0, 2), True
        ),
        "Shuffled batches from S3, caches empty": readers(
            lambda kind: Place(url=f"s3://bucket/{kind}", endpoint=endpoint), (0, 2), False
        ),
    }
    for title, taking_part in titles.items():
        print_turns(title, take_turns(taking_part, rounds), STREAM, ROW_BYTES)
    print("  a DataLoader maps files into memory, which an S3 server does not offer")


def write_data(root: Path, sizes: Sizes) -> None:
    bucket = root / "bucket"
    bucket.mkdir()
    write_lexray(bucket / "lexray", sizes.shards)
    for kind, write in (
        ("peer-lexray", write_lexray),
        ("safetensors", write_safetensors),
        ("mds", write_mds),
        ("litdata", write_litdata),
    ):
        write(bucket / kind, sizes.peer_shards)


PARTS = ("gets", "consumers", "waits", "peers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one, several times for more")
    args = parser.parse_args()
    sizes, parts = QUICK if args.quick else FULL, args.part or PARTS
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lexray-bench-") as folder, s3_server.credentials():
        root = Path(folder)
        write_data(root, sizes)
        rows = sizes.shards * SHARD_ROWS
        print(f"{rows:,} rows of {ROW_BYTES:,} bytes, {rows * ROW_BYTES / 1e6:,.0f} MB; {sizes.rounds} rounds")
        with s3_server.serving(root) as endpoint:
            speed = against_plain_gets(root, endpoint, sizes) if {"gets", "waits"} & set(parts) else 0.0
            if "consumers" in parts:
                many_consumers(root, endpoint, sizes)
            if "waits" in parts:
                waits(endpoint, sizes, speed)
            if "peers" in parts:
                against_peers(root, endpoint, sizes)
    print(f"\n{time.perf_counter() - began:,.0f} s")


if __name__ == "__main__":
    main()
