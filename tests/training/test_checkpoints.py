"""Checkpoints exist whole or not at all, and the newest whole one is found."""

import json
import logging
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexray.storage.errors import CorruptDataError
from lexray.storage.manifest import chunk_checksum
from lexray.storage.store import Store
from lexray.training.checkpoint.format import (
    MANIFEST,
    Checkpoint,
    checkpoint_folders,
    newest_checkpoint,
    open_checkpoint,
    step_of,
    write_manifest,
    write_part,
)
from lexray.training.checkpoint.format import folder_of as folder_of_attempt
from lexray.training.checkpoint.parts import WHOLE, ShardSpec
from lexray.training.checkpoint.writer import FAILURES_IN_A_ROW, CheckpointWriter, delete_temporary
from lexray.training.mesh.mesh import MeshCoord

PART, PART_FACTS = "part-00000.safetensors", "part-00000.json"
FILES = (MANIFEST, PART)
ATTEMPT = "a1"


def folder_of(step: int) -> str:
    return folder_of_attempt(step, ATTEMPT)


def write_checkpoint(store: Store, checkpoint: Checkpoint) -> None:
    """As one rank does."""
    part = write_part(store, folder_of(checkpoint.step), 0, dict(WHOLE.to_write(checkpoint.state())))
    write_manifest(store, folder_of(checkpoint.step), checkpoint.step, [part], {"what": "a test"})


def read_checkpoint(store: Store, folder: str) -> Checkpoint:
    return open_checkpoint(store, folder).read()


def writer_to(store: Store, **changes) -> CheckpointWriter:
    return CheckpointWriter(store=store, attempt=ATTEMPT, about={}, **changes)


def save(writer: CheckpointWriter, checkpoint: Checkpoint) -> None:
    writer.save(checkpoint.step, dict(WHOLE.to_write(checkpoint.state())))


def checkpoint(step: int) -> Checkpoint:
    """The tensors of a dictionary, in every dtype that it has, other ones for every step."""
    generator = torch.Generator().manual_seed(step)
    weights = {
        "W_enc": torch.randn(5, 3, generator=generator),
        "rows_since_fired_F": torch.randint(0, 2**40, (5,), generator=generator),
        "controller.log_coefficient": torch.randn((), generator=generator, dtype=torch.float64),
        "not.finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    moments = {f"{moment}.W_enc": torch.randn(5, 3, generator=generator) for moment in ("exp_avg", "exp_avg_sq")}
    return Checkpoint(step, weights, moments)


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    """Bit for bit."""
    assert found is not None
    assert found.step == expected.step
    for mine, theirs in ((found.weights, expected.weights), (found.moments, expected.moments)):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            assert tensor.numpy().tobytes() == theirs[name].numpy().tobytes()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.at(str(tmp_path / "checkpoints"))


def test_what_is_read_is_what_was_written_bit_for_bit(store):
    write_checkpoint(store, checkpoint(20))
    assert_same(read_checkpoint(store, folder_of(20)), checkpoint(20))


def test_the_newest_of_many_is_found(store):
    for step in (9, 100, 20, 1000):
        write_checkpoint(store, checkpoint(step))
    assert_same(newest_checkpoint(store), checkpoint(1000))


def test_where_nothing_was_written_there_is_none(store):
    assert newest_checkpoint(store) is None


# Damage -----------------------------------------------------------------------------------------------------------


def truncate(store: Store, file: str) -> None:
    store.write(file, store.read(file)[:-1])


def empty(store: Store, file: str) -> None:
    store.write(file, b"")


def extend(store: Store, file: str) -> None:
    store.write(file, store.read(file) + b"0")


def flip(store: Store, file: str) -> None:
    data = bytearray(store.read(file))
    data[len(data) // 2] ^= 1
    store.write(file, bytes(data))


def damage_tensor(store: Store, file: str) -> None:
    """Flip a bit where the first tensor lies."""
    data = bytearray(store.read(file))
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    store.write(file, bytes(data))


def remove(store: Store, file: str) -> None:
    store.delete(file)


def take_from_another_step(store: Store, file: str) -> None:
    folder, name = file.split("/")
    other = Store.at(store.url + "-other")
    write_checkpoint(other, checkpoint(77))
    store.write(f"{folder}/{name}", other.read(f"{folder_of(77)}/{name}"))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((MANIFEST, damage) for damage in (truncate, empty, extend, flip, remove, take_from_another_step)),
        *((PART, damage) for damage in (truncate, empty, damage_tensor, remove, take_from_another_step)),
    ],
)
def test_a_damaged_newest_one_is_named_in_the_log_and_the_one_before_found(store, caplog, file, damage):
    for step in (20, 40):
        write_checkpoint(store, checkpoint(step))
    damage(store, f"{folder_of(40)}/{file}")
    with caplog.at_level(logging.WARNING, "lexray"):
        assert_same(newest_checkpoint(store), checkpoint(20))
    assert len(caplog.messages) == 1
    assert folder_of(40) in caplog.messages[0]
    assert file in caplog.messages[0]


