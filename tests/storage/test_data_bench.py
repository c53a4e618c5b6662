"""Measuring the data path: what is counted, what comes out of it, and that it ends."""

import numpy as np
import pytest
import s3fs
import torch
from synthetic import write_rows

from lexray.storage.bench import CoreSpeed, Feeding, chunk_ranges, core_speed, plain_reads, stream_speed
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.reader import DatasetReader
from lexray.storage.selection import Selection
from lexray.storage.store import Store
from lexray.storage.windows import StreamSpec

ROW_BYTES = 2 * (4 + 6)
AT_11 = "topk becomes I/O bound at 11 workers: one worker trains 100 rows/s, the stream gives "


@pytest.fixture(scope="module", params=["file", "s3"])
def written(request, tmp_path_factory, s3_server):
    """Two sites of widths 4 and 6, 200 rows in chunks of 16 and two shards, on disk and on a real S3 server."""
    if request.param == "file":
        place = Store.at(str(tmp_path_factory.mktemp("bench")))
    else:
        settings = StorageSettings(endpoint_url=s3_server, addressing_style="path")
        s3fs.S3FileSystem(endpoint_url=s3_server).makedirs("bench-of-the-stream", exist_ok=True)
        place = Store.at("s3://bench-of-the-stream/data", settings)
    return write_rows(place, [120, 80], sites={"x": 4, "y": 6}, chunk_rows=16)


def spec_of(written, **changes):
    fields = {"sites": ("x", "y"), "selection": Selection(held_out=0.0), "lanes": 4, "window_bytes": 16 * 12}
    return StreamSpec(store=written.store, **{**fields, **changes})


def test_the_ranges_are_every_byte_of_the_sites_once(written):
    reader = DatasetReader(written.store, written.manifest)
    ranges = chunk_ranges(reader, ["x", "y"])
    assert sum(length for _, _, length in ranges) == written.rows * ROW_BYTES
    data = b"".join(written.store.read_range(*place) for place in chunk_ranges(reader, ["y"]))
    stored = written.vectors["y"].view(dtype=torch.int16).numpy()
    assert np.array_equal(np.frombuffer(data, np.int16).reshape(-1, 6), stored)


@pytest.mark.parametrize("parallel", [1, 4])
def test_plain_reads_count_whole_chunks(written, parallel):
    speed = plain_reads(DatasetReader(written.store, written.manifest), ["x"], seconds=0.2, parallel=parallel)
    assert speed.parallel == parallel <= speed.gets
    assert speed.gets * 8 * 8 <= speed.bytes <= speed.gets * 16 * 8  # the last chunk of each shard has 8 rows or 16
    assert speed.seconds > 0
    assert speed.mb_per_s == pytest.approx(speed.bytes / speed.seconds / 1e6)
    assert speed.gets_per_s == pytest.approx(speed.gets / speed.seconds)


def test_the_stream_is_counted_by_what_arrives(written):
    speed = stream_speed(spec_of(written), batch_rows=20, seconds=0.5)
    assert 0 < speed.rows * ROW_BYTES <= speed.bytes  # a chunk on the cut of two lanes is read for each of them
    assert speed.batches * 20 <= speed.rows
    assert speed.rows_per_s == pytest.approx(speed.rows / speed.seconds)


def test_rows_that_a_stream_filters_are_read_but_not_counted_as_rows(tmp_path):
    special = np.arange(200) % 2 == 0
    written = write_rows(tmp_path, 200, chunk_rows=16, special=special)
    speed = stream_speed(spec_of(written, sites=("x",)), batch_rows=20, seconds=0.2)
    assert speed.rows * 2 * 8 <= speed.bytes


def test_a_stream_ends_in_its_first_batch_when_the_time_is_up(written):
    speed = stream_speed(spec_of(written), batch_rows=20, seconds=0.0)
    assert speed.batches == 0
    assert 0 < speed.rows < 20 * 4


def test_one_core_checks_and_permutes(written):
    core = core_speed(spec_of(written), seconds=0.05)
    assert core.checksum_mb_per_s > 0
    assert core.permute_mb_per_s > 0


def test_the_share_of_a_core_is_what_passes_over_what_it_can():
    assert CoreSpeed(checksum_mb_per_s=1000.0, permute_mb_per_s=500.0).share_of_core(100.0) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("stream", "step", "fed", "sentence"),
    [
        (1000.0, 100.0, 10, AT_11 + "1,000."),
        (1099.0, 100.0, 10, AT_11 + "1,099."),
        (100.0, 100.0, 1, "topk becomes I/O bound at 2 workers: one worker trains 100 rows/s, the stream gives 100."),
        (
            25.0,
            100.0,
            0,
            "topk is I/O bound with 1 worker: one worker trains 100 rows/s, the stream gives 25, "
            "so it waits for data 75% of its time.",
        ),
    ],
)
def test_the_number_of_workers_follows_from_the_two_speeds(stream, step, fed, sentence):
    feeding = Feeding(stream_rows_per_s=stream, step_rows_per_s=step)
    assert (feeding.workers_fed, feeding.io_bound_workers) == (fed, fed + 1)
    assert fed * step <= stream < feeding.io_bound_workers * step
    assert feeding.sentence("topk") == sentence


def test_a_batch_of_more_rows_than_there_are_is_refused(written):
    with pytest.raises(UserError, match="batch_rows: 400 is larger than the 200 training rows"):
        stream_speed(spec_of(written), batch_rows=400, seconds=0.1)


def test_damage_is_named_and_not_measured(tmp_path):
    written = write_rows(tmp_path, 200, chunk_rows=16)
    shard = written.manifest.shards[0]
    path = tmp_path / shard.file
    data = bytearray(path.read_bytes())
    data[shard.offsets["x"]] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match=r"shard shards/000000.safetensors, x, chunk 0"):
        stream_speed(spec_of(written, sites=("x",)), batch_rows=20, seconds=0.5)
