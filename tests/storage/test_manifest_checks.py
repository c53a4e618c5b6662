"""The numbers of a manifest follow from bytes that are there, or the dataset is refused before memory is taken.

Whoever changes a manifest can compute its id anew, so every manifest here has the id of its content.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import Written, write_rows

from lexray.storage.errors import UserError
from lexray.storage.manifest import MANIFEST, Manifest, dataset_id, load_manifest
from lexray.storage.manifest_checks import contradictions
from lexray.storage.verify import verify

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def dataset(tmp_path: Path) -> Written:
    return write_rows(tmp_path, [40, 23], sites={"x": 4, "y": 3})


def lie(dataset: Written, change: Change) -> None:
    """Change the manifest's content, and its id where that can be computed."""
    content = json.loads(dataset.store.read(MANIFEST))
    change(content)
    try:
        content["id"] = dataset_id(Manifest.model_validate(content))
    except ValueError:
        content["id"] = "0" * 16
    dataset.store.write(MANIFEST, json.dumps(content).encode())


def refusal(dataset: Written) -> str:
    """The line that the dataset is refused with, at once and without memory."""
    began_s = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            load_manifest(dataset.store).check_shards(dataset.store)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began_s < 5
    assert peak_bytes < 2**24
    line = str(caught.value)
    assert line.startswith(f"dataset {dataset.store.url}: ")
    assert "\n" not in line
    return line.removeprefix(f"dataset {dataset.store.url}: ")