@given(file=st.sampled_from(FILES), data=st.data())
@settings(max_examples=150)
def test_no_flipped_byte_anywhere_is_taken_for_a_checkpoint(tmp_path_factory, file, data):
    store = Store.at(str(tmp_path_factory.getbasetemp() / "flipped"))
    write_checkpoint(store, checkpoint(20))
    content = bytearray(store.read(f"{folder_of(20)}/{file}"))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    store.write(f"{folder_of(20)}/{file}", bytes(content))
    try:
        found = read_checkpoint(store, folder_of(20))
    except CorruptDataError:
        return
    # White space for white space is the same manifest, and of a part only the tensors are read, not its own header.
    assert_same(found, checkpoint(20))


@pytest.mark.parametrize("manifest", [b"[]", b"null", b"{}", b'{"version": 1, "step": 20, "files": {}}', b"\xff"])
def test_a_manifest_that_is_something_else_is_refused_by_name(store, manifest):
    write_checkpoint(store, checkpoint(20))
    store.write(f"{folder_of(20)}/{MANIFEST}", manifest)
    with pytest.raises(CorruptDataError, match=f"{folder_of(20)}/{MANIFEST}: not the manifest of this checkpoint"):
        read_checkpoint(store, folder_of(20))


def forged(store: Store, **changes) -> None:
    """A manifest whose checksum is right, as a stranger writes it, with one field of the first tensor replaced."""
    content = json.loads(json.loads(store.read(f"{folder_of(20)}/{MANIFEST}"))["content"])
    part = content["parts"][0]
    for name, value in changes.items():
        (part if name == "file" else part["tensors"]["weights/W_enc"])[name] = value
    text = json.dumps(content)
    outer = {"xxh3": chunk_checksum(text.encode()), "content": text}
    store.write(f"{folder_of(20)}/{MANIFEST}", json.dumps(outer).encode())


@pytest.mark.parametrize(
    "changes",
    [
        *({"file": file} for file in ("../x", "/dev/zero", f"{PART}/..", "", "x", "part-00000.json", "..")),
        *({"shape": shape} for shape in ([10**12, 10**6], [-5, -3], [5], [], [1] * 4000)),
        *({"dtype": dtype} for dtype in ("float8", "int8", "", "object")),
        *({"bytes": size} for size in (10**18, -1, 0, 59)),
        {"start": -1}, {"start": 10**18}, {"whole_rows": 4}, {"offset": -8},
        {"shape": [10**9, 3], "bytes": 12 * 10**9, "whole_rows": 10**9},
        {"offset": 10**15}, {"xxh3": "0"}, {"start": 1, "whole_rows": 6},
    ],
    ids=str,
)  # fmt: skip
def test_a_forged_manifest_is_refused_by_name_and_at_once(store, changes):
    write_checkpoint(store, checkpoint(20))
    forged(store, **changes)
    with pytest.raises(CorruptDataError, match=folder_of(20)):
        read_checkpoint(store, folder_of(20))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to nothing"])
def test_a_part_that_is_no_regular_file_is_missing(tmp_path, kind):
    store = Store.at(str(tmp_path))
    write_checkpoint(store, checkpoint(20))
    part = tmp_path / folder_of(20) / PART
    part.unlink()
    if kind == "pipe":
        os.mkfifo(part)
    elif kind == "folder":
        part.mkdir()
    else:
        part.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nowhere")
    with pytest.raises(CorruptDataError, match=f"{PART} is missing"):
        read_checkpoint(store, folder_of(20))


@pytest.mark.parametrize(
    "name", ["step-²-a", "step-" + "9" * 5000, "step--a", "step", "stepper-1", "step-1a", "step-+1"]
)
def test_folders_of_other_names_are_no_checkpoints(tmp_path, name):
    store = Store.at(str(tmp_path))
    assert step_of(name) is None
    if len(name) < 200:
        store.write(f"{name}/file", b"x")
    write_checkpoint(store, checkpoint(20))
    assert newest_checkpoint(store).step == 20
    delete_temporary(store, 0)
    if len(name) < 200:
        assert store.read(f"{name}/file") == b"x", "what is not a checkpoint is not deleted with them"


def test_when_all_are_damaged_there_is_none_and_each_is_named(store, caplog):
    for step in (20, 40, 60):
        write_checkpoint(store, checkpoint(step))
        damage_tensor(store, f"{folder_of(step)}/{PART}")
    with caplog.at_level(logging.WARNING, "lexray"):
        assert newest_checkpoint(store) is None
    assert [folder_of(step) in message for step, message in zip((60, 40, 20), caplog.messages, strict=True)]


