"""A name reaches the file of exactly that name, or is refused before anything is touched: on disk, in S3, in memory."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lexray.storage.errors import UserError
from lexray.storage.objects import s3_objects
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

BUCKET = "exact-names"
ODD = (
    "run?", "run*", "run[1]", "run[!a]", "{a,b}", "**", "a#b", "50%", "%41", "%2e%2e", "a b", " a", "a ", "naïve", "名",
    "-rf", "--", "~", "~root", "$HOME", "a:b", "a::b", "a;b", "a&b=c", "a+b", "a@b", "'", '"', "\\", "|", "...", "a..b",
    ".hidden", "space\u00a0", "e\u0301", "CON", "?versionId", "step-000000010-*", "line\nbreak", "tab\t", "\x7f",
)  # fmt: skip


IN_S3 = ("run?", "run*", "run[1]", "a#b", "%41", "%2e%2e", " a", "~", "名", "a::b", "a+b&c=d", "...", "line\nbreak")
"""Requests cost more time than files."""


def neighbours_of(name: str) -> set[str]:
    """Names that a pattern made of `name` would match, or that begin or end alike."""
    matched = name.replace("*", "x").replace("?", "1").replace("[", "").replace("!a]", "b").replace("]", "")
    return {other for other in (matched, name + "1", name[:-1], "run1") if other != name and other.strip(". ~\\\n")}


@pytest.fixture(scope="module")
def client(s3_server: str) -> Any:
    found = boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")
    found.create_bucket(Bucket=BUCKET)
    return found


def s3_settings(address: str) -> StorageSettings:
    return StorageSettings(endpoint_url=address, retry_budget_s=2)


@pytest.fixture(scope="module", params=["file", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    """Makes empty places."""
    if request.param == "s3":
        request.getfixturevalue("client")
        options = s3_settings(request.getfixturevalue("s3_server"))
        return lambda: Store.at(f"s3://{BUCKET}/{uuid.uuid4().hex}", options)
    if request.param == "memory":
        return lambda: Store.at(f"memory://{uuid.uuid4().hex}/place")
    return lambda: Store.at(str(tmp_path_factory.mktemp("place")))


def content(store: Store, folder: str = "") -> dict[str, bytes]:
    """Every file below a folder by its path."""
    prefix = f"{folder}/" if folder else ""
    found = {prefix + name: store.read(prefix + name) for name in store.list_files(folder)}
    for name in store.list_folders(folder):
        found |= content(store, prefix + name)
    return found


def is_refused(store: Store, name: str) -> bool:
    try:
        store.at_path(name)
    except UserError:
        return True
    return False


def check_exactness(store: Store, name: str) -> None:
    """Write, list and delete a folder called `name` among its neighbours. Refused names must leave them alone."""
    neighbours = {other for other in neighbours_of(name) if not is_refused(store, other)}
    for other in neighbours:
        store.write(f"{other}/file", other.encode())
    if not is_refused(store, name):
        mine = store.at_path(name)
        mine.write("file", b"mine")
        mine.write("deeper/file", b"too")
        assert (mine.read("file"), mine.size("file")) == (b"mine", 4)
        assert mine.read_range("file", 1, 2) == b"in"
        assert (mine.list_files(), mine.list_folders()) == (["file"], ["deeper"])
        assert set(store.list_folders()) == neighbours | {name}
        mine.delete("file")
        assert (mine.exists("file"), mine.exists("deeper")) == (False, True)
        store.delete(name)
        assert not store.exists(name)
    assert content(store) == {f"{other}/file": other.encode() for other in neighbours}


@pytest.mark.parametrize(("place", "names"), [("file", ODD), ("memory", ODD), ("s3", IN_S3)], indirect=["place"])
def test_odd_names_are_exact(place: Callable[[], Store], names: tuple[str, ...]) -> None:
    for name in names:
        check_exactness(place(), name)


_CHARACTERS = st.text(
    st.one_of(st.sampled_from("*?[]{}!#%~ -.\\:ab1é\n"), st.characters(exclude_characters="/\0", codec="utf-8")),
    min_size=1,
    max_size=12,
)


@given(name=_CHARACTERS)
@example(name="?versionId=1")
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_name_is_exact_or_refused(place: Callable[[], Store], name: str) -> None:
    check_exactness(place(), name)


NO_PATHS = ("..", ".", "../x", "a/../b", "a//b", "/a", "a/", "a/./b", "//", "a\0b")


@pytest.mark.parametrize("path", NO_PATHS)
def test_a_path_that_leaves_its_store_is_refused_by_every_operation(path: str, place: Callable[[], Store]) -> None:
    store = place()
    store.write("a/b", b"x")
    inner = store.at_path("a")
    calls: list[Callable[[], Any]] = [
        lambda: inner.read(path), lambda: inner.read_range(path, 0, 1), lambda: inner.write(path, b""),
        lambda: inner.size(path), lambda: inner.exists(path), lambda: inner.list_files(path),
        lambda: inner.list_folders(path), lambda: inner.delete(path), lambda: inner.at_path(path),
        lambda: inner.read_range_into(path, 0, memoryview(bytearray(1))),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UserError, match=r"^path '"):
            call()
    assert content(store) == {"a/b": b"x"}


def keys(client: Any) -> dict[str, bytes]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])}


@pytest.mark.parametrize("name", ["sw*p", "run?", "r[a-z]n", "**", "{run,sweep}"])
def test_deleting_in_a_bucket_leaves_the_neighbours_of_a_pattern_alone(name: str, client: Any, s3_server: str) -> None:
    root = uuid.uuid4().hex
    for prefix in (name, "sweep", "run", "run1"):
        for step in (10, 20):
            client.put_object(Bucket=BUCKET, Key=f"{root}/{prefix}/checkpoints/step-{step}/a", Body=prefix.encode())
    before = keys(client)
    Store.at(f"s3://{BUCKET}/{root}/{name}", s3_settings(s3_server)).delete("checkpoints/step-10")
    del before[f"{root}/{name}/checkpoints/step-10/a"]
    assert keys(client) == before


def test_keys_that_urls_would_resolve_are_deleted_by_name(
    client: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who may write below our prefix puts keys there with `..`, `//` and control characters."""
    from moto.s3.models import s3_backends

    root = uuid.uuid4().hex
    backend = s3_backends["123456789012"]["aws"]
    hostile = [
        f"{root}/mine/gone/../../other/file",
        f"{root}/mine/gone//x",
        f"{root}/mine/gone/",
        f"{root}/mine/gone/\x7f",
    ]
    for key in (*hostile, f"{root}/other/file", f"{root}/mine/kept", f"{root}/mine/gonee"):
        backend.put_object(BUCKET, key, b"x")
    store = Store.at(f"s3://{BUCKET}/{root}/mine", s3_settings(s3_server))
    assert store.list_files("gone") == []
    assert store.list_folders("gone") == []
    store.delete("gone")
    left = {key for key in keys(client) if key.startswith(root)}
    assert left == {f"{root}/other/file", f"{root}/mine/kept", f"{root}/mine/gonee"}


