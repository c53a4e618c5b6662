"""Columns of vectors in tables arrive bit for bit with their documents, or one line names file, column and record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_cases import folder_of, imported, random_rows, refusal, stored

from lexray.storage.imports import rows as import_rows_module

X = random_rows(60).numpy()


def fixed(values: np.ndarray) -> pa.Array:
    """(N, D) as lists of a fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def documents(lengths: list[int], values: np.ndarray = X) -> list[np.ndarray]:
    """The first rows as documents of so many rows."""
    return np.split(values[: sum(lengths)], np.cumsum(lengths)[:-1])


def nested(lengths: list[int], values: np.ndarray = X) -> pa.Array:
    """Documents of vectors as lists of lists."""
    kind = pa.list_(pa.list_(pa.from_numpy_dtype(values.dtype)))
    return pa.array([part.tolist() for part in documents(lengths, values)], kind)


def parquet(place: Path, columns: Mapping[str, Any], name: str = "x.parquet", **options: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), place / name, **options)
    return place


def saved(place: Path, columns: Mapping[str, Any], features: dict[str, Any] | None = None) -> Path:
    """As `save_to_disk` of `datasets` leaves a table."""
    place.mkdir(parents=True)
    table = pa.table(dict(columns))
    with (
        pa.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=4)
    named = {name: {"_type": "Value"} for name in columns} | (features or {})
    (place / "dataset_info.json").write_text(json.dumps({"features": named}))
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return place


def feather(place: Path, columns: Mapping[str, Any]) -> Path:
    place.mkdir(parents=True)
    table = pa.table(dict(columns))
    with pa.OSFile(str(place / "x.feather"), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=7)
    return place


WRITERS = {"parquet": parquet, "saved": saved, "feather": feather}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
def test_a_column_of_embeddings_is_a_site(write: str, dtype: str, kind: str, tmp_path: Path) -> None:
    x = X.astype(dtype)
    item = pa.from_numpy_dtype(x.dtype)
    lists = {"list": pa.list_, "large": pa.large_list}
    column = fixed(x) if kind == "fixed" else pa.array(list(x), lists[kind](item))
    columns = {"text": ["a"] * 60, "embedding": column, "token_id": range(60), "score": [0.5] * 60}
    source = WRITERS[write](tmp_path / "in", columns)
    manifest = imported(source, tmp_path / "out", document_rows=7)
    assert list(manifest.sites) == ["embedding"]
    assert np.array_equal(stored(tmp_path / "out", "embedding"), x.astype(manifest.sites["embedding"].dtype))
    assert stored(tmp_path / "out", "token_id").tolist() == list(range(60))
    assert stored(tmp_path / "out", "document").tolist() == [row // 7 for row in range(60)]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("block_rows", [1, 6, 1000])
def test_lists_of_vectors_are_documents_of_any_length(
    write: str, block_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [3, 0, 7, 1, 1, 20, 0, 8]
    ids = pa.array([list(range(n)) for n in lengths], pa.list_(pa.int64()))
    source = WRITERS[write](
        tmp_path / "in", {"p": nested(lengths), "q": nested(lengths, 2 * X[:, :3]), "input_ids": ids}
    )
    monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", 28 * block_rows)
    assert imported(source, tmp_path / "out").rows == 40
    assert np.array_equal(stored(tmp_path / "out", "p"), X[:40])
    assert np.array_equal(stored(tmp_path / "out", "q"), 2 * X[:40, :3])
    assert stored(tmp_path / "out", "document").tolist() == np.repeat(range(8), lengths).tolist()
    assert stored(tmp_path / "out", "position").tolist() == [p for n in lengths for p in range(n)]
    assert stored(tmp_path / "out", "token_id").tolist() == [p for n in lengths for p in range(n)]


@pytest.mark.parametrize("shape", [[None, 4], [None, None], "open", None, [2], [-3, 4]])
def test_arrays_of_an_open_first_dimension_are_documents(shape: Any, tmp_path: Path) -> None:
    features = {"h": {"_type": "Array2D", "shape": shape, "dtype": "float32"}}
    source = saved(tmp_path / "in", {"h": nested([5, 2, 9])}, features)
    imported(source, tmp_path / "out")
    assert np.array_equal(stored(tmp_path / "out", "h"), X[:16])
    assert stored(tmp_path / "out", "document").tolist() == [0] * 5 + [1] * 2 + [2] * 9


def test_a_cache_of_datasets_itself_with_an_open_dimension_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "h": datasets.Array2D((None, 4), "float32"),
            "embedding": datasets.Sequence(datasets.Value("float32"), length=4),
        }
    )
    parts = documents([5, 2, 9])
    rows = {"h": [part.tolist() for part in parts], "embedding": X[:3].tolist()}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    made.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    for source in ("saved", "hub"):
        imported(tmp_path / source, tmp_path / f"{source}-h", "h")
        assert np.array_equal(stored(tmp_path / f"{source}-h", "h"), X[:16])
        imported(tmp_path / source, tmp_path / f"{source}-e", "embedding")
        assert np.array_equal(stored(tmp_path / f"{source}-e", "embedding"), X[:3])
        assert "choose one kind by --site" in refusal(tmp_path / source, tmp_path / "no")


