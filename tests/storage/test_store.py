"""Files in a folder or a bucket: the same few operations, the same answers, over `file://` and a real S3 server."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from synthetic import Written, read_into, write_rows

from lexray.storage.config_file import checked_config
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.manifest import load_manifest
from lexray.storage.objects.options import SCHEMES
from lexray.storage.objects.retries import RetryPolicy
from lexray.storage.objects.settings import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUESTS_IN_FLIGHT, StorageSettings
from lexray.storage.reader import DatasetReader
from lexray.storage.selection import Selection
from lexray.storage.store import Store
from lexray.storage.stream import local_stream
from lexray.storage.windows import StreamSpec

BUCKET = "activations"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def s3_settings() -> Iterator[StorageSettings]:
    """A server that speaks S3 over HTTP, and how to reach it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        settings = StorageSettings(endpoint_url=f"http://{host}:{port}", region="us-east-1")
        boto3.client("s3", endpoint_url=settings.endpoint_url, region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield settings
        server.stop()


@pytest.fixture
def s3(s3_settings: StorageSettings) -> Store:
    return Store.at(f"s3://{BUCKET}/{uuid.uuid4().hex}", s3_settings)


@pytest.fixture(params=["file", "s3", "memory", "dir"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty place of every kind; `dir` stands for schemes that show a file while it is written."""
    if request.param == "s3":
        return request.getfixturevalue("s3")
    if request.param == "memory":
        return Store.at(f"memory://{uuid.uuid4().hex}/place")
    if request.param == "dir":
        request.getfixturevalue("monkeypatch").setitem(SCHEMES, "dir", {"path": None, "target_protocol": None})
        options = json.dumps({"path": str(tmp_path), "target_protocol": "file"})
        return Store.at("dir://place", StorageSettings(options=options))
    return Store.at(str(tmp_path / "place"))


# The operations


@pytest.mark.parametrize("data", [b"", b"some bytes", bytes(range(256)) * 5000])
def test_what_is_written_is_read(store: Store, data: bytes) -> None:
    store.write("folder/file.bin", data)
    assert store.read("folder/file.bin") == data
    assert store.size("folder/file.bin") == len(data)
    assert store.exists("folder/file.bin")
    assert store.at_path("folder").read("file.bin") == data


def test_a_file_is_replaced_whole(store: Store) -> None:
    store.write("file", b"a longer text")
    store.write("file", b"short")
    assert store.read("file") == b"short"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 10, b"0123456789"), (2, 3, b"234"), (9, 1, b"9"), (4, 0, b""), (7, 99, b"789"), (10, 5, b""), (50, 5, b"")],
)
def test_a_range_is_read_up_to_the_end_of_the_file(store: Store, start: int, length: int, expected: bytes) -> None:
    store.write("file", b"0123456789")
    assert store.read_range("file", start, length) == expected
    assert read_into(store, "file", start, length) == expected


def test_a_large_range_is_read_into_its_place(store: Store) -> None:
    data = random.Random(0).randbytes(3 * 2**20)
    store.write("file", data)
    assert read_into(store, "file", 5, len(data) - 9) == data[5:-4]


def test_what_is_not_there(store: Store) -> None:
    store.write("folder/file", b"x")
    assert not store.exists("none")
    assert store.size("none") is None
    assert store.size("folder/file/below") is None
    assert store.list_folders("none") == []
    assert store.list_folders("folder/file/below") == []
    store.delete("none")
    for read in (
        lambda: store.read("none"),
        lambda: store.read_range("none", 3, 5),
        lambda: read_into(store, "none", 3, 5),
    ):
        with pytest.raises(FileNotFoundError):
            read()


def test_folders_are_listed_sorted_without_files(store: Store) -> None:
    assert store.list_folders() == []
    for path in ("b/1", "a/2", "a/deeper/3", "c10/4", "c9/5", "file"):
        store.write(path, b"x")
    assert store.list_folders() == ["a", "b", "c10", "c9"]
    assert store.list_folders("a") == ["deeper"]
    another_process = Store(store.url, replace(store.settings, addressing_style="path"))
    another_process.write("d/6", b"x")
    assert store.list_folders()[-1] == "d", "listed afresh"


def test_an_empty_object_that_stands_for_a_folder_is_no_folder_in_itself(s3: Store) -> None:
    client = boto3.client("s3", endpoint_url=s3.settings.endpoint_url, region_name="us-east-1")
    prefix = s3.url.removeprefix(f"s3://{BUCKET}/")
    for path in ("trials/", "trials/a/", "trials/b/file"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path}", Body=b"")
    assert s3.list_folders("trials") == ["a", "b"]


def test_files_and_folders_are_deleted(store: Store) -> None:
    for path in ("a/1", "a/deeper/2", "ab/3", "file"):
        store.write(path, b"x")
    store.delete("a")
    store.delete("file")
    assert not store.exists("a/deeper/2")
    assert store.list_folders() == ["ab"]
    assert store.read("ab/3") == b"x"


@pytest.mark.parametrize("store", ["file", "s3", "memory"], indirect=True)
def test_a_writable_place_is_found_to_be_one_and_left_as_it_was(store: Store) -> None:
    store.check_writable("output")
    assert not store.exists("")
    store.write("file", b"x")
    store.check_writable("output")
    assert store.list_folders() == []
    assert [name.rsplit("/", 1)[-1] for name in store.filesystem.find(store.url)] == ["file"]


# Urls and settings


def test_local_paths_become_absolute_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Store.at("runs/x/").url == f"file://{tmp_path}/runs/x"
    assert Store.at("file://runs").url == f"file://{tmp_path}/runs"
    assert Store.at("~/runs").local_path == "/home/somebody/runs"
    assert Store.at("s3://bucket/folder/").url == "s3://bucket/folder"
    assert Store.at("s3://bucket/folder").local_path is None


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Store.at("s4://bucket/folder")
    assert str(caught.value) == (
        "url 's4://bucket/folder': no storage scheme is called 's4'; use a path, file:// or s3://"
    )


def test_settings_become_options_of_the_filesystem() -> None:
    options = json.dumps({"requester_pays": True, "config_kwargs": {"read_timeout": 99}})
    settings = StorageSettings(
        endpoint_url="https://x", region="r", profile="p", anonymous=True, addressing_style="path", options=options
    )
    found = settings.arguments("s3")
    config = found.pop("config_kwargs")
    assert found == {
        "client_kwargs": {"endpoint_url": "https://x", "region_name": "r"},
        "profile": "p",
        "anon": True,
        "use_listings_cache": False,
        "requester_pays": True,
    }
    assert config["s3"] == {"addressing_style": "path"}
    assert config["retries"]["total_max_attempts"] == 1
    assert config["max_pool_connections"] == REQUESTS_IN_FLIGHT
    assert (config["connect_timeout"], config["read_timeout"]) == (CONNECT_TIMEOUT_S, 99)
    assert StorageSettings().arguments("s3")["config_kwargs"]["read_timeout"] == READ_TIMEOUT_S
    assert StorageSettings(options='{"project": "p"}').arguments("gs") == {"project": "p"}
    assert StorageSettings(options='{"requester_pays": true}').arguments("file") == {}


@pytest.mark.parametrize(
    ("scheme", "options", "field"),
    [
        ("s3", {"secret": "x"}, "storage.options.secret"),
        (
            "s3",
            {"client_kwargs": {"aws_secret_access_key": "x"}},
            "storage.options.client_kwargs.aws_secret_access_key",
        ),
        ("abfs", {"account_key": "x"}, "storage.options.account_key"),
    ],
)
def test_options_that_hold_a_credential_are_refused(scheme: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: credentials do not belong here"):
        StorageSettings(options=json.dumps(options)).arguments(scheme)


def test_options_that_a_scheme_does_not_take_are_refused_by_name() -> None:
    options = json.dumps({"max_concurrency": 0})
    with pytest.raises(UserError) as caught:
        Store.at("s3://bucket", StorageSettings(options=options)).read("file")
    line = f"storage.options: s3:// cannot be used with {options} (max_concurrency must be >= 1)"
    assert str(caught.value) == line


def test_a_storage_block_of_a_file_becomes_settings() -> None:
    block = {"region": "r", "options": {"b": [1], "a": {"c": None}}, "retry_budget_s": 5}
    settings = checked_config(StorageSettings, block)
    assert settings == StorageSettings(region="r", options='{"a": {"c": null}, "b": [1]}', retry_budget_s=5)
    assert settings.policy.budget_s == 5
    assert StorageSettings().policy == RetryPolicy()


def test_a_pickled_store_carries_settings_and_no_filesystem(store: Store) -> None:
    store.write("file", b"x")
    assert store.read("file") == b"x"
    data = pickle.dumps(store)
    assert len(data) < 600
    assert b"AWS" not in data
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() not in data
    assert b"fsspec" not in data
    assert b"s3fs" not in data
    again = pickle.loads(data)
    assert again == store
    assert hash(again) == hash(store)
    assert again.read("file") == b"x"


FORK = """
import os, pickle, sys
store = pickle.loads(bytes.fromhex(sys.argv[1]))
assert store.read("file") == b"0123456789"
parents = store.filesystem
child = os.fork()
if child == 0:
    same = store.filesystem is parents
    right = store.read_range("file", 2, 3) == b"234"
    store.write("from_child", b"written")
    os._exit(0 if right and not same else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert store.read("from_child") == b"written"
sys.exit(status)
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which a test may fork, starve or kill."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("store", ["file", "s3"], indirect=True)
def test_a_forked_process_builds_a_filesystem_of_its_own(store: Store) -> None:
    store.write("file", b"0123456789")
    done = run_python(FORK, pickle.dumps(store).hex())
    assert done.returncode == 0, done.stderr


# Faults


DISK_FULL = """
import resource, sys
from lexray.storage.store import Store
store = Store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    store.write("file", b"n" * 5000)
except OSError as error:
    print(error.strerror)
"""


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    store.write("file", b"old")
    done = run_python(DISK_FULL, store.url)
    assert done.stdout == "File too large\n", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert store.read("file") == b"old"


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, s3: Store) -> None:
    (tmp_path / "file").write_text("in the way")
    below_a_file = Store.at(str(tmp_path / "file" / "out"))
    nowhere = Store.at("s3://no-such-bucket/out", s3.settings)
    for store, reason in ((below_a_file, "Not a directory"), (nowhere, "bucket 'no-such-bucket' does not exist")):
        with pytest.raises(UserError) as caught:
            store.check_writable("output")
        assert str(caught.value) == f"output: cannot write to {store.url} ({reason}); choose another place"
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.usefixtures("s3_settings")
@pytest.mark.parametrize(
    ("url", "settings", "reason"),
    [
        (
            "s3://bucket/a",
            StorageSettings(endpoint_url="http://127.0.0.1:9", retry_budget_s=0),
            "s3://bucket/a/manifest.json: given up after 1 attempt in N s; "
            'Could not connect to the endpoint URL: "http://127.0.0.1:9/bucket/a/manifest.json"',
        ),
        ("s3://bucket/a", StorageSettings(profile="nobody"), "The config profile (nobody) could not be found"),
        ("gs://bucket/a", StorageSettings(), "Please install gcsfs to access Google Storage"),
    ],
)
def test_a_store_that_cannot_be_reached_is_told_in_one_line(
    url: str, settings: StorageSettings, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed, where it is
    with pytest.raises(UserError) as caught:
        load_manifest(Store.at(url, settings))
    seconds = re.sub(r"in \d+ s;", "in N s;", str(caught.value))
    assert seconds == f"dataset: cannot read {url} ({reason})"


# Datasets in a bucket


@pytest.fixture
def twins(tmp_path: Path, s3: Store) -> tuple[Written, Written]:
    """The same rows on disk and in the bucket."""
    return write_rows(tmp_path, [131, 97, 1]), write_rows(s3, [131, 97, 1])


def test_a_dataset_is_the_same_in_a_bucket_and_on_disk(twins: tuple[Written, Written]) -> None:
    here, there = twins
    assert load_manifest(there.store) == here.manifest
    here.manifest.check_shards(there.store)
    for shard in here.manifest.shards:
        assert there.store.read(shard.file) == here.store.read(shard.file)
    with pytest.raises(UserError, match="already holds a dataset"):
        write_rows(there.store, 10)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_stream_is_the_same_from_a_bucket_and_from_disk(num_ranks: int, twins: tuple[Written, Written]) -> None:
    selection = Selection(held_out=0.2)
    specs = [
        StreamSpec(store=twin.store, sites=("x",), selection=selection, lanes=4, window_bytes=200) for twin in twins
    ]
    for rank in range(num_ranks):
        here, there = (local_stream(spec, batch_rows=40, rank=rank, num_ranks=num_ranks) for spec in specs)
        for step in range(here.steps_per_epoch + 1):
            a, b = here.batch(step), there.batch(step)
            assert a.row_ids.tolist() == b.row_ids.tolist()
            assert torch.equal(a.vectors["x"], b.vectors["x"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard[:-1], "has {less} bytes, the manifest says {bytes}"),
        (None, "is missing"),
    ],
)
def test_a_damaged_shard_in_a_bucket_is_named(
    damage: Callable[[bytes], bytes] | None, message: str, twins: tuple[Written, Written]
) -> None:
    written = twins[1]
    shard = written.manifest.shards[1]
    if damage is None:
        written.store.delete(shard.file)
    else:
        written.store.write(shard.file, damage(written.store.read(shard.file)))
    numbers = {"less": f"{shard.bytes - 1:,}", "bytes": f"{shard.bytes:,}"}
    with pytest.raises(UserError, match=f"shard {shard.file} {message.format(**numbers)}"):
        written.manifest.check_shards(written.store)


def test_a_shard_cut_while_it_is_read_is_corrupt_data_in_a_bucket_too(twins: tuple[Written, Written]) -> None:
    written = twins[1]
    shard = written.manifest.shards[0]
    written.store.write(shard.file, written.store.read(shard.file)[: shard.offsets["x"] + 100])
    reader = DatasetReader(written.store, written.manifest)
    for chunk, found in ((1, 36), (2, 0), (9, 0)):
        with pytest.raises(CorruptDataError) as caught:
            reader.read_chunk(chunk, "x")
        assert str(caught.value) == f"shard {shard.file}, x, chunk {chunk}: {found} bytes, expected 64"


class Replaced(Store):
    """A store whose files are written anew by somebody else just before their size is asked for."""

    def size(self, path: str) -> int | None:
        self.write(path, b"longer than before")
        return super().size(path)


def test_a_file_that_was_empty_and_is_replaced_while_it_is_read_is_read(s3: Store) -> None:
    s3.write("file", b"")
    assert s3.read("file") == b""
    assert Replaced(s3.url, s3.settings).read("file") == b"longer than before"