def put(path: str, value: Any) -> Change:
    """Set the field at a dotted path."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        place: Any = content
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(last) if isinstance(place, list) else last] = value

    return change


def many_rows(content: dict[str, Any]) -> None:
    """10^15 rows in one chunk of a small file, all of it consistent but for the bytes."""
    shard = content["shards"][0]
    content["chunk_rows"] = 2**31 - 1
    content["shards"] = [shard]
    content["rows"] = shard["rows"] = 10**9
    shard["checksums"] = {name: sums[:1] for name, sums in shard["checksums"].items()}


def many_rows_in_a_long_file(content: dict[str, Any]) -> None:
    """The same, with offsets and a length that such a file would have."""
    many_rows(content)
    shard, widths = content["shards"][0], {"x": 8, "y": 6}
    at = min(shard["offsets"].values())
    for name in shard["offsets"]:
        shard["offsets"][name] = at
        at += 10**9 * widths.get(name, 4)
    shard["bytes"] = at


LIES: dict[str, tuple[Change, str]] = {
    "rows": (put("rows", 10**15), "manifest.json: 1,000,000,000,000,000 rows, but its shards have 63"),
    "rows of a shard": (many_rows, "1,000,000,000 rows of"),
    "a long file": (many_rows_in_a_long_file, "the manifest says 34,000,000"),
    "rows of a shard and in all": (
        lambda c: (put("shards/0/rows", 10**15)(c), put("rows", 10**15 + 23)(c)),
        "chunks, the manifest lists 5 checksums",
    ),
    "no rows in a shard": (lambda c: (put("shards/1/rows", 0)(c), put("rows", 40)(c)), "000001.safetensors: 0 rows"),
    "fewer rows than none": (
        lambda c: (put("shards/1/rows", -23)(c), put("rows", 17)(c)), "000001.safetensors: -23 rows",
    ),
    "width": (put("sites/x/width", 10**12), "site x has width 1000000000000, but its mean has 4 values"),
    "width below": (put("sites/x/width", -4), "site x has width -4, but its mean has 4 values"),
    "width and mean": (
        lambda c: (put("sites/x/width", 5)(c), put("sites/x/mean", [0.0] * 5)(c)), "40 rows of x end at",
    ),
    "no width": (lambda c: (put("sites/x/width", 0)(c), put("sites/x/mean", [])(c)), "site x has width 0"),
    "a wider dtype": (put("sites/x/dtype", "float32"), "40 rows of x end at"),
    "checksums too few": (
        lambda c: c["shards"][0]["checksums"]["x"].pop(), "x has 5 chunks, the manifest lists 4 checksums",
    ),
    "checksums too many": (
        lambda c: c["shards"][0]["checksums"]["document"].append("0" * 16), "the manifest lists 6 checksums",
    ),
    "checksums of no tensor": (
        lambda c: c["shards"][0]["checksums"].pop("norm:y"), "offsets or checksums are not of the tensors",
    ),
    "an offset of no tensor": (put("shards/0/offsets/z", 99), "offsets or checksums are not of the tensors"),
    "offsets that overlap": (
        lambda c: put("shards/0/offsets/x", c["shards"][0]["offsets"]["y"])(c), "begins at byte",
    ),
    "an offset below": (put("shards/0/offsets/x", -8), "x begins at byte -8, where no tensor"),
    "an offset far away": (
        lambda c: c["shards"][0]["offsets"].update({n: o + 10**12 for n, o in c["shards"][0]["offsets"].items()}),
        "where no tensor of a safetensors file can",
    ),
    "bytes": (put("shards/0/bytes", 10**15), "but it is said to have 1,000,000,000,000,000 bytes"),
    "bytes below": (put("shards/0/bytes", -1), "but it is said to have -1 bytes"),
    "chunks": (put("chunk_rows", 10**15), "chunk_rows 1,000,000,000,000,000 is not below 2^31"),
    "smaller chunks": (put("chunk_rows", 1), "has 40 chunks, the manifest lists 5 checksums"),
    "a shard twice": (
        lambda c: (c["shards"].append(c["shards"][0]), put("rows", 103)(c)), "shards: two of them are the same file",
    ),
    "columns": (lambda c: c["columns"].pop("position"), "columns: "),
    "another column": (put("columns/colour", "int32"), "columns: "),
    "dtype of a column": (put("columns/position", "float16"), "columns: "),
    "no sites": (put("sites", {}), "sites: there is none"),
    "special tokens": (put("special_token_ids", [10**12]), "special_token_ids: 1000000000000 does not fit 32 bits"),
    "mean": (put("sites/x/mean", [1e200] * 4), "site x has a mean of squared norm inf, above its mean_squared_norm"),
    "mean squared norm": (put("sites/x/mean_squared_norm", 1e30), "site x has mean_squared_norm 1e+30, but no norm"),
    "below": (put("sites/x/mean_squared_norm", -1.0), "no finite number, or below 0"),
    "no quantiles": (put("sites/x/norm_quantiles", {}), "has no norm_quantiles of level 0.01, 0.5, 0.99, 1"),
    "levels": (put("sites/x/norm_quantiles/half", 1.0), "norm_quantiles that are no finite numbers"),
    "falling": (put("sites/x/norm_quantiles/0.5", 1e9), "norm_quantiles that fall"),
    "NaN": (put("sites/x/mean_squared_norm", float("nan")), "no finite number, or below 0"),
    "NaN in a mean": (put("sites/x/mean/2", float("nan")), "no finite number, or below 0"),
    "infinite norms": (put("sites/x/norm_quantiles/1", float("inf")), "no finite numbers from 0"),
    "rows as text": (put("rows", "63"), "rows: Input should be a valid integer, got '63'"),
    "rows as a float": (put("rows", 63.0), "rows: Input should be a valid integer, got 63.0"),
    "rows as truth": (put("rows", True), "rows: Input should be a valid integer, got True"),
    "rows as nothing": (put("rows", None), "rows: Input should be a valid integer, got None"),
    "rows as NaN": (put("rows", float("nan")), "rows: Input should be a valid integer, got nan"),
    "rows of 4,000 digits": (put("rows", 10**4000), "rows, but its shards have 63"),
    "width as text": (put("sites/x/width", "4"), "sites.x.width: Input should be a valid integer, got '4'"),
    "shards as a mapping": (put("shards", {"0": {}}), "shards: Input should be a valid array"),
    "a million wrong shards": (put("shards", [3] * 10**5), "shards.0: Input should be an object"),
    "a million wrong means": (put("sites/x/mean", ["a"] * 10**5), "sites.x.mean.0: Input should be a valid number"),
    "deep provenance": (put("provenance/a", json.loads("[" * 150 + "]" * 150)), "nested more than 64 deep"),
    "large provenance": (put("provenance/a", 10**30), "a whole number has more than 64 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_manifest_that_lies_is_refused_in_one_line(name: str, dataset: Written) -> None:
    change, expected = LIES[name]
    lie(dataset, change)
    assert expected in refusal(dataset)


def test_a_manifest_as_written_contradicts_nothing(dataset: Written) -> None:
    assert list(contradictions(dataset.manifest)) == []
    assert load_manifest(dataset.store) == dataset.manifest


def test_no_memory_is_taken_for_rows_that_no_file_has(dataset: Written) -> None:
    lie(dataset, many_rows_in_a_long_file)
    tracemalloc.start()
    found = verify(dataset.store)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "the manifest says 34,000,000" in str(found.damage[0])
    assert peak_bytes < 2**24


def test_a_header_that_claims_more_bytes_than_its_file_has_is_damage(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 40)
    shard = tmp_path / written.manifest.shards[0].file
    for length in (2**62, 10**9):
        shard.write_bytes(length.to_bytes(8, "little") + shard.read_bytes()[8:])
        assert "header cannot be read" in str(verify(written.store).damage[0])


numbers = st.integers() | st.floats() | st.text(max_size=3) | st.none() | st.booleans() | st.just([]) | st.just({})


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), numbers)
def test_any_number_of_a_manifest_may_be_anything(dataset: Written, data: st.DataObject, value: Any) -> None:
    good = dataset.store.read(MANIFEST)
    place, path = json.loads(good), []
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        path.append(data.draw(st.sampled_from(keys)))
        place = place[path[-1]]
    lie(dataset, put("/".join(map(str, path)), value))
    try:
        load_manifest(dataset.store).check_shards(dataset.store)
    except UserError as error:
        said = str(error)
    else:
        said = ""
    finally:
        dataset.store.write(MANIFEST, good)
    assert "\n" not in said


def test_a_largest_norm_whose_square_is_no_float_is_read(dataset: Written) -> None:
    lie(dataset, put("sites/x/norm_quantiles/1", 1e308))
    assert load_manifest(dataset.store).sites["x"].norm_quantiles["1"] == 1e308