# Interrupted and failing saves ------------------------------------------------------------------------------------


class FailingStore(Store):
    """Fails to write when told to; what a file name selects fails, or everything."""

    fails: set[str]

    @staticmethod
    def below(store: Store) -> "FailingStore":
        made = FailingStore(store.url)
        object.__setattr__(made, "fails", set())
        return made

    def write(self, path: str, data: bytes) -> None:
        if any(name in path for name in self.fails):
            raise OSError(f"no space left for {path}")
        super().write(path, data)


@pytest.mark.parametrize("file", [PART, PART_FACTS, MANIFEST])
def test_a_save_interrupted_at_any_file_does_not_exist(store, file):
    write_checkpoint(store, checkpoint(20))
    failing = FailingStore.below(store)
    failing.fails.add(file)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(failing, checkpoint(40))
    assert_same(newest_checkpoint(store), checkpoint(20))


@pytest.mark.parametrize("file", [PART_FACTS, MANIFEST])
def test_a_save_begun_again_replaces_what_the_interrupted_one_left(store, file):
    failing = FailingStore.below(store)
    failing.fails.add(file)
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(failing, checkpoint(40)._replace(weights={"other": torch.ones(3)}))
    write_checkpoint(store, checkpoint(40))
    assert_same(newest_checkpoint(store), checkpoint(40))


def test_the_writer_keeps_the_newest_ones(store):
    writer = writer_to(store, keep=3)
    for step in range(10, 80, 10):
        save(writer, checkpoint(step))
    writer.close()
    assert store.list_folders() == [folder_of(step) for step in (50, 60, 70)]
    for step in (50, 60, 70):
        assert_same(read_checkpoint(store, folder_of(step)), checkpoint(step))


def test_damaged_ones_of_later_steps_do_not_crowd_out_new_ones(store):
    """Training resumed from step 10; the two later ones were damaged, and are not what `keep` is for."""
    for step in (10, 20, 30):
        write_checkpoint(store, checkpoint(step))
    for step in (20, 30):
        damage_tensor(store, f"{folder_of(step)}/{PART}")
    writer = writer_to(store, keep=2)
    save(writer, checkpoint(15))
    writer.close()
    assert store.list_folders() == [folder_of(10), folder_of(15)]


class SlowStore(Store):
    """Waits with every file until it is let go."""

    let_go: threading.Event

    @staticmethod
    def below(store: Store) -> "SlowStore":
        made = SlowStore(store.url)
        object.__setattr__(made, "let_go", threading.Event())
        return made

    def write(self, path: str, data: bytes) -> None:
        assert self.let_go.wait(30)
        super().write(path, data)


