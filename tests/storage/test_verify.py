"""All damage is found where it was planted; equal rows and unusual ones are counted and are no damage."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from synthetic import Written, write_rows

from lexray.storage.errors import UserError
from lexray.storage.manifest import MANIFEST, Manifest, chunk_checksum, dataset_id
from lexray.storage.site_statistics import chunk_facts, norm_bounds, outliers, repeated_rows
from lexray.storage.store import Store
from lexray.storage.verify import Damage, Findings, verify

DTYPES = ["bfloat16", "float16", "float32"]
SITES = {"early": 3, "late": 5}
BAD_BYTE = 0xFF


def random_rows(rows: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def flip(written: Written, shard: int, tensor: str, row: int) -> None:
    """Change the first byte of a row in its file."""
    of_shard = written.manifest.shards[shard]
    place = of_shard.offsets[tensor] + row * written.manifest.row_bytes(tensor)
    with open(Path(written.store.local_path or "") / of_shard.file, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ BAD_BYTE]))


def replace_manifest(written: Written, manifest: Manifest) -> None:
    """A manifest whose id is right for its content, whatever that is."""
    manifest = manifest.model_copy(update={"id": dataset_id(manifest)})
    written.store.write(MANIFEST, manifest.model_dump_json().encode())


def plant(written: Written, values: dict[int, float]) -> None:
    """Set the last entry of some rows of site `x`, with checksums as if it had been written so."""
    shards, start, manifest = [], 0, written.manifest
    for shard in manifest.shards:
        path = Path(written.store.local_path or "") / shard.file
        tensors = load_file(path)
        for row, value in values.items():
            if start <= row < start + shard.rows:
                tensors["x"][row - start, -1] = value
        save_file(tensors, path)
        chunks = tensors["x"].view(torch.uint8).split(manifest.chunk_rows)
        checksums = shard.checksums | {"x": [chunk_checksum(chunk.numpy().tobytes()) for chunk in chunks]}
        shards.append(shard.model_copy(update={"checksums": checksums}))
        start += shard.rows
    replace_manifest(written, manifest.model_copy(update={"shards": shards}))


def places(found: Findings) -> list[tuple[str, str | None, int | None]]:
    return [(damage.file, damage.tensor, damage.chunk) for damage in found.damage]


def shard_file(number: int) -> str:
    return f"shards/{number:06d}.safetensors"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dataset_as_written_is_sound(dtype: str, tmp_path: Path) -> None:
    written = write_rows(tmp_path, [131, 1, 64], sites=SITES, dtype=dtype)
    calls: list[tuple[int, int]] = []
    found = verify(written.store, on_progress=lambda *call: calls.append(call))
    assert found.sound
    assert found.sites.keys() == SITES.keys()
    for name, site in found.sites.items():
        assert (site.width, site.dtype, site.rows, site.not_finite) == (SITES[name], dtype, 196, 0)
        assert site.mean_error is not None
        assert site.mean_squared_norm_error is not None
        assert max(site.mean_error, site.mean_squared_norm_error) < 1e-12
        assert site.quantiles_error == 0
    assert (calls[0], calls[-1]) == ((0, 196), (196, 196))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_dataset_in_an_object_store_is_read_too() -> None:
    store = Store.at("memory://verified")
    store.delete("")
    assert verify(write_rows(store, 50).store).sound


def test_every_flipped_byte_is_named_by_shard_tensor_and_chunk(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [40, 24], sites=SITES, chunk_rows=8)
    for shard, tensor, row in [(0, "late", 0), (0, "early", 39), (1, "late", 8), (1, "token_id", 23)]:
        flip(written, shard, tensor, row)
    found = verify(written.store)
    expected = {(shard_file(0), "late", 0), (shard_file(0), "early", 4), (shard_file(1), "late", 1)}
    assert set(places(found)) == expected | {(shard_file(1), "token_id", 2)}
    assert all("checksum" in damage.what for damage in found.damage)
    assert (found.sites["early"].rows, found.sites["late"].rows) == (56, 48)
    assert found.sites["early"].mean_error is None, "nothing can be said of rows that cannot be read"


def test_a_truncated_shard_is_named_with_both_sizes_and_so_is_each_chunk_it_lacks(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [40, 40], sites={"x": 4}, chunk_rows=8)
    shard = written.manifest.shards[1]
    last = max(shard.offsets, key=lambda name: shard.offsets[name])
    kept = shard.offsets[last] + 20 * written.manifest.row_bytes(last)
    os.truncate(tmp_path / shard.file, kept)
    found = verify(written.store)
    assert found.damage[0] == Damage(file=shard.file, what=f"{kept:,} bytes, the manifest says {shard.bytes:,}")
    assert places(found)[1:] == [(shard.file, last, chunk) for chunk in (2, 3, 4)]


def test_a_missing_shard_does_not_hide_the_damage_of_others(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [16, 16, 16], chunk_rows=8)
    (tmp_path / shard_file(0)).unlink()
    flip(written, 2, "x", 9)
    found = verify(written.store)
    assert places(found) == [(shard_file(0), None, None), (shard_file(2), "x", 1)]
    assert found.damage[0].what == "is missing"
    assert found.sites["x"].rows == 16 + 8


def test_a_header_that_promises_other_tensors_is_damage(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 16)
    path = tmp_path / shard_file(0)
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"F16" '))
    found = verify(written.store)
    assert places(found) == [(shard_file(0), "x", None)]
    assert "the header says F16 [16, 4]" in found.damage[0].what
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    assert "header cannot be read" in verify(written.store).damage[0].what


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_counted_and_their_chunks_named(value: float, dtype: str, tmp_path: Path) -> None:
    written = write_rows(tmp_path, [24, 16], sites={"x": 8}, dtype=dtype, chunk_rows=8)
    plant(written, {11: value, 12: value, 39: value})
    found = verify(written.store)
    assert places(found) == [(shard_file(0), "x", 1), (shard_file(1), "x", 1)]
    assert found.damage[0].what == "2 of 8 rows hold NaN or Inf, the first is row 11"
    assert found.sites["x"].not_finite == 3
    assert found.sites["x"].mean_error is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_are_counted_over_all_shards_and_are_no_damage(dtype: str, tmp_path: Path) -> None:
    vectors = random_rows(64)
    vectors[[20, 40, 63]] = vectors[3].clone()
    vectors[41] = vectors[40] * 1.5
    found = verify(write_rows(tmp_path, [30, 34], vectors={"x": vectors}, dtype=dtype).store)
    assert found.sound
    assert (found.sites["x"].duplicates, found.sites["x"].duplicate_rows) == (3, [20, 40, 63])


@pytest.mark.parametrize("dtype", DTYPES)
def test_unusual_norms_are_named_the_farthest_first_and_are_no_damage(dtype: str, tmp_path: Path) -> None:
    vectors = random_rows(500, width=32)
    vectors[77] *= 100
    vectors[401] *= 1000
    vectors[9] = 0
    found = verify(write_rows(tmp_path, [250, 250], vectors={"x": vectors}, dtype=dtype).store)
    site = found.sites["x"]
    assert found.sound
    assert (site.outliers, [row for row, _ in site.worst]) == (3, [9, 401, 77])
    stored = vectors[77].to(getattr(torch, dtype)).double()
    assert site.worst[2][1] == pytest.approx(float(stored.norm()))
    assert site.norm_bounds[0] < math.sqrt(32) < site.norm_bounds[1] < site.worst[2][1]


def test_statistics_that_are_not_those_of_the_rows_are_damage(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 40)
    site = written.manifest.sites["x"]
    quantiles = site.norm_quantiles | {"0.5": 1.01 * site.norm_quantiles["0.5"]}
    changes = {"mean": [0.1 + m for m in site.mean], "mean_squared_norm": 5.0, "norm_quantiles": quantiles}
    changed = site.model_copy(update=changes)
    replace_manifest(written, written.manifest.model_copy(update={"sites": {"x": changed}}))
    assert [(d.file, d.tensor, d.what.split(" is off")[0]) for d in verify(written.store).damage] == [
        (MANIFEST, "x", "its mean"),
        (MANIFEST, "x", "its mean squared norm"),
        (MANIFEST, "x", "its norm quantiles"),
    ]


def test_stored_norms_that_are_not_those_of_the_rows_are_damage(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [40, 24], chunk_rows=8)
    shard = written.manifest.shards[1]
    data = bytearray(written.store.read(shard.file))
    place = shard.offsets["norm:x"] + 4 * 9
    data[place : place + 4] = np.float32(77).tobytes()
    written.store.write(shard.file, bytes(data))
    begin = shard.offsets["norm:x"] + 4 * 8
    changed = [*shard.checksums["norm:x"]]
    changed[1] = chunk_checksum(bytes(data[begin : begin + 4 * 8]))
    honest = shard.model_copy(update={"checksums": shard.checksums | {"norm:x": changed}})
    replace_manifest(written, written.manifest.model_copy(update={"shards": [written.manifest.shards[0], honest]}))
    assert list(map(str, verify(written.store).damage)) == [
        f"{shard_file(1)}, norm:x, chunk 1: 1 of 8 rows have another norm than is stored, the first is row 49"
    ]


def test_a_manifest_that_contradicts_itself_is_damage(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [40, 24])
    shard = written.manifest.shards[1]
    short = shard.model_copy(update={"checksums": shard.checksums | {"x": shard.checksums["x"][:-1]}})
    changes = {"rows": 65, "shards": [written.manifest.shards[0], short]}
    replace_manifest(written, written.manifest.model_copy(update=changes))
    assert list(map(str, verify(written.store).damage)) == [
        f"{MANIFEST}: 65 rows, but its shards have 64",
        f"{shard_file(1)}: x has 3 chunks, the manifest lists 2 checksums",
    ]


def test_a_folder_without_a_dataset_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json there"):
        verify(Store.at(str(tmp_path)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_repeated_rows_are_all_but_the_first_of_each_kind(kinds: list[int]) -> None:
    expected = [row for row, kind in enumerate(kinds) if kind in kinds[:row]]
    assert repeated_rows(np.array(kinds, dtype=np.uint64)).tolist() == expected


def test_rows_of_one_length_have_no_outliers_and_rows_of_zeros_neither() -> None:
    unit = torch.nn.functional.normalize(random_rows(200, width=64), dim=1).bfloat16()
    norms = chunk_facts(unit.view(torch.uint16).numpy(), "bfloat16").norms
    assert len(outliers(norms, norm_bounds(norms))) == 0
    assert len(outliers(np.zeros(9), norm_bounds(np.zeros(9)))) == 0
    assert len(outliers(np.zeros(0), norm_bounds(np.zeros(0)))) == 0


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-6, 1e6))
def test_outliers_do_not_depend_on_the_unit(scale: float) -> None:
    norms = np.exp(np.random.default_rng(0).normal(size=300, scale=0.3))
    norms[5], norms[6] = norms[5] * 1e3, norms[6] / 1e3
    assert sorted(outliers(norms * scale, norm_bounds(norms * scale))) == [5, 6]
