"""Chunks on disk: nothing is read twice, nothing wrong is ever served, and they never take more than they may."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic import Written, write_rows

from lexray.storage.chunk_cache import CacheSettings, ChunkCache, ChunkName
from lexray.storage.order import WindowKey
from lexray.storage.reader import ChunkReads
from lexray.storage.selection import Selection
from lexray.storage.stream import local_stream
from lexray.storage.windows import StreamSpec, Window, WindowReader, local_chunks

SITES = {"x": 4, "layers.3/out": 6}


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_rows(tmp_path / "data", [131, 97, 61], sites=SITES)


@pytest.fixture
def settings(tmp_path: Path) -> CacheSettings:
    return CacheSettings(dir=str(tmp_path / "cache"), bytes=2**20)


def spec_of(written: Written, *, sites: tuple[str, ...] = tuple(SITES), part: str = "train") -> StreamSpec:
    selection = Selection(part=part, held_out=0.2)  # type: ignore[arg-type]
    return StreamSpec(store=written.store, sites=sites, selection=selection, lanes=4, window_bytes=200)


def windows(spec: StreamSpec, cache: CacheSettings | None) -> list[Window]:
    """All windows of the first epoch, read by a process of its own as far as the cache can tell."""
    reader = WindowReader(spec, local_chunks(cache))
    order = reader.order(0)
    return [reader.read(WindowKey(0, lane, i)) for lane in range(spec.lanes) for i in range(len(order.windows(lane)))]


def assert_equal(found: list[Window], expected: list[Window]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.row_ids, b.row_ids)
        for site, values in b.vectors.items():
            np.testing.assert_array_equal(a.vectors[site], values)


def store_bytes(found: list[Window]) -> int:
    return sum(window.cost.store_bytes for window in found)


def files_of(settings: CacheSettings) -> list[Path]:
    return sorted(Path(settings.dir).rglob("*.chunk"))


def kept_bytes(settings: CacheSettings) -> int:
    with ChunkCache(settings)._usage():  # nobody adds or removes meanwhile
        return sum(file.stat().st_size for file in files_of(settings))


def test_a_chunk_is_read_from_the_store_once_for_all_streams_of_a_dataset(
    written: Written, settings: CacheSettings
) -> None:
    specs = [spec_of(written), spec_of(written, part="validation"), spec_of(written, sites=("x",))]
    plain = [windows(spec, None) for spec in specs]
    whole = windows(spec_of(written, part="all"), settings)
    assert store_bytes(whole) == written.manifest.rows * sum(2 * width for width in SITES.values())
    erase_sites(written)  # from now on nobody gets a chunk out of the store
    for spec, expected in zip(specs, plain, strict=True):
        found = windows(spec, settings)
        assert_equal(found, expected)
        assert store_bytes(found) == 0
        assert sum(window.cost.disk_bytes for window in found) > 0


def erase_sites(written: Written) -> None:
    for shard in written.manifest.shards:
        path = Path(str(written.store.local_path), shard.file)
        data = bytearray(path.read_bytes())
        for site, width in SITES.items():
            size = shard.rows * 2 * width
            data[shard.offsets[site] : shard.offsets[site] + size] = bytes(size)
        path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "long"])
def test_a_damaged_file_is_read_anew_and_never_served(damage: str, written: Written, settings: CacheSettings) -> None:
    expected = windows(spec_of(written), settings)
    for file in files_of(settings):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes({"flipped": data, "short": data[:-1], "empty": b"", "long": data + b"0"}[damage])
    found = windows(spec_of(written), settings)
    assert_equal(found, expected)
    assert store_bytes(found) == store_bytes(expected)
    assert store_bytes(windows(spec_of(written), settings)) == 0, "they are whole again"


def test_chunks_used_longest_ago_make_room(settings: CacheSettings) -> None:
    cache = ChunkCache(CacheSettings(dir=settings.dir, bytes=1000))
    names = [ChunkName("d", "x", number) for number in range(12)]
    for name in names[:10]:
        cache.add(name, b"a" * 100)
        time.sleep(0.02)  # the clock of files is coarse
    assert all(cache.read(name) for name in names[:10]), "these fit"
    for name in reversed(names[:10]):
        time.sleep(0.02)  # the clock of files is coarse
        cache.read(name)
    cache.add(names[10], b"b" * 100)
    assert cache.read(names[10]) == b"b" * 100
    assert cache.read(names[9]) is None, "used before all others"
    assert cache.read(names[0]) == b"a" * 100, "used last"
    assert kept_bytes(settings) <= 1000
    cache.add(names[11], b"c" * 1001)
    assert cache.read(names[11]) is None, "larger than the whole cache"
    assert cache.read(names[0]) is not None


def test_the_limit_holds_over_restarts_and_for_lower_limits(settings: CacheSettings) -> None:
    for start in range(5):
        cache = ChunkCache(CacheSettings(dir=settings.dir, bytes=1000))
        for number in range(7):
            cache.add(ChunkName("d", "x", 7 * start + number), b"a" * 90)
            assert kept_bytes(settings) <= 1000
    assert kept_bytes(settings) >= 700
    ChunkCache(CacheSettings(dir=settings.dir, bytes=300)).add(ChunkName("e", "x", 0), b"a" * 90)
    assert 90 <= kept_bytes(settings) <= 300


def test_files_of_others_are_left_alone(settings: CacheSettings) -> None:
    mine = [Path(settings.dir, "notes.txt"), Path(settings.dir, "a", "b", "0001.chunk")]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"mine" * 100)
    cache = ChunkCache(CacheSettings(dir=settings.dir, bytes=200))
    for number in range(10):
        cache.add(ChunkName("d", "x", number), b"a" * 100)
    assert all(file.read_bytes() == b"mine" * 100 for file in mine)


ADD_FOR_EVER = """
import itertools, random, sys
from lexray.storage.chunk_cache import CacheSettings, ChunkCache, ChunkName
cache = ChunkCache(CacheSettings(dir=sys.argv[1], bytes=int(sys.argv[2])))
for turn in range(int(sys.argv[3])):
    number = random.randrange(60)
    size = 500 + 20 * number
    data = cache.read(ChunkName("d", "x", number))
    assert data is None or data == bytes([number]) * size, "never half a chunk"
    if data is None:
        cache.add(ChunkName("d", "x", number), bytes([number]) * size)
    if not turn:
        print("running", flush=True)
