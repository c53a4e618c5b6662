"""What a window server keeps, decided without Ray."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lexray.storage.order import WindowKey
from lexray.storage.shelf import PublishedWindow, Shelf
from lexray.storage.store import Store
from lexray.storage.windows import StreamSpec

SPEC, OTHER = (StreamSpec(store=Store.at("/data"), sites=("x",), seed=seed) for seed in range(2))


def key(index: int, lane: int = 0, epoch: int = 0) -> WindowKey:
    return WindowKey(epoch, lane, index)


def block(size: int = 10) -> PublishedWindow:
    return PublishedWindow(object(), size, size)


def shelf_of(*indices: int, max_bytes: int = 50) -> Shelf:
    shelf = Shelf(max_bytes=max_bytes)
    for index in indices:
        shelf.put(SPEC, key(index), block())
    return shelf


def kept(shelf: Shelf, indices: range, spec: StreamSpec = SPEC) -> list[int]:
    return [index for index in indices if (spec, key(index)) in shelf._blocks]


def test_what_was_used_longest_ago_makes_room() -> None:
    shelf = shelf_of(0, 1, 2, 3, 4)
    assert shelf.get(SPEC, key(0)) is not None
    shelf.put(SPEC, key(5), block())
    assert kept(shelf, range(6)) == [0, 2, 3, 4, 5]
    assert shelf.get(SPEC, key(1)) is None


def test_what_every_training_has_behind_it_makes_room_first() -> None:
    shelf = shelf_of(4, 3, 2, 1, 0)
    shelf.want_from("fast", SPEC, key(4))
    shelf.want_from("slow", SPEC, key(2))
    assert kept(shelf, range(6)) == [0, 1, 2, 3, 4], "as long as there is room, all stay"
    shelf.put(SPEC, key(5), block())
    shelf.put(SPEC, key(6), block())
    assert kept(shelf, range(7)) == [2, 3, 4, 5, 6]
    shelf.leave("slow", SPEC)
    shelf.put(SPEC, key(7), block())
    assert kept(shelf, range(8)) == [2, 4, 5, 6, 7], "3 was used longer ago than 2"


def test_a_training_speaks_for_its_stream_its_lane_and_its_epoch() -> None:
    shelf = shelf_of(0, 1)
    shelf.put(SPEC, key(0, lane=1), block())
    shelf.put(OTHER, key(0), block())
    shelf.put(SPEC, key(0, epoch=1), block())
    shelf.want_from("a", SPEC, key(0, epoch=1))
    for index in (7, 8):
        shelf.put(OTHER, key(index), block())
    assert kept(shelf, range(2)) == [], "both of the epoch before"
    assert shelf.get(SPEC, key(0, lane=1)) is not None
    assert shelf.get(OTHER, key(0)) is not None
    assert shelf.get(SPEC, key(0, epoch=1)) is not None


def test_a_training_that_starts_again_speaks_anew() -> None:
    shelf = shelf_of(0, 1, 2, 3, 4)
    shelf.want_from("a", SPEC, key(3))
    shelf.want_from("a", SPEC, key(0))
    shelf.get(SPEC, key(0))
    shelf.put(SPEC, key(5), block())
    assert kept(shelf, range(6)) == [0, 2, 3, 4, 5], "it has nothing behind it now"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 60), st.integers(0, 30)), max_size=60))
def test_the_bytes_kept_are_bounded_and_the_newest_is_there(puts: list[tuple[int, int, int]]) -> None:
    shelf = Shelf(max_bytes=100)
    for index, size, wanted in puts:
        if shelf.get(SPEC, key(index)) is None:
            shelf.put(SPEC, key(index), block(size))
        shelf.want_from("a", SPEC, key(wanted))
        assert shelf.get(SPEC, key(index)) is not None
        assert shelf.bytes == sum(one.bytes for one in shelf._blocks.values()) <= 100


def test_a_block_larger_than_the_limit_is_kept_alone() -> None:
    shelf = shelf_of(0, 1)
    shelf.put(SPEC, key(2), block(1000))
    assert kept(shelf, range(3)) == [2]
    shelf.put(SPEC, key(3), block())
    assert kept(shelf, range(4)) == [3]
