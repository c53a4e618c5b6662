"""An attempt at a trial that goes on elsewhere by now writes nothing more into the trial's folder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from namespaces import wait_until
from training_synthetic import small_config, small_dataset

from lexray.storage.store import Store
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.trainer import Trainer
from lexray.tuning.fence import ATTEMPT, DisplacedError, Fence, FencedStore


def fence(folder: Path, token: str) -> Fence:
    return Fence(store=Store.at(str(folder)), token=token)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


ATTEMPTS = st.integers(0, 2)


@settings(deadline=None, max_examples=20)
@given(events=st.lists(st.tuples(st.sampled_from(["take", "look", "write"]), ATTEMPTS), max_size=30))
def test_whoever_looked_since_another_took_the_folder_writes_no_more(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("trial")
    fences = [fence(folder, str(number)) for number in range(3)]
    owner, knows, has_looked = None, [False] * 3, [False] * 3
    for what, number in events:
        mine = fences[number]
        if what == "take":
            mine.take()
            owner = number
            continue
        if what == "look":
            mine.look()
        if what == "look" or not has_looked[number]:  # whoever never did looks before the first write
            knows[number], has_looked[number] = knows[number] or owner not in (None, number), True
        if what == "look":
            continue
        if knows[number]:
            before = content(folder)
            for action in (lambda m=mine: m.fenced_store.write("a", b"x"), lambda m=mine: m.fenced_store.delete("b")):
                with pytest.raises(DisplacedError):
                    action()
            assert content(folder) == before
        else:
            mine.fenced_store.write("a", str(number).encode())
            mine.fenced_store.at_path("b").write("c", b"")


def test_folders_of_a_fenced_folder_are_fenced_and_have_its_settings(tmp_path: Path) -> None:
    first = fence(tmp_path, "first")
    first.take()
    inside = first.fenced_store.at_path("checkpoints").at_path("step")
    inside.write("part", b"1")
    fence(tmp_path, "second").take()
    first.look()
    assert isinstance(inside, FencedStore)
    assert inside.settings == first.store.settings
    for action in (lambda: inside.write("part", b"2"), lambda: inside.delete("")):
        with pytest.raises(DisplacedError, match="another attempt at this trial runs by now"):
            action()
    assert inside.read("part") == b"1"


def test_a_store_that_tells_nothing_displaces_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = fence(tmp_path, "first")
    first.confirm()  # nobody left a token
    (tmp_path / ATTEMPT).symlink_to(tmp_path / ATTEMPT)  # a loop, which cannot be opened
    with caplog.at_level(logging.WARNING):
        first.confirm()
    assert f"{ATTEMPT}: cannot be read just now" in caplog.text
    (tmp_path / ATTEMPT).unlink()
    fence(tmp_path, "second").take()
    with pytest.raises(DisplacedError):
        first.confirm()
    (tmp_path / ATTEMPT).unlink()
    with pytest.raises(DisplacedError):
        first.confirm()  # for good


def test_a_process_that_was_frozen_looks_before_it_writes(tmp_path: Path) -> None:
    now_s = [0.0]
    first = Fence(store=Store.at(str(tmp_path)), token="first", clock=lambda: now_s[0])
    first.take()
    first.look()
    fence(tmp_path, "second").take()
    first.fenced_store.write("metrics.jsonl", b"before it heard")
    now_s[0] += 600.0
    with pytest.raises(DisplacedError):
        first.fenced_store.write("metrics.jsonl", b"after it woke")
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"before it heard"


def test_a_watch_finds_the_other_attempt_by_itself(tmp_path: Path) -> None:
    first = fence(tmp_path, "first")
    first.take()
    with first.watching(interval_s=0.01):
        fence(tmp_path, "second").take()
        wait_until(lambda: first.is_displaced, "word of the other attempt")


def test_a_training_that_is_displaced_ends_and_leaves_the_folder_as_the_other_attempt_has_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ensure_process_group()
    config = small_config(small_dataset(tmp_path_factory.mktemp("data")), "batch_topk")
    first, asked, left = fence(tmp_path, "first"), [0], dict[str, bytes]()
    first.take()

    def ask() -> str:
        """After the first checkpoint another attempt has the folder, and this one hears of it."""
        asked[0] += 1
        if asked[0] == 5:
            wait_until(lambda: any("manifest.json" in name for name in content(tmp_path)), "the checkpoint")
            fence(tmp_path, "second").take()
            first.look()
            left.update(content(tmp_path))
        return ""

    with pytest.raises(DisplacedError):
        Trainer(config=config, store=first.fenced_store, trial=config.trial, should_pause=ask).run()
    assert asked[0] < 8, "at the next checkpoint at the latest"
    assert content(tmp_path) == left
