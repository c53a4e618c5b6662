"""A dataset at rest: written once and whole, read back as written, refused in one line when it is not what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_cases import quick
from safetensors.torch import load_file
from synthetic import SPECIAL_TOKEN, Written, write_rows

from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.manifest import COLUMNS, MANIFEST, columns_of, load_manifest
from lexray.storage.reader import DatasetReader
from lexray.storage.site_statistics import QUANTILE_LEVELS, exact_quantiles
from lexray.storage.store import Store
from lexray.storage.writer import DatasetWriter

CHUNK_ROWS = 8


def as_stored(array: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def numbered(rows: int) -> dict[str, np.ndarray]:
    return {name: np.arange(rows) for name in COLUMNS}


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The writer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_read_is_what_was_written(dtype: str, tmp_path: Path) -> None:
    written = write_rows(tmp_path, [131, 1, 64], sites={"early": 3, "late": 5}, dtype=dtype)
    reader = DatasetReader(written.store, load_manifest(written.store))
    for site, vectors in written.vectors.items():
        chunks = [as_stored(reader.read_chunk(i, site), dtype) for i in range(len(reader.chunks))]
        assert torch.equal(torch.cat(chunks), vectors)
        assert {tuple(chunk.shape[1:]) for chunk in chunks} == {(vectors.shape[1],)}
    for name, column in written.columns.items():
        assert np.concatenate(reader.read_column(name)).tolist() == column.tolist()
        by_chunk = [reader.read_chunk(i, name).tolist() for i in range(len(reader.chunks))]
        assert by_chunk == [part.tolist() for part in reader.read_column(name)]


def test_chunks_are_counted_over_all_shards(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [17, 3, 16], chunk_rows=CHUNK_ROWS)
    places = DatasetReader(written.store, written.manifest).chunks
    assert [(p.shard, p.index, p.rows, p.first_row) for p in places] == [
        (0, 0, 8, 0),
        (0, 1, 8, 8),
        (0, 2, 1, 16),
        (1, 0, 3, 17),
        (2, 0, 8, 20),
        (2, 1, 8, 28),
    ]


def test_shards_are_plain_safetensors_files(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [40, 23], sites={"early": 3, "late": 5})
    start = 0
    for shard in written.manifest.shards:
        tensors = load_file(tmp_path / shard.file)
        part = slice(start, start + shard.rows)
        expected = {"early", "late", *columns_of(["early", "late"])}
        assert expected == tensors.keys() == shard.offsets.keys() == shard.checksums.keys()
        for site, vectors in written.vectors.items():
            assert torch.equal(tensors[site], vectors[part])
        for name, column in written.columns.items():
            assert tensors[name].tolist() == column[part].tolist()
        start += shard.rows


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), st.integers(1, 9), st.integers(1, 3))
def test_shards_do_not_depend_on_how_rows_are_given(parts: list[int], chunk_rows: int, chunks_per_shard: int) -> None:
    rows, shard_rows = sum(parts), chunk_rows * chunks_per_shard
    vectors, columns = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1)), numbered(rows)

    def write(sizes: list[int]) -> tuple[Store, Any]:
        store = Store.at("memory://" + "-".join(map(str, [*sizes, chunk_rows, shard_rows])))
        store.delete("")
        writer = DatasetWriter(store=store, sites={"x": 2}, chunk_rows=chunk_rows, shard_rows=shard_rows)
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            writer.add({"x": vectors[part]}, {name: column[part] for name, column in columns.items()})
            start += size
            assert writer.rows == start
        return store, writer.close()

    (store, manifest), (_, at_once) = write(parts), write([rows])
    assert manifest == at_once
    assert [shard.rows for shard in manifest.shards][:-1] == [shard_rows] * (len(manifest.shards) - 1)
    assert sum(shard.rows for shard in manifest.shards) == manifest.rows == rows
    manifest.check_shards(store)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_statistics_are_those_of_the_stored_values(dtype: str, tmp_path: Path) -> None:
    vectors = 3 + torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 5, 9, 0.1, 0])
    written = write_rows(tmp_path, [131, 369], vectors={"x": vectors}, dtype=dtype)
    stored = written.vectors["x"].double().numpy()
    site = written.manifest.sites["x"]
    assert (site.width, site.dtype) == (6, dtype)
    np.testing.assert_allclose(site.mean, stored.mean(0), rtol=1e-12)
    np.testing.assert_allclose(site.mean_squared_norm, (stored**2).sum(1).mean(), rtol=1e-12)
    norms = np.sort(np.sqrt((stored**2).sum(1)).astype(np.float32))
    expected = {f"{q:g}": float(norms[max(1, math.ceil(q * 500)) - 1]) for q in QUANTILE_LEVELS}
    assert site.norm_quantiles == expected
    if dtype != "float32":
        assert not np.allclose(stored.mean(0), vectors.double().numpy().mean(0), rtol=1e-7), "rounding shows"


def test_the_id_is_of_the_content_and_not_of_the_provenance(tmp_path: Path) -> None:
    def written(name: str, **changes: Any) -> Written:
        return write_rows(tmp_path / name, **({"rows": 100} | changes))

    base = written("base").manifest
    again = written("again", provenance={"run": {"host": "elsewhere"}}).manifest
    assert again.id == base.id
    assert again.provenance != base.provenance
    changes = [
        {"seed": 1},
        {"rows": 99},
        {"rows": [60, 40]},
        {"chunk_rows": 4},
        {"dtype": "float16"},
        {"rows_per_document": 9},
        {"special": np.arange(100) == 50},
        {"sites": {"y": 4}},
    ]
    others = [written(str(number), **change).manifest.id for number, change in enumerate(changes)]
    assert len({base.id, *others}) == 1 + len(others)


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [70, 33], provenance={"settings": {"model": "m", "sites": [1, 2]}})
    loaded = load_manifest(written.store)
    assert loaded == written.manifest
    assert loaded.special_token_ids == [SPECIAL_TOKEN]
    assert loaded.bytes == sum((tmp_path / shard.file).stat().st_size for shard in loaded.shards)
    loaded.check_shards(written.store)


def test_a_dataset_is_never_written_over(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 50)
    with pytest.raises(UserError) as caught:
        write_rows(tmp_path, 60)
    expected = f"file://{tmp_path} already holds a dataset; choose another output or remove it"
    assert str(caught.value) == expected
    assert load_manifest(written.store) == written.manifest


def test_a_dataset_exists_from_its_last_file_on_and_every_file_is_whole(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    writer = DatasetWriter(store=store, sites={"x": 4}, chunk_rows=4, shard_rows=16)
    for _ in range(5):
        writer.add({"x": torch.ones(9, 4)}, numbered(9))
        for file in files_below(tmp_path):
            assert len(load_file(tmp_path / file)["x"]) == 16
        with pytest.raises(UserError, match=r"no manifest\.json there"):
            load_manifest(store)
    manifest = writer.close()
    assert files_below(tmp_path) == sorted([MANIFEST, *(shard.file for shard in manifest.shards)])
    assert [shard.rows for shard in manifest.shards] == [16, 16, 13]


def test_a_dataset_of_no_rows_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    writer = DatasetWriter(store=Store.at(str(tmp_path)), sites={"x": 4})
    writer.add({"x": torch.ones(0, 4)}, numbered(0))
    with pytest.raises(UserError, match="the dataset would have no rows; check the text and the filters"):
        writer.close()
    assert files_below(tmp_path) == []


def test_a_shard_holds_whole_chunks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard_rows 100 is not a multiple of chunk_rows 8"):
        DatasetWriter(store=Store.at(str(tmp_path)), sites={"x": 4}, chunk_rows=8, shard_rows=100)


def test_vectors_of_another_width_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    writer = DatasetWriter(store=Store.at(str(tmp_path)), sites={"x": 4})
    with pytest.raises(AssertionError, match="x"):
        writer.add({"x": torch.ones(3, 5)}, numbered(3))
    with pytest.raises(AssertionError, match=r"\(2, 4\)"):
        writer.add({"x": torch.ones(3, 4)}, numbered(2))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0, float(np.float32(3e38)), width=32), min_size=1, max_size=60),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
    st.integers(1, 7),
)
def test_quantiles_are_exact_however_the_values_are_parted(values: list[float], levels: list[float], size: int) -> None:
    array = np.array(values, dtype=np.float32)
    parts = [array[i : i + size] for i in range(0, len(array), size)]
    expected = [float(np.sort(array)[max(1, math.ceil(level * len(array))) - 1]) for level in levels]
    assert exact_quantiles(lambda: parts, levels) == expected


# The manifest


def refusal(store: Store) -> str:
    """The one line that a dataset is refused with."""
    with pytest.raises(UserError) as caught:
        load_manifest(store).check_shards(store)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"dataset {store.url}: ")
    return message.removeprefix(f"dataset {store.url}: ")


@pytest.fixture
def dataset(tmp_path: Path) -> Written:
    return write_rows(tmp_path, [40, 23])


def edit(dataset: Written, **changes: Any) -> None:
    content = json.loads(dataset.store.read(MANIFEST)) | changes
    dataset.store.write(MANIFEST, json.dumps(content).encode())


@pytest.mark.parametrize("below", ["nothing", "file/below"])
def test_a_missing_dataset_is_told_with_what_to_do(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    expected = "no manifest.json there; run `lexray harvest` or fix the url"
    assert refusal(Store.at(str(tmp_path / below))) == expected


def test_a_missing_shard_is_named(dataset: Written) -> None:
    dataset.store.delete("shards/000001.safetensors")
    assert refusal(dataset.store) == "shard shards/000001.safetensors is missing; harvest it again"


def test_a_truncated_shard_is_named_with_both_sizes(dataset: Written) -> None:
    shard = dataset.manifest.shards[0]
    dataset.store.write(shard.file, dataset.store.read(shard.file)[:-7])
    assert refusal(dataset.store) == (
        f"shard {shard.file} has {shard.bytes - 7:,} bytes, the manifest says {shard.bytes:,}; "
        "it is truncated or replaced, harvest it again"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'"text"', b"3", b"null"])
def test_a_manifest_that_is_no_json_object_is_refused(content: bytes, dataset: Written) -> None:
    dataset.store.write(MANIFEST, content)
    assert refusal(dataset.store).startswith(
        ("manifest.json: is not valid JSON (", "manifest.json: Input should be an")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "manifest version 1, this lexray reads 2; harvest it again"),
        ({"version": None}, "manifest version None, this lexray reads 2"),
        ({"format": "parquet"}, "manifest.json: format: Input should be 'lexray-activations'"),
        ({"colour": "red"}, "manifest.json: colour: Extra inputs are not permitted"),
        ({"rows": "many"}, "manifest.json: rows: Input should be a valid integer, got 'many'"),
        ({"rows": 0}, "manifest.json: rows: Input should be greater than 0"),
        ({"chunk_rows": 0}, "manifest.json: chunk_rows: Input should be greater than 0"),
        ({"shards": []}, "manifest.json: shards: List should have at least 1 item after validation, not 0"),
        ({"shards": [{"file": "shards/000000.safetensors"}]}, "manifest.json: shards.0.rows: Field required"),
        *(
            ({"shards": [{"file": file}]}, f"manifest.json: shards.0.file: {file!r} cannot be the name of a shard")
            for file in (
                "x",
                "../x",
                "/dev/zero",
                "shards/../../000000.safetensors",
                "shards/000000.safetensors\n",
                "",
                "shards/\u0660\u0660\u0660\u0660\u0660\u0660.safetensors",
                "shards//000000.safetensors",
                "s3://b/shards/000000.safetensors",
            )
        ),
        ({"sites": {"x": {"dtype": "int8"}}}, "manifest.json: sites.x.width: Field required"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_its_name(
    changes: dict[str, Any], message: str, dataset: Written
) -> None:
    edit(dataset, **changes)
    assert refusal(dataset.store).startswith(message)


def test_an_unknown_site_is_told_with_those_there_are(tmp_path: Path) -> None:
    manifest = write_rows(tmp_path, 20, sites={"early": 3, "late": 5}).manifest
    assert manifest.site("late").width == 5
    with pytest.raises(UserError) as caught:
        manifest.site("middle", field="data.site")
    assert str(caught.value) == "data.site: the dataset has no site 'middle'; its sites are early, late"


# Damage


def damaged(dataset: Written, tensor: str, chunk: int, byte: int = 0) -> None:
    shard = dataset.manifest.shards[0]
    data = bytearray(dataset.store.read(shard.file))
    start = chunk * CHUNK_ROWS * dataset.manifest.row_bytes(tensor)
    data[shard.offsets[tensor] + start + byte] ^= 1
    dataset.store.write(shard.file, bytes(data))


@pytest.mark.parametrize("tensor", ["x", "token_id", "position", "document"])
@pytest.mark.parametrize("chunk", quick([0, 2, 4], [2]))
def test_a_flipped_byte_is_named_by_shard_tensor_and_chunk(tensor: str, chunk: int, dataset: Written) -> None:
    reader = DatasetReader(dataset.store, dataset.manifest)
    expected = dataset.manifest.shards[0].checksums[tensor][chunk]
    for byte in (0, 8 * dataset.manifest.row_bytes(tensor) - 1):
        damaged(dataset, tensor, chunk, byte)
        with pytest.raises(CorruptDataError) as caught:
            reader.read_chunk(chunk, tensor)
        assert str(caught.value).startswith(f"shard shards/000000.safetensors, {tensor}, chunk {chunk}: checksum ")
        assert str(caught.value).endswith(f", the manifest says {expected}")
        damaged(dataset, tensor, chunk, byte)
        reader.read_chunk(chunk, tensor)


def test_other_chunks_of_a_damaged_shard_can_be_read(dataset: Written) -> None:
    damaged(dataset, "x", 2)
    reader = DatasetReader(dataset.store, dataset.manifest)
    good = [chunk for chunk in range(len(reader.chunks)) if chunk != 2]
    assert sum(len(reader.read_chunk(chunk, "x")) for chunk in good) == 63 - 8


@pytest.mark.parametrize(("rows_left", "chunk", "found"), [(16, 2, 0), (17, 2, 8), (19, 2, 24), (16, 4, 0)])
def test_a_short_chunk_is_told_with_both_sizes(rows_left: int, chunk: int, found: int, dataset: Written) -> None:
    shard = dataset.manifest.shards[0]
    end = shard.offsets["x"] + rows_left * dataset.manifest.row_bytes("x")
    dataset.store.write(shard.file, dataset.store.read(shard.file)[:end])
    with pytest.raises(CorruptDataError) as caught:
        DatasetReader(dataset.store, dataset.manifest).read_chunk(chunk, "x")
    assert str(caught.value) == f"shard {shard.file}, x, chunk {chunk}: {found} bytes, expected 64"


def test_a_short_column_is_found(dataset: Written) -> None:
    shard = dataset.manifest.shards[1]
    first = min(shard.offsets["document"], shard.offsets["token_id"])
    dataset.store.write(shard.file, dataset.store.read(shard.file)[: first + 5])
    with pytest.raises(CorruptDataError, match=r"shard shards/000001\.safetensors, document, chunk 0: "):
        DatasetReader(dataset.store, dataset.manifest).read_column("document")