@pytest.mark.parametrize("by", ["attention_mask", "lengths"])
def test_vectors_beyond_a_document_are_left_out(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [3, 0, 5, 1]
    mask = [[1] * n + [0] * (5 - n) for n in lengths]
    source = parquet(tmp_path / "in", {"x": nested([5] * 4), by: mask if by == "attention_mask" else lengths})
    for output, block_bytes in (("whole", 2**20), ("parts", 1)):
        monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", block_bytes)
        assert imported(source, tmp_path / output).rows == 9
        expected = np.concatenate([X[i * 5 : i * 5 + n] for i, n in enumerate(lengths)])
        assert np.array_equal(stored(tmp_path / output, "x"), expected)
        assert stored(tmp_path / output, "document").tolist() == np.repeat(range(4), lengths).tolist()
        assert stored(tmp_path / output, "position").tolist() == [p for n in lengths for p in range(n)]


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, start in ((10, 40), (9, 20), (2, 0)):
        parquet(tmp_path / "in", {"x": fixed(X[start : start + 20])}, f"part-{number}.parquet", row_group_size=7)
    imported(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(stored(tmp_path / "out", "x"), X)


def test_documents_of_their_own_are_kept(tmp_path: Path) -> None:
    document = [row // 9 for row in range(60)]
    imported(parquet(tmp_path / "in", {"x": fixed(X), "document": document}), tmp_path / "out")
    assert stored(tmp_path / "out", "document").tolist() == document
    assert stored(tmp_path / "out", "position").tolist() == [row % 9 for row in range(60)]


NONE = pa.array([None, *X[1:].tolist()], pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": NONE}, "x, record 0: null; take such records out"),
        ({"x": [*X[:5].tolist(), None]}, "x, record 5: null"),
        ({"x": [*X[:5].tolist(), [1.0, None, 2.0, 3.0]]}, "x, record 5: null"),
        ({"x": [*X[:5].tolist(), [1.0, 2.0]]}, "record 5: a vector of 2 numbers, but others have 4"),
        ({"x": [*X[:5].tolist(), []]}, "record 5: a vector of 0 numbers, but others have 4"),
        ({"x": [[], []]}, "no column holds vectors of floats"),
        ({"x": pa.array([[], []], pa.list_(pa.float32()))}, "holds 0 vectors, or vectors of 0 numbers"),
        ({"x": pa.array([], pa.list_(pa.float32()))}, "holds 0 vectors, or vectors of 0 numbers"),
        ({"x": [[[1.0, 2.0]], [[1.0, 2.0], [3.0]]]}, "record 1: a vector of 1 numbers, but others have 2"),
        ({"x": [[[1.0, 2.0]], [[1.0, 2.0], None]]}, "x, record 1: null"),
        ({"x": [[1, 2], [3, 4]], "text": ["a", "b"]}, "its columns are x (list<element: int64>), text (string)"),
        ({"x": [[[[1.0]]]]}, "no column holds vectors of floats"),
        ({"text": ["a"]}, "no column holds vectors of floats; its columns are text (string)"),
        ({"x": X[:4].tolist(), "position": [0, 1, 2, 3]}, "a column position without document"),
        ({"x": X[:4].tolist(), "token_id": [0, None, 2, 3]}, "token_id, record 1: null"),
        ({"x": X[:4].tolist(), "token_id": [1] * 4, "input_ids": [1] * 4}, "both hold token_id; keep one"),
        ({"x": X[:4].tolist(), "mask": [1, 0, 2, 1]}, "record 2: a mask of 2, expected 0 or 1"),
        ({"x": nested([2, 3]), "token_ids": [[1, 2], [1, 2]]}, "token_ids, record 1: 2 numbers, but 3 vectors"),
        ({"x": nested([2, 3]), "y": nested([2, 2])}, "record 1: y has 2 vectors, x 3; each row needs both"),
        ({"x": nested([2, 3]), "lengths": [2, 4]}, "record 1: a length of 4, but 3 rows are stored"),
        ({"x": nested([2, 3]), "mask": [[0, 0], [0, 0, 0]]}, "hold 0 rows"),
        ({"x": nested([2, 3]), "y": X[:2].tolist()}, "choose one kind by --site"),
        ({"x": X[:2].tolist(), "token_id": pa.array([1, 2**64 - 1], pa.uint64())}, f"token_id {2**64 - 1}, but"),
        ({"x": [[1.0, float("nan")]]}, "x, record 0: NaN or Inf"),
        ({"x": [[[1.0, 2.0], [1.0, float("inf")]]]}, "x, context 0, position 1: NaN or Inf"),
    ],
)
@pytest.mark.parametrize("write", ["parquet", "saved"])
def test_columns_that_are_no_rows_are_refused_by_name(
    write: str, columns: dict[str, Any], said: str, tmp_path: Path
) -> None:
    line = refusal(WRITERS[write](tmp_path / "in", columns), tmp_path / "out")
    assert said.replace("element", "item" if write == "saved" else "element") in line
    assert str(tmp_path / "in") in line


def test_files_of_other_columns_or_splits_are_refused(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in", {"x": fixed(X)}, "part-0.parquet")
    parquet(source, {"x": X.astype(np.float64).tolist()}, "part-1.parquet")
    assert "part-1.parquet: x is a" in refusal(source, tmp_path / "out")
    parquet(source, {"y": fixed(X)}, "part-1.parquet")
    assert "part-1.parquet: has no column x" in refusal(source, tmp_path / "out")
    parquet(source, {"x": fixed(X)}, "part-1.parquet")
    parquet(source, {"x": fixed(X)}, "part-01.parquet")
    assert "part-1.parquet: has the name or number of part-01.parquet" in refusal(source, tmp_path / "out")
    other = parquet(tmp_path / "other", {"x": fixed(X)}, "layer3.parquet")
    parquet(other, {"x": fixed(X)}, "layer4.parquet")
    assert "add --files rows" in refusal(other, tmp_path / "out")
    assert imported(other, tmp_path / "rows", files="rows").rows == 120
    assert "whose columns are sites" in refusal(other, tmp_path / "out", files="sites")


def test_a_table_beside_tensors_is_refused(tmp_path: Path) -> None:
    source = folder_of(parquet(tmp_path / "in", {"x": fixed(X)}), {"y.npy": random_rows(3)})
    assert "holds the table x.parquet beside the tensors y.npy" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_data_files": [{"filename": "../x.arrow"}]}, "'../x.arrow' is no name of a data file"),
        ({"_data_files": [{"filename": "/dev/zero"}]}, "'/dev/zero' is no name"),
        ({"_data_files": [{"file": "x"}]}, "None is no name"),
        ({"_data_files": ["x.arrow"]}, "None is no name"),
        ({"_data_files": []}, "names 0 data files"),
        ({"_data_files": "x"}, "names no data files"),
        ([], "names no data files"),
    ],
)
def test_a_state_that_names_other_files_is_refused(state: Any, said: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "in", {"x": fixed(X)})
    (source / "state.json").write_text(json.dumps(state))
    assert said in refusal(source, tmp_path / "out")


def test_linked_tables_are_read(tmp_path: Path) -> None:
    real = parquet(tmp_path / "blobs", {"x": fixed(X)}, "0f3a")
    (tmp_path / "in" / "data").mkdir(parents=True)
    (tmp_path / "in" / "data" / "train-00000-of-00001.parquet").symlink_to(real / "0f3a")
    imported(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(stored(tmp_path / "out", "x"), X)


@pytest.mark.parametrize("write", WRITERS)
def test_a_table_that_is_cut_is_refused_by_name(write: str, tmp_path: Path) -> None:
    source = WRITERS[write](tmp_path / "in", {"x": nested([5, 2, 9])})
    (path,) = (path for path in source.iterdir() if path.suffix != ".json")
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:size])
        assert f"{path.name}: not a whole" in refusal(source, tmp_path / "out")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_damage_to_a_table_gives_anything_but_one_line_or_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("damage")
    lengths = [3, 0, 7, 1]
    columns = {"x": nested(lengths), "token_ids": [[1] * n for n in lengths], "text": ["a"] * 4}
    source = WRITERS[data.draw(st.sampled_from(sorted(WRITERS)))](place / "in", columns)
    path = data.draw(st.sampled_from(sorted(source.iterdir())))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        imported(source, place / "out")
    except Exception:
        assert str(source) in refusal(source, place / "out")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([fixed(X), fixed(2 * X)], names=["x", "x"])
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "x.parquet")
    assert "two columns of one name" in refusal(tmp_path / "in", tmp_path / "out")


def test_a_table_of_nothing_that_claims_much_is_refused(tmp_path: Path) -> None:
    constant = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array(["a"]))
    source = parquet(tmp_path / "in", {"x": fixed(np.zeros((1000, 4), np.float32)), "n": constant})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lexray.storage.imports.array_files.LEAST_CLAIM", 1000)
        patch.setattr("lexray.storage.imports.array_files.MAX_RATIO", 1)
        assert "x.parquet: claims 5,000 numbers in" in refusal(source, tmp_path / "out")
    assert imported(source, tmp_path / "out").rows == 1000
