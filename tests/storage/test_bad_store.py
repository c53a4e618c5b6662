"""A store that fails now and then is survived with the same bytes; one that stays wrong is named, in time."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from faulty_server import Cut, Decide, Fault, Flip, Lost, Refusal, Request, Reset, Whole, faulty_server, first, unlucky
from quick_cases import quick
from synthetic import Written, read_into, write_rows

import lexray.storage.store
from lexray.storage.errors import CorruptDataError, MissingBucketError, UserError
from lexray.storage.manifest import load_manifest
from lexray.storage.objects.retries import RetryPolicy, StoreUnavailableError, retried_calls
from lexray.storage.objects.settings import REQUESTS_IN_FLIGHT, StorageSettings
from lexray.storage.reader import DatasetReader
from lexray.storage.selection import Selection
from lexray.storage.store import Store
from lexray.storage.stream import local_stream
from lexray.storage.windows import StreamSpec

BUCKET = "bad-store"
SLOW_DOWN = Refusal(503, "SlowDown", "Please reduce your request rate.")
EXPIRED = Refusal(400, "ExpiredToken", "The provided token has expired.")
PASSING: dict[str, Fault] = {
    "slow down": SLOW_DOWN,
    "503": Refusal(503, "ServiceUnavailable"),
    "429": Refusal(429, "TooManyRequests"),
    "500": Refusal(500, "InternalError"),
    "request timeout": Refusal(400, "RequestTimeout"),
    "expired token": EXPIRED,
    "reset": Reset(),
    "lost answer": Lost(),
}


@pytest.fixture(scope="module")
def server(s3_server: str) -> str:
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=BUCKET)
    return s3_server


@pytest.fixture
def healthy(server: str) -> Store:
    """An empty place on the server itself."""
    return Store.at(f"s3://{BUCKET}/{uuid.uuid4().hex}", StorageSettings(endpoint_url=server))


@pytest.fixture
def with_faults(healthy: Store) -> Iterator[Callable[..., Store]]:
    """The same place, reached through a proxy that does what it is told; `proxy_of` the store is the proxy."""
    open_proxies = []

    def through(decide: Decide = lambda request: None, *, bytes_per_s: float | None = None, **settings: Any) -> Store:
        context = faulty_server(str(healthy.settings.endpoint_url), decide, bytes_per_s=bytes_per_s)
        proxy = context.__enter__()
        open_proxies.append(context)
        store = Store(healthy.url, replace(healthy.settings, endpoint_url=proxy.url, **settings))
        PROXIES[proxy.url] = proxy
        return store

    yield through
    for context in open_proxies:
        context.__exit__(None, None, None)


PROXIES: dict[str, Any] = {}


def proxy_of(store: Store) -> Any:
    return PROXIES[str(store.settings.endpoint_url)]


WithFaults = Callable[..., Store]

OPERATIONS: dict[str, tuple[Callable[[Store], Any], Any]] = {
    "read": (lambda store: store.read("folder/file"), b"0123456789"),
    "read_range": (lambda store: store.read_range("folder/file", 2, 3), b"234"),
    "read_range behind the end": (lambda store: store.read_range("folder/file", 20, 3), b""),
    "read_range_into": (lambda store: read_into(store, "folder/file", 2, 3), b"234"),
    "read_range_into behind the end": (lambda store: read_into(store, "folder/file", 20, 3), b""),
    "size": (lambda store: store.size("folder/file"), 10),
    "size of nothing": (lambda store: store.size("folder/none"), None),
    "exists": (lambda store: store.exists("folder/file"), True),
    "exists not": (lambda store: store.exists("none"), False),
    "list": (lambda store: (store.list_folders(), store.list_files("folder")), (["folder"], ["file"])),
    "write": (lambda store: (store.write("new", b"x"), store.read("new"))[1], b"x"),
    "delete": (lambda store: (store.delete("folder"), store.exists("folder/file"))[1], False),
}


# Faults that pass


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy with short pauses."""
    monkeypatch.setattr(StorageSettings, "policy", RetryPolicy(first_ceiling_s=0.02))


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("fault", "operations"),
    [
        ("slow down", list(OPERATIONS)),
        *((fault, ["read_range", "read_range_into", "size", "write"]) for fault in PASSING),
    ],
)
def test_every_call_survives_a_fault_that_passes(
    fault: str, operations: list[str], healthy: Store, with_faults: WithFaults
) -> None:
    faults: list[Fault] = []
    store = with_faults(lambda request: faults.pop() if faults else None)
    for operation, expected in (OPERATIONS[name] for name in operations):
        healthy.write("folder/file", b"0123456789")
        before = retried_calls()
        faults += [PASSING[fault]] * 3
        assert operation(store) == expected
        assert not faults
        assert retried_calls() > before