def test_more_keys_than_one_request_names_are_all_deleted(
    client: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = s3_objects._list
    monkeypatch.setattr(s3_objects, "_list", lambda fs, **arguments: listed(fs, **{"MaxKeys": 10, **arguments}))
    monkeypatch.setattr(s3_objects, "DELETED_AT_ONCE", 7)
    root = uuid.uuid4().hex
    for number in range(33):
        client.put_object(Bucket=BUCKET, Key=f"{root}/gone/{number}", Body=b"")
    store = Store.at(f"s3://{BUCKET}/{root}", s3_settings(s3_server))
    assert len(store.list_files("gone")) == 33
    store.delete("gone")
    assert not store.exists("gone")


def test_a_whole_bucket_is_never_deleted(client: Any, s3_server: str) -> None:
    client.put_object(Bucket=BUCKET, Key="kept", Body=b"x")
    with pytest.raises(OSError, match="whole bucket"):
        Store.at(f"s3://{BUCKET}", s3_settings(s3_server)).delete("")
    assert "kept" in keys(client)


def test_a_large_object_of_an_odd_name_is_uploaded_in_parts(
    client: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexray.storage.store.PART_BYTES", 5 * 2**20)
    store, data = (
        Store.at(f"s3://{BUCKET}/{uuid.uuid4().hex}/a?b*[c] %#", s3_settings(s3_server)),
        os.urandom(11 * 2**20),
    )
    store.write("part[s]?", data)
    assert store.read("part[s]?") == data
    assert store.list_files() == ["part[s]?"]


def test_links_on_disk_are_deleted_themselves(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "step-000000001-a").mkdir(parents=True)
    (victim / "step-000000001-a" / "part").write_text("precious")
    store = Store.at(str(tmp_path / "sweep"))
    store.write("file", b"")
    (tmp_path / "sweep" / "link").symlink_to(victim)
    store.delete("link")
    assert not (tmp_path / "sweep" / "link").is_symlink()
    assert (victim / "step-000000001-a" / "part").read_text() == "precious"


def test_nothing_is_written_or_deleted_through_links_below_the_output(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "step-000000001-a").mkdir(parents=True)
    (victim / "trial.json").write_text("precious")
    output = tmp_path / "sweep"
    (output / "trials").mkdir(parents=True)
    (output / "trials" / "t").symlink_to(victim)
    trial = Store.at(str(output)).at_path("trials/t")
    for call in (lambda: trial.write("trial.json", b""), lambda: trial.delete("step-000000001-a")):
        with pytest.raises(UserError, match="is a symbolic link to"):
            call()
    assert (victim / "trial.json").read_text() == "precious"
    assert (victim / "step-000000001-a").is_dir()
    assert trial.read("trial.json") == b"precious", "reading is nobody's loss"
    (tmp_path / "linked").symlink_to(output)
    Store.at(str(tmp_path / "linked")).write("file", b"x")
    assert (output / "file").read_bytes() == b"x", "the output itself may be a link"


def test_a_link_of_a_files_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.yaml").symlink_to(tmp_path / "victim")
    Store.at(str(tmp_path / "out")).write("sweep.yaml", b"mine")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "out" / "sweep.yaml").read_bytes() == b"mine"


def test_only_regular_files_and_folders_exist_on_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "real").write_bytes(b"0123")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    store = Store.at(str(tmp_path))
    for name in ("pipe", "zero", "folder", "dangling"):
        assert store.size(name) is None, name
        for call in (lambda name=name: store.read(name), lambda name=name: store.read_range(name, 0, 2**50)):
            with pytest.raises(FileNotFoundError):
                call()
    assert store.list_files() == ["link", "real"]
    assert store.read_range("link", 1, 2**60) == b"123", "bounded by the file"
    store.delete("pipe")
    assert not os.path.lexists(tmp_path / "pipe")