"""


def adding(settings: CacheSettings, turns: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", ADD_FOR_EVER, settings.dir, "20000", str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_processes_share_one_cache_and_its_limit_even_when_some_are_killed(settings: CacheSettings) -> None:
    rng = random.Random(0)
    with adding(settings, 2000) as one, adding(settings, 2000) as other:
        for _ in range(4):
            with adding(settings, 10**9) as killed:
                assert killed.stdout is not None
                killed.stdout.readline()
                time.sleep(rng.random() * 0.1)
                killed.send_signal(signal.SIGKILL)
            assert kept_bytes(settings) <= 20_000
        assert [process.wait(timeout=60) for process in (one, other)] == [0, 0]
    assert kept_bytes(settings) <= 20_000
    cache = ChunkCache(CacheSettings(dir=settings.dir, bytes=1000))
    cache.add(ChunkName("d", "x", 100), b"a" * 500)
    assert not list(Path(settings.dir).rglob("*.partial")), "what the killed left is gone with the next clearing"
    assert kept_bytes(settings) <= 1000


def test_readers_of_one_chunk_at_once_share_one_read(written: Written) -> None:
    reads = ChunkReads(parallel=1)
    dataset = WindowReader(spec_of(written)).dataset
    released = threading.Event()
    reads._pool.submit(released.wait)  # the only thread is busy until all have asked
    asked = [reads.read(dataset, 3, "x") for _ in range(20)] + [reads.read(dataset, 3, "layers.3/out")]
    released.set()
    chunks = [reading.result() for reading in asked]
    assert [chunk.cost.store_bytes > 0 for chunk in chunks] == [True, *[False] * 19, True]
    assert all(chunk.rows is chunks[0].rows for chunk in chunks[:20])
    assert chunks[1].cost.memory_bytes == chunks[0].cost.store_bytes
    assert reads.read(dataset, 3, "x").result().cost.store_bytes > 0, "afterwards, without a cache, it is read again"


def test_an_error_reaches_all_who_share_the_read_and_is_not_kept(written: Written) -> None:
    reads = ChunkReads(parallel=1)
    dataset = WindowReader(spec_of(written)).dataset
    shard = Path(str(written.store.local_path), written.manifest.shards[0].file)
    intact = shard.read_bytes()
    shard.write_bytes(bytes(len(intact)))
    released = threading.Event()
    reads._pool.submit(released.wait)
    asked = [reads.read(dataset, 0, "x") for _ in range(3)]
    released.set()
    for reading in asked:
        with pytest.raises(Exception, match=r"shards/000000.safetensors, x, chunk 0"):
            reading.result()
    shard.write_bytes(intact)
    assert len(reads.read(dataset, 0, "x").result().rows) == 8


def assert_given_up(caplog: pytest.LogCaptureFixture, settings: CacheSettings) -> None:
    lines = [record.message for record in caplog.records if record.name == "lexray"]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"cache.dir {settings.dir}: no further chunks are kept there (")


@pytest.mark.parametrize("trouble", ["a file in its place", "a file where its folder of the dataset would be"])
def test_a_cache_that_cannot_be_written_is_given_up_in_one_line(
    trouble: str, written: Written, settings: CacheSettings, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = Path(settings.dir)
    if trouble != "a file in its place":
        blocked = blocked / "lexray-chunks" / written.manifest.id
        blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="lexray"):
        assert_equal(windows(spec_of(written), settings), windows(spec_of(written), None))
    assert_given_up(caplog, settings)


WITH_A_FULL_DISK = """
import resource, sys
from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.selection import Selection
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.storage.windows import LocalWindows, StreamSpec, WindowReader, local_chunks
selection = Selection(held_out=0.2)
spec = StreamSpec(store=Store.at(sys.argv[1]), sites=("x",), selection=selection, lanes=4, window_bytes=200)
resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))  # a chunk has 64 bytes
chunks = local_chunks(CacheSettings(dir=sys.argv[2], bytes=2**20))
stream = BatchStream(spec=spec, source=LocalWindows(WindowReader(spec, chunks)), batch_rows=20)
for step in range(stream.steps_per_epoch):
    print(*stream.batch(step).row_ids)