@pytest.mark.usefixtures("quick_retries")
def test_an_answer_cut_short_is_asked_for_again(healthy: Store, with_faults: WithFaults) -> None:
    healthy.write("file", b"0123456789" * 50)
    for read in (
        lambda store: store.read("file"),
        lambda store: store.read_range("file", 0, 500),
        lambda store: read_into(store, "file", 0, 500),
    ):
        store, before = with_faults(first(2, Cut())), retried_calls()
        assert read(store) == b"0123456789" * 50
        assert retried_calls() == before + 2


@pytest.mark.usefixtures("quick_retries")
def test_each_retry_is_one_request_so_counts_are_true(healthy: Store, with_faults: WithFaults) -> None:
    healthy.write("file", b"x")
    store, before = with_faults(first(4, SLOW_DOWN)), retried_calls()
    assert store.read("file") == b"x"
    assert len(proxy_of(store).requests) == 5
    assert retried_calls() == before + 4


# Faults that stay


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refusal(403, "AccessDenied"), PermissionError),
        (Refusal(403, "InvalidAccessKeyId"), PermissionError),
        (Refusal(404, "NoSuchBucket"), MissingBucketError),
        (Refusal(404, "NoSuchKey"), FileNotFoundError),
        (Refusal(400, "InvalidRequest"), OSError),
    ],
)
def test_what_does_not_pass_is_not_tried_again(
    refusal: Refusal, error: type[Exception], with_faults: WithFaults
) -> None:
    store, before = with_faults(first(99, refusal)), retried_calls()
    with pytest.raises(error):
        store.read("file")
    with pytest.raises(error):
        store.write("file", b"x")
    assert retried_calls() == before


def test_a_refusal_is_not_taken_for_an_absence(with_faults: WithFaults) -> None:
    store = with_faults(first(99, Refusal(403, "AccessDenied")))
    for call in (store.exists, store.size, store.list_folders, store.delete):
        with pytest.raises(PermissionError):
            call("file")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"^dataset: cannot read s3://.*\(told to\)"):
        load_manifest(store)


@pytest.mark.parametrize("fault", [SLOW_DOWN, EXPIRED, Reset()])
def test_a_store_that_stays_bad_is_given_up_within_the_budget(fault: Fault, with_faults: WithFaults) -> None:
    store = with_faults(first(9999, fault), retry_budget_s=1.5)
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        store.read("shards/000000.safetensors")
    assert 1 <= time.monotonic() - began < 30, "the budget and one last call"
    line = str(caught.value)
    assert re.match(
        re.escape(f"{store.url}/shards/000000.safetensors") + r": given up after \d+ attempts? in \d+ s; .", line
    )
    assert len(line.splitlines()) == 1
    if isinstance(fault, Refusal):
        assert line.endswith(fault.message)


# Streams


def read_stream(store: Store, steps: int) -> list[tuple[list[int], torch.Tensor]]:
    spec = StreamSpec(store=store, sites=("x",), selection=Selection(part="all"), lanes=4, window_bytes=4096)
    stream = local_stream(spec, batch_rows=64)
    batches = [stream.batch(step) for step in range(min(steps, stream.steps_per_epoch))]
    return [(batch.row_ids.tolist(), batch.vectors["x"]) for batch in batches]


def assert_equal_streams(a: list[tuple[list[int], torch.Tensor]], b: list[tuple[list[int], torch.Tensor]]) -> None:
    assert [ids for ids, _ in a] == [ids for ids, _ in b]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True))


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("fault", quick([SLOW_DOWN, Reset(), Cut()], [Cut()]))
def test_a_stream_over_a_store_where_requests_fail_gives_the_same_rows(
    fault: Fault, healthy: Store, with_faults: WithFaults
) -> None:
    write_rows(healthy, [1200, 999], sites={"x": 16}, chunk_rows=32)
    store, before = with_faults(unlucky(fault, share=0.1, times=3)), retried_calls()
    assert_equal_streams(read_stream(store, 99), read_stream(healthy, 99))
    assert proxy_of(store).faults >= 3
    assert len(proxy_of(store).requests) > 50
    assert retried_calls() > before