def test_saves_happen_behind_the_caller_and_close_awaits_the_last(store):
    slow = SlowStore.below(store)
    writer = writer_to(slow)
    save(writer, checkpoint(20))
    assert newest_checkpoint(store) is None
    closing = threading.Thread(target=writer.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    slow.let_go.set()
    closing.join(30)
    assert_same(newest_checkpoint(store), checkpoint(20))


def test_at_most_one_save_is_under_way(store):
    slow = SlowStore.below(store)
    writer = writer_to(slow)
    save(writer, checkpoint(20))
    second = threading.Thread(target=save, args=(writer, checkpoint(40)))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    slow.let_go.set()
    second.join(30)
    assert newest_checkpoint(store) is not None
    writer.close()
    assert_same(newest_checkpoint(store), checkpoint(40))


def test_failed_saves_are_warnings_and_the_third_in_a_row_is_raised(store, caplog):
    failing = FailingStore.below(store)
    failing.fails.add("step-")
    writer = writer_to(failing)
    with caplog.at_level(logging.WARNING, "lexray"):
        for step in range(1, FAILURES_IN_A_ROW + 1):
            save(writer, checkpoint(step))
        with pytest.raises(OSError, match="no space left"):
            save(writer, checkpoint(99))
    assert len(caplog.messages) == FAILURES_IN_A_ROW == 3
    assert all("no space left" in message for message in caplog.messages)


def test_the_third_failure_in_a_row_is_raised_by_close_too(store):
    failing = FailingStore.below(store)
    failing.fails.add("step-")
    writer = writer_to(failing)
    for step in range(FAILURES_IN_A_ROW):
        save(writer, checkpoint(step))
    with pytest.raises(OSError, match="no space left"):
        writer.close()


def test_a_save_that_succeeds_ends_the_row_of_failures(store):
    failing = FailingStore.below(store)
    writer = writer_to(failing)
    for step in range(1, 13):  # two of three fail
        failing.fails.add(folder_of(step)) if step % 3 else None
        save(writer, checkpoint(step))
    writer.close()
    assert store.list_folders() == [folder_of(9), folder_of(12)]


# Parts ------------------------------------------------------------------------------------------------------------

SPLIT = frozenset({"W_enc", "rows_since_fired_F"})


def state_of(place: MeshCoord, whole: Checkpoint) -> Checkpoint:
    """What a rank holds of a whole state."""
    share = ShardSpec(place, SPLIT)
    weights, moments = {}, {}
    for key, tensor in whole.state():
        rows = share.to_read(key, len(tensor) if tensor.ndim else 1)
        kind, name = key.split("/", 1)
        {"weights": weights, "moments": moments}[kind][name] = tensor[rows.start : rows.stop] if tensor.ndim else tensor
    return Checkpoint(whole.step, weights, moments)


def big(step: int) -> Checkpoint:
    made = checkpoint(step)
    generator = torch.Generator().manual_seed(step + 1)
    made.weights["W_enc"] = torch.randn(12, 3, generator=generator)
    made.weights["rows_since_fired_F"] = torch.arange(12)
    return made._replace(
        moments={f"{m}.W_enc": torch.randn(12, 3, generator=generator) for m in ("exp_avg", "exp_avg_sq")}
    )


def save_on(store: Store, data: int, feature: int, whole: Checkpoint, absent: tuple[int, ...] = (), **changes) -> None:
    """Every rank of a mesh saves its part, the last one first, all at once."""
    writers = {}
    for rank in range(data * feature):
        place = MeshCoord(rank=rank, data=data, feature=feature)
        if rank not in absent:
            writers[rank] = writer_to(store, rank=rank, ranks=place.size, **changes)
            mine = state_of(place, whole).state()
            writers[rank].save(whole.step, dict(ShardSpec(place, SPLIT).to_write(mine)))
    for rank in sorted(writers, reverse=True):
        writers[rank].close()


MESHES = [(1, 1), (2, 1), (5, 1), (1, 2), (1, 4), (2, 2), (3, 2), (2, 3), (7, 1)]


@pytest.mark.parametrize(("data", "feature"), MESHES)
def test_the_ranks_of_a_mesh_write_each_row_once(data, feature):
    seen: dict[str, list[int]] = {}
    whole = big(20)
    for rank in range(data * feature):
        place = MeshCoord(rank=rank, data=data, feature=feature)
        for key, part in ShardSpec(place, SPLIT).to_write(state_of(place, whole).state()):
            count = len(part.tensor) if part.tensor.ndim else 1
            seen.setdefault(key, []).extend(range(part.start, part.start + count))
    assert {key: sorted(rows) for key, rows in seen.items()} == {
        key: list(range(len(tensor) if tensor.ndim else 1)) for key, tensor in whole.state()
    }


@pytest.mark.parametrize("read_on", MESHES)
@pytest.mark.parametrize("written_on", MESHES)
def test_what_one_mesh_writes_any_other_reads(store, written_on, read_on):
    whole = big(20)
    save_on(store, *written_on, whole)
    for rank in range(read_on[0] * read_on[1]):
        place = MeshCoord(rank=rank, data=read_on[0], feature=read_on[1])
        assert_same(newest_checkpoint(store, ShardSpec(place, SPLIT)), state_of(place, whole))
    assert_same(newest_checkpoint(store), whole)


@pytest.mark.parametrize("absent", [(0,), (1,), (3,), (1, 2)])
def test_without_the_part_of_one_rank_there_is_no_checkpoint_and_it_is_named(store, caplog, absent):
    save_on(store, 2, 2, big(20))
    with caplog.at_level(logging.WARNING, "lexray"):
        save_on(store, 2, 2, big(40), absent, timeout_s=0.05)
    assert_same(newest_checkpoint(store), big(20))
    if absent != (0,):
        assert f"rank {absent[0]} of 4 wrote no part within 0.05 s" in caplog.text


def test_parts_of_two_attempts_never_mix(store):
    """Rank 1 of the first attempt died before it wrote; the second one saves the same step on another mesh."""
    save_on(store, 2, 1, big(40), absent=(1,), timeout_s=0.01)
    writer = CheckpointWriter(store=store, attempt="b2", about={})
    save(writer, big(40))
    writer.close()
    assert_same(newest_checkpoint(store), big(40))


def test_checkpoints_of_chosen_steps_are_kept_for_good(store):
    writer = writer_to(store, keep=2, keep_every=30)
    for step in range(10, 100, 10):
        save(writer, checkpoint(step))
    writer.close()
    assert checkpoint_folders(store) == [folder_of(step) for step in (30, 60, 80, 90)]
    delete_temporary(store, 30)
    assert checkpoint_folders(store) == [folder_of(step) for step in (30, 60, 90)]
    delete_temporary(store, 0)
    assert checkpoint_folders(store) == []