"""


def test_a_stream_goes_on_when_the_disk_takes_no_more(written: Written, settings: CacheSettings) -> None:
    """The limit on the size of files stands for a full disk: the write itself fails, in the middle of a chunk."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_FULL_DISK, str(written.store.local_path), settings.dir],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    stream = local_stream(spec_of(written, sites=("x",)), batch_rows=20)
    expected = [" ".join(map(str, stream.batch(step).row_ids)) for step in range(stream.steps_per_epoch)]
    assert done.stdout.splitlines() == expected
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "no further chunks are kept there (File too large)" in done.stderr
    assert not any(file.stat().st_size for file in Path(settings.dir).rglob("*.chunk"))
    assert not list(Path(settings.dir).rglob("*.partial"))
    assert os.path.isdir(settings.dir)


# A place where others may write


def chunks_folder(settings: CacheSettings) -> Path:
    return Path(settings.dir) / "lexray-chunks"


def check_nothing_is_kept(settings: CacheSettings, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """The cache is given up in one line, and serves nothing."""
    cache, name = ChunkCache(settings), ChunkName("d", "x", 0)
    with caplog.at_level(logging.WARNING, logger="lexray"):
        cache.add(name, b"mine")
        cache.add(name, b"mine")
    lines = [record.message for record in caplog.records if record.name == "lexray"]
    assert lines == [f"cache.dir {settings.dir}: no further chunks are kept there ({why})"]
    assert cache.read(name) is None
    cache.remove(name)


def test_folders_and_files_are_the_users_alone(settings: CacheSettings) -> None:
    chunks_folder(settings).mkdir(parents=True, mode=0o755)
    chunks_folder(settings).chmod(0o777)  # as another program may have left it
    cache = ChunkCache(settings)
    cache.add(ChunkName("d", "layers.3/out", 0), b"x")
    assert cache.read(ChunkName("d", "layers.3/out", 0)) == b"x"
    made = [chunks_folder(settings), *chunks_folder(settings).rglob("*")]
    assert len(made) == 5
    assert {(path.is_dir(), path.stat().st_mode & 0o777) for path in made} == {(True, 0o700), (False, 0o600)}


def test_the_folder_of_another_user_is_not_used(
    settings: CacheSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ChunkCache(settings).add(ChunkName("d", "x", 0), b"another's")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    check_nothing_is_kept(settings, f"belongs to another user (uid {me}, not {me + 1})", caplog)
    assert [file.read_bytes() for file in files_of(settings)] == [b"another's"]


def test_a_link_in_place_of_the_folder_is_not_followed(
    settings: CacheSettings, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    Path(settings.dir).mkdir()
    chunks_folder(settings).symlink_to(victim)
    check_nothing_is_kept(settings, "is a symbolic link", caplog)
    assert list(victim.iterdir()) == []
    assert victim.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("at", ["usage", "d", "d/x", "d/x/00000000.chunk", "d/x/00000000.chunk.partial"])
@pytest.mark.parametrize("kind", ["symbolic", "hard", "pipe"])
def test_no_victim_is_written_or_read_through_what_stands_in_the_cache(
    at: str, kind: str, settings: CacheSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    victim, folder = tmp_path / "victim", at in ("d", "d/x")
    if folder:
        (victim / "x").mkdir(parents=True)
        (victim / "00000000.chunk").write_bytes(b"precious")
        (victim / "x" / "00000000.chunk").write_bytes(b"precious")
    else:
        victim.write_bytes(b"precious")
    place = chunks_folder(settings) / at
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "hard" and not folder:
        place.hardlink_to(victim)
    else:
        place.symlink_to(victim)
    before = {path: path.read_bytes() for path in [victim, *victim.rglob("*")] if path.is_file()}
    cache = ChunkCache(CacheSettings(dir=settings.dir, bytes=4))
    for number in range(3):
        cache.add(ChunkName("d", "x", number), b"mine")
        assert cache.read(ChunkName("d", "x", number)) in (None, b"mine", *([b"precious"] if kind == "hard" else []))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["..", ".", "", "../../victim", "a\nb", "%2E%2E", "..."])
def test_a_site_of_an_odd_name_stays_in_the_cache(name: str, settings: CacheSettings) -> None:
    cache = ChunkCache(settings)
    cache.add(ChunkName("d", name, 0), b"x")
    assert cache.read(ChunkName("d", name, 0)) == b"x"
    assert [len(file.relative_to(chunks_folder(settings) / "d").parts) for file in files_of(settings)] == [2]