def test_a_stream_over_a_throttled_store_gives_the_same_rows(healthy: Store, with_faults: WithFaults) -> None:
    written = write_rows(healthy, 4096, sites={"x": 1024}, chunk_rows=512)
    store = with_faults(bytes_per_s=20e6)
    began = time.monotonic()
    throttled = read_stream(store, 8)
    assert_equal_streams(throttled, read_stream(healthy, 8))
    assert time.monotonic() - began >= 0.5 * written.manifest.bytes / 20e6


# Data that is wrong


@pytest.fixture
def written(healthy: Store) -> Written:
    return write_rows(healthy, [100, 100, 100])


def first_error(written: Written) -> str:
    """What a reader of all chunks in order is told."""
    reader = DatasetReader(written.store, written.manifest)
    for chunk in range(len(reader.chunks)):
        try:
            reader.read_chunk(chunk, "x")
        except CorruptDataError as error:
            return str(error)
    return "nothing"


def test_a_flipped_byte_names_shard_tensor_and_chunk(written: Written) -> None:
    shard = written.manifest.shards[1]
    data = bytearray(written.store.read(shard.file))
    data[shard.offsets["x"] + 3 * 8 * 8 + 5] ^= 1
    written.store.write(shard.file, bytes(data))
    before = retried_calls()
    assert first_error(written).startswith(f"shard {shard.file}, x, chunk 3: checksum ")
    assert retried_calls() == before + 2


def test_a_missing_object_names_the_shard_at_once(written: Written) -> None:
    shard, before = written.manifest.shards[2], retried_calls()
    written.store.delete(shard.file)
    assert first_error(written) == f"shard {shard.file}: is missing from {written.store.url}"
    with pytest.raises(CorruptDataError, match=f"shard {shard.file}: is missing"):
        DatasetReader(written.store, written.manifest).read_column("document")
    assert retried_calls() == before


def test_an_object_replaced_by_another_of_equal_size_is_named_by_its_checksum(written: Written) -> None:
    others = write_rows(written.store.at_path("others"), [100, 100, 100], seed=1)
    shard = written.manifest.shards[1]
    other = others.store.read(shard.file)
    assert len(other) == shard.bytes
    written.store.write(shard.file, other)
    assert first_error(written).startswith(f"shard {shard.file}, x, chunk 0: checksum ")


def test_a_store_that_sends_more_than_was_asked_for_is_told(written: Written, with_faults: WithFaults) -> None:
    shard, reader = written.manifest.shards[0], DatasetReader(written.store, written.manifest)
    store = with_faults(lambda request: Whole())
    length = reader.read_chunk(0, "x").nbytes
    with pytest.raises(CorruptDataError, match=rf"shard {shard.file}, x, chunk 0: \d+ bytes, expected {length}$"):
        DatasetReader(store, written.manifest).read_chunk(0, "x")


def test_a_byte_flipped_on_the_way_is_read_again(written: Written, with_faults: WithFaults) -> None:
    store, before = with_faults(first(1, Flip())), retried_calls()
    expected = DatasetReader(written.store, written.manifest).read_chunk(7, "x")
    assert (DatasetReader(store, written.manifest).read_chunk(7, "x") == expected).all()
    store = with_faults(first(1, Flip()))
    assert len(DatasetReader(store, written.manifest).read_column("document")) == 39
    assert retried_calls() == before + 2


# Large files


PART_BYTES = 2**18


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file of four parts, which are smaller than S3 takes them so that the test is quick."""
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    monkeypatch.setattr(lexray.storage.store, "PART_BYTES", PART_BYTES)
    return os.urandom(3 * PART_BYTES + 99)


def is_part(request: Request, number: int | None = None) -> bool:
    wanted = "partNumber=" if number is None else f"partNumber={number}&"
    return request.method == "PUT" and wanted in request.path


def uploads_under_way(store: Store) -> list[Any]:
    client = boto3.client("s3", endpoint_url=store.settings.endpoint_url)
    found: list[Any] = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return found


def test_a_large_file_is_written_and_read_in_parts_side_by_side(
    small_parts: bytes, healthy: Store, with_faults: WithFaults
) -> None:
    parts, pieces = threading.Barrier(4), threading.Barrier(3)

    def wait_for_others(request: Request) -> None:
        if is_part(request):
            parts.wait(timeout=60)
        elif request.method == "GET" and not request.headers.get("range", "").startswith("bytes=0-"):
            pieces.wait(timeout=60)

    store = with_faults(wait_for_others)
    store.write("large", small_parts)
    assert len([request for request in proxy_of(store).requests if is_part(request)]) == 4
    assert store.read("large") == small_parts
    assert healthy.size("large") == len(small_parts)


@pytest.mark.usefixtures("quick_retries")
def test_a_part_that_fails_costs_a_part_and_not_the_upload(
    small_parts: bytes, healthy: Store, with_faults: WithFaults
) -> None:
    store = with_faults(unlucky(SLOW_DOWN, share=1.0, times=2))
    store.write("large", small_parts)
    assert healthy.read("large") == small_parts
    assert len([request for request in proxy_of(store).requests if is_part(request)]) == 4 * 3


@pytest.mark.parametrize(("fault", "budget_s"), [(Refusal(403, "AccessDenied"), None), (SLOW_DOWN, 0.5)])
def test_an_upload_that_fails_is_aborted_and_leaves_no_object(
    fault: Refusal, budget_s: float | None, small_parts: bytes, healthy: Store, with_faults: WithFaults
) -> None:
    store = with_faults(lambda request: fault if is_part(request, 3) else None, retry_budget_s=budget_s)
    with pytest.raises(OSError, match=fault.message):
        store.write("large", small_parts)
    assert not healthy.exists("large")
    assert not uploads_under_way(healthy)


def test_an_upload_whose_last_answer_was_lost_is_whole(
    small_parts: bytes, healthy: Store, with_faults: WithFaults
) -> None:
    lost: list[Request] = []

    def lose_completion(request: Request) -> Fault:
        if request.method != "POST" or "uploadId=" not in request.path or lost:
            return None
        lost.append(request)
        return Lost()

    store = with_faults(lose_completion)
    store.write("large", small_parts)
    assert lost
    assert healthy.read("large") == small_parts
    assert not uploads_under_way(healthy)


def test_no_more_requests_are_in_flight_than_allowed_and_as_many_can_be(with_faults: WithFaults) -> None:
    together = threading.Barrier(REQUESTS_IN_FLIGHT)

    def wait_for_others(request: Request) -> None:
        together.wait(timeout=60)

    store = with_faults(wait_for_others)
    with ThreadPoolExecutor(2 * REQUESTS_IN_FLIGHT) as pool:
        answers = list(pool.map(lambda number: store.list_files(f"{number}"), range(2 * REQUESTS_IN_FLIGHT)))
    assert answers == [[]] * (2 * REQUESTS_IN_FLIGHT)
    assert proxy_of(store).most_at_once == REQUESTS_IN_FLIGHT


# Credentials

LIFETIME_S = 2
PROVIDER = """
import json, sys, time
expires = time.time() + float(sys.argv[1])
shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires + 1))
keys = {"AccessKeyId": "key", "SecretAccessKey": "secret", "SessionToken": f"token-{expires}", "Expiration": shown}
print(json.dumps({"Version": 1, **keys}))
"""


def refuse_old_tokens(request: Request) -> Fault:
    """As S3 does: a token says when it ends."""
    expires = float(request.headers.get("x-amz-security-token", "token-0").removeprefix("token-"))
    return EXPIRED if time.time() > expires else None


def tokens(store: Store) -> set[str]:
    return {request.headers["x-amz-security-token"] for request in proxy_of(store).requests}


@pytest.mark.slow
def test_credentials_that_live_for_seconds_are_renewed_unnoticed(
    healthy: Store, with_faults: WithFaults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "provider.py").write_text(PROVIDER)
    process = f"{sys.executable} {tmp_path / 'provider.py'} {LIFETIME_S}"
    (tmp_path / "config").write_text(f"[profile short]\ncredential_process = {process}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    healthy.write("file", b"0123456789")
    store = with_faults(refuse_old_tokens, profile="short")
    while len(tokens(store)) < 4:
        assert store.read_range("file", 2, 3) == b"234"
        assert store.size("file") == 10
        time.sleep(0.02)
    assert len(proxy_of(store).requests) > 3 * len(tokens(store)), "not fetched anew for each request"


@pytest.mark.slow
def test_credentials_that_another_program_renews_in_a_file_are_read_again(
    healthy: Store, with_faults: WithFaults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def renew(lifetime_s: float) -> None:
        keys = (
            f"aws_access_key_id=key\naws_secret_access_key=secret\naws_session_token=token-{time.time() + lifetime_s}"
        )
        file.write_text(f"[short]\n{keys}\n")

    healthy.write("file", b"0123456789")
    store = with_faults(refuse_old_tokens, profile="short")
    renew(0.5)
    late = threading.Timer(1.5, renew, [60.0])
    late.start()
    while late.is_alive():
        assert store.read("file") == b"0123456789"
        assert store.size("file") == 10
    assert proxy_of(store).faults > 0
    assert len(tokens(store)) == 2
