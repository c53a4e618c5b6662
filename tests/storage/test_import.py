"""Rows that another program stored arrive bit for bit and in order, or nothing is written and one line says why."""

from __future__ import annotations

import json
import pickle
import uuid
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cached_activations import write_cache
from faulty_server import faulty_server
from import_cases import NO_BFLOAT16, SAVE, TORCH, folder_of, imported, random_rows, refusal, stored
from safetensors.torch import save_file
from synthetic import write_rows

from lexray.storage.errors import UserError
from lexray.storage.imports import rows as import_rows_module
from lexray.storage.imports import source as import_source_module
from lexray.storage.imports.documents import DOCUMENT_ROWS, MANY_FILES
from lexray.storage.imports.rows import check_dtype
from lexray.storage.imports.source import SourceFolder, open_source
from lexray.storage.imports.tensors import TensorFolder
from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.storage.verify import verify

# Tensor files


@pytest.mark.parametrize(
    ("kind", "dtype"),
    sorted({(kind, dtype) for kind in SAVE for dtype in ("bfloat16", "float16", "float32")} - NO_BFLOAT16),
)
def test_every_format_and_dtype_arrives_bit_for_bit_in_the_order_of_names(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    rows = random_rows(50).to(TORCH[dtype])
    source = folder_of(tmp_path / "in", {f"10.{kind}": rows[20:], f"9.{kind}": rows[:20]})
    manifest = imported(source, tmp_path / "out", "x")
    assert (manifest.rows, manifest.sites["x"].dtype) == (50, dtype)
    assert torch.equal(stored(tmp_path / "out", "x"), rows)
    assert verify(Store.at(str(tmp_path / "out"))).sound


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_wanted_dtype_is_rounded_to(dtype: str, tmp_path: Path) -> None:
    rows = random_rows(30).double()
    source = folder_of(tmp_path / "in", {"a.npy": rows})
    imported(source, tmp_path / "out", "x", dtype=dtype)
    assert torch.equal(stored(tmp_path / "out", "x"), rows.to(TORCH[dtype]))


def test_float64_is_stored_as_float32_unless_told(tmp_path: Path) -> None:
    assert (
        imported(folder_of(tmp_path / "in", {"a.pt": random_rows(9).double()}), tmp_path / "out").sites["in"].dtype
        == "float32"
    )


def test_arrays_of_any_byte_order_and_memory_order_are_read(tmp_path: Path) -> None:
    rows = random_rows(30)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "0.npy", np.asfortranarray(rows[:20].numpy()))
    np.save(tmp_path / "in" / "1.npy", rows[20:].numpy().astype(">f4"))
    imported(tmp_path / "in", tmp_path / "out", "x")
    assert torch.equal(stored(tmp_path / "out", "x"), rows)


def test_blocks_of_any_size_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        f"{letter}/{part}.npy": random_rows(n, seed=n)
        for letter, sizes in (("p", (7, 30, 1)), ("q", (7, 30, 1)))
        for part, n in enumerate(sizes)
    }
    source = folder_of(tmp_path / "in", files)
    imported(source, tmp_path / "whole", document_rows=5)
    monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", 3 * 2 * 4 * 4)
    assert [len(block.columns["document"]) for block in TensorFolder(SourceFolder(Store.at(str(source)))).blocks()] == [
        3
    ] * 12 + [2]
    imported(source, tmp_path / "parts", document_rows=5)
    for name in ("p", "q", "token_id", "position", "document"):
        assert torch.equal(stored(tmp_path / "parts", name), stored(tmp_path / "whole", name))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_tensors_of_one_file_are_aligned_sites_and_columns(kind: str, tmp_path: Path) -> None:
    early, late, rows = random_rows(40, 3), random_rows(40, 5, seed=1), torch.arange(40)
    whole = {"early": early, "late": late, "token_ids": rows * 7, "document": rows // 6}
    (tmp_path / "in").mkdir()
    for name, part in (("0", slice(0, 25)), ("1", slice(25, 40))):
        content = {key: tensor[part].clone() for key, tensor in whole.items()}
        (torch.save if kind == "pt" else save_file)(content, tmp_path / "in" / f"{name}.{kind}")
    assert imported(tmp_path / "in", tmp_path / "out").sites.keys() == {"early", "late"}
    for name, expected in {"early": early, "late": late}.items():
        assert torch.equal(stored(tmp_path / "out", name), expected)
    for name, expected in {"token_id": rows * 7, "document": rows // 6, "position": rows % 6}.items():
        assert stored(tmp_path / "out", name).tolist() == expected.tolist()


def test_positions_in_told_documents_go_on_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = torch.tensor([4, 4, 4, 4, 4, 2, 2, 9, 9, 9, 9])
    (tmp_path / "in").mkdir()
    save_file({"x": random_rows(11), "document": document}, tmp_path / "in" / "a.safetensors")
    monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", 2 * 16)
    imported(tmp_path / "in", tmp_path / "out")
    assert stored(tmp_path / "out", "document").tolist() == document.tolist()
    assert stored(tmp_path / "out", "position").tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3]


def test_sub_folders_are_sites_whose_files_pair_by_name_in_any_format(tmp_path: Path) -> None:
    early, late = random_rows(40, 3), random_rows(40, 5, seed=1)
    files = {
        "early/0.npy": early[:7],
        "early/1.npy": early[7:],
        "late/0.pt": late[:7],
        "late/1.safetensors": late[7:],
    }
    imported(folder_of(tmp_path / "in", files), tmp_path / "out")
    assert torch.equal(stored(tmp_path / "out", "early"), early)
    assert torch.equal(stored(tmp_path / "out", "late"), late)


def test_sites_can_be_chosen_and_called_otherwise(tmp_path: Path) -> None:
    files = {"early/0.npy": random_rows(9), "late/0.npy": random_rows(9, seed=1)}
    source = folder_of(tmp_path / "in", files)
    assert imported(source, tmp_path / "one", "layer3=late").sites.keys() == {"layer3"}
    assert torch.equal(stored(tmp_path / "one", "layer3"), files["late/0.npy"])
    assert "no 'middle'; it has early, late" in refusal(source, tmp_path / "out", "middle")
    assert "'x' stands twice" in refusal(source, tmp_path / "out", "x=early", "x=late")
    assert "'position' is the name of a column" in refusal(source, tmp_path / "out", "position=late")
    assert "'a b' cannot name a site" in refusal(source, tmp_path / "out", "a b=late")


def test_documents_are_files_when_there_are_many_else_runs_of_rows_inside_a_file(tmp_path: Path) -> None:
    few = folder_of(tmp_path / "few", {"0.npy": random_rows(600), "1.npy": random_rows(10)})
    manifest = imported(few, tmp_path / "1")
    assert np.bincount(stored(tmp_path / "1", "document")).tolist() == [DOCUMENT_ROWS, DOCUMENT_ROWS, 88, 10]
    assert stored(tmp_path / "1", "position")[[0, 255, 256, 599, 600]].tolist() == [0, 255, 0, 87, 0]
    assert manifest.provenance["imported"]["documents"] == "of 256 rows each, a new one with each file"
    assert set(stored(tmp_path / "1", "token_id").tolist()) == {-1}
    many = folder_of(tmp_path / "many", {f"{i:03d}.npy": random_rows(1 + i % 3) for i in range(MANY_FILES)})
    imported(many, tmp_path / "2")
    assert np.bincount(stored(tmp_path / "2", "document")).tolist() == [1 + i % 3 for i in range(MANY_FILES)]
    imported(many, tmp_path / "3", document_rows=2)
    assert set(np.bincount(stored(tmp_path / "3", "document")).tolist()) == {1, 2}


def test_a_dataset_says_where_it_came_from(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"0.npy": random_rows(8), "1.npy": random_rows(8)})
    manifest = imported(source, tmp_path / "out", "x")
    told = manifest.provenance["imported"]
    assert (told["format"], told["folder"], told["files"]) == ("tensor files", str(source), 2)
    assert told["bytes"] == sum(path.stat().st_size for path in source.iterdir())
    assert str(source) in manifest.sites["x"].source


# Refusals


class Unwanted:
    """Unpickling it writes a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


def test_code_in_a_file_is_refused_and_not_executed(tmp_path: Path) -> None:
    witness, source = tmp_path / "witness", tmp_path / "in"
    source.mkdir()
    torch.save({"x": random_rows(3), "y": Unwanted(witness)}, source / "a.pt")
    line = refusal(source, tmp_path / "out")
    assert "a.pt: holds other things than tensors" in line
    (source / "a.pt").write_bytes(pickle.dumps(Unwanted(witness)))
    assert "a.pt: " in refusal(source, tmp_path / "out")
    (source / "a.pt").unlink()
    np.save(source / "a.npy", np.array([Unwanted(witness)], dtype=object), allow_pickle=True)
    assert "a.npy: holds an array of Python objects, which is never loaded" in refusal(source, tmp_path / "out")
    assert not witness.exists()
    pickle.loads(pickle.dumps(Unwanted(witness)))
    assert witness.exists(), "else this test would prove nothing"


def test_tensors_that_do_not_fit_are_refused_with_file_and_both_numbers(tmp_path: Path) -> None:
    def line(name: str, files: dict[str, torch.Tensor], *sites: str) -> str:
        return refusal(folder_of(tmp_path / name, files), tmp_path / "out", *sites)

    rows = random_rows(9)
    assert "1.npy: x has width 5, but 0.npy has 4" in line("width", {"0.npy": rows, "1.npy": random_rows(9, 5)}, "x")
    unequal = {"p/0.npy": rows, "q/0.npy": rows[:8].clone()}
    assert "q/0.npy: q has 8 rows, but p has 9 in" in line("unequal", unequal)
    assert "shape [9], expected 2 dimensions" in line("flat", {"a.npy": rows[:, 0].clone()}, "x")
    assert "dtype int64, expected one of" in line("int", {"a.npy": torch.ones(3, 3).long()}, "x")
    assert "has 0 rows" in line("empty", {"a.npy": rows[:0].clone()}, "x")
    assert "3 tensor files beside 1 sub-folders" in line(
        "both", {f"{i}.npy": rows for i in range(3)} | {"p/0.npy": rows}
    )
    mixed = {"0.safetensors": rows, "1.npy": rows}
    assert "1.npy: holds a tensor without a name, but 0.safetensors holds x" in line("kinds", mixed)
    (tmp_path / "nothing").mkdir()
    assert "no .npy, .npz, .pt, .pth, .safetensors or .parquet file there" in refusal(
        tmp_path / "nothing", tmp_path / "out"
    )


def test_unequal_rows_inside_a_file_are_refused_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"x": random_rows(9), "y": random_rows(8)}, tmp_path / "in" / "a.safetensors")
    assert "a.safetensors: y has 8 rows, but x has 9 in" in refusal(tmp_path / "in", tmp_path / "out")


def test_values_that_are_not_finite_are_refused_by_file_and_row(tmp_path: Path) -> None:
    rows = random_rows(40)
    rows[33, 2] = float("nan")
    source = folder_of(tmp_path / "in", {"0.npy": rows[:30].clone(), "1.npy": rows[30:].clone()})
    assert "1.npy, row 3: NaN or Inf" in refusal(source, tmp_path / "out", "x")
    rows[33, 2] = 1e6
    source = folder_of(tmp_path / "in2", {"a.npy": rows})
    line = refusal(source, tmp_path / "out", "x", dtype="float16")
    assert "a.npy, row 33: a value of 1e+06, but --dtype float16 ends at 6.55e+04; use bfloat16" in line


def test_a_number_that_a_column_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"x": random_rows(3), "document": torch.tensor([1, 2, 2**40])}, tmp_path / "in" / "a.safetensors")
    assert f"a.safetensors, row 2: document {2**40}, but" in refusal(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("kind", SAVE)
def test_a_file_that_is_not_whole_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {f"a.{kind}": random_rows(300)})
    path = source / f"a.{kind}"
    path.write_bytes(path.read_bytes()[:900])
    assert f"a.{kind}: not a" in refusal(source, tmp_path / "out")


def test_a_failure_after_the_first_shard_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.ones(70_000, 1)
    rows[69_999] = float("inf")
    monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", 4 * 35_000)
    assert "row 69999" in refusal(folder_of(tmp_path / "in", {"a.npy": rows}), tmp_path / "out", "x")


def test_an_output_is_never_written_over(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.npy": random_rows(9)})
    written = write_rows(tmp_path / "out", 20)
    with pytest.raises(UserError, match="already holds a dataset"):
        imported(source, tmp_path / "out")
    assert load_manifest(written.store) == written.manifest


def test_places_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.npy": random_rows(9)})
    assert str(open_source(str(source), str(tmp_path / "out"))) == str(source)
    write_rows(tmp_path / "dataset", 20)
    for place, output, line in [
        (source, source / "out", "lies in SOURCE"),
        (source / "a.npy", tmp_path / "out", "is not a folder"),
        (tmp_path / "dataset", tmp_path / "out", "is a dataset already"),
        ("memory://nothing/rows", tmp_path / "out", "holds no file"),
    ]:
        with pytest.raises(UserError, match=line):
            open_source(str(place), str(output))
    with pytest.raises(UserError, match="'int8' is none of bfloat16, float16, float32"):
        check_dtype("int8")


# Activations cached by SAELens

HOOK = "blocks.3.hook_resid_post"


def cached(
    contexts: int = 10, positions: int = 6, width: int = 4, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    values = random.normal(size=(contexts, positions, width)).astype(dtype)
    return values, random.integers(0, 900, (contexts, positions), dtype=np.int32)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_sae_lens_cache_arrives_bit_for_bit_with_its_tokens(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, token_ids = cached(dtype=dtype)
    source = write_cache(tmp_path / "in", {HOOK: values}, token_ids)
    for output, block_bytes in (("whole", 2**20), ("parts", 1)):
        monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", block_bytes)
        manifest = imported(source, tmp_path / output)
        assert (manifest.rows, manifest.sites[HOOK].dtype) == (60, dtype)
        assert stored(tmp_path / output, HOOK).tolist() == values.reshape(60, 4).tolist()
        assert stored(tmp_path / output, "token_id").tolist() == token_ids.ravel().tolist()
        assert stored(tmp_path / output, "position").tolist() == [*range(6)] * 10
        assert stored(tmp_path / output, "document").tolist() == np.repeat(range(10), 6).tolist()
    assert manifest.provenance["imported"]["format"] == "SAELens cached activations"


def test_hook_points_of_a_cache_are_aligned_sites_that_can_be_renamed(tmp_path: Path) -> None:
    early, late = cached()[0], cached(width=7)[0]
    source = write_cache(tmp_path / "in", {"blocks.0.hook_in": early, "blocks.1.hook_in": late})
    assert imported(source, tmp_path / "all").sites.keys() == {"blocks.0.hook_in", "blocks.1.hook_in"}
    imported(source, tmp_path / "one", "late=blocks.1.hook_in")
    assert stored(tmp_path / "one", "late").tolist() == late.reshape(60, 7).tolist()
    assert set(stored(tmp_path / "one", "token_id").tolist()) == {-1}


def test_a_cache_that_is_not_as_sae_lens_leaves_it_is_refused(tmp_path: Path) -> None:
    values, token_ids = cached()

    def fresh(name: str) -> Path:
        return write_cache(tmp_path / name, {HOOK: values}, token_ids)

    def line(source: Path, **options: Any) -> str:
        return refusal(source, tmp_path / "out", **options)

    assert "each context is a document" in line(fresh("documents"), document_rows=4)
    missing = fresh("missing")
    (missing / "data-00001-of-00003.arrow").unlink()
    assert "data-00001-of-00003.arrow: no such file" in line(missing)
    cut = fresh("cut")
    data = (cut / "data-00002-of-00003.arrow").read_bytes()
    (cut / "data-00002-of-00003.arrow").write_bytes(data[: len(data) // 2])
    assert "data-00002-of-00003.arrow: not a whole Arrow stream" in line(cut)
    other = fresh("other")
    info = json.loads((other / "dataset_info.json").read_text())
    info["features"][HOOK]["shape"] = [6, 5]
    (other / "dataset_info.json").write_text(json.dumps(info))
    assert "has 72 numbers in 3 contexts, expected 30 in each" in line(other)
    (other / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string"}}}))
    assert "holds vectors of floats" in line(other)
    (tmp_path / "splits").mkdir()
    fresh("splits/train")
    (tmp_path / "splits" / "dataset_dict.json").write_text("{}")
    assert "holds the splits train" in line(tmp_path / "splits")
    unequal = write_cache(tmp_path / "unequal", {"p": values, "q": cached(positions=5)[0]})
    assert "q has contexts of 5 positions, but p of 6" in line(unequal)


def test_a_value_of_a_cache_that_is_not_finite_is_named_by_context_and_position(tmp_path: Path) -> None:
    values, token_ids = cached()
    values[5, 2, 1] = np.inf
    line = refusal(write_cache(tmp_path / "in", {HOOK: values}, token_ids), tmp_path / "out")
    assert f"data-00001-of-00003.arrow, {HOOK}, context 1, position 2: NaN or Inf" in line


def as_on_the_hub(saved: Path, folder: Path, split: str = "train") -> Path:
    """The files that `push_to_hub` makes of a saved cache: Parquet, features in the schema."""
    folder.mkdir(parents=True, exist_ok=True)
    features = json.loads((saved / "dataset_info.json").read_text())["features"]
    files = sorted(saved.glob("*.arrow"))
    for number, file in enumerate(files):
        with pa.OSFile(str(file)) as opened, pa.ipc.open_stream(opened) as stream:
            table = stream.read_all()
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{split}-{number:05d}-of-{len(files):05d}.parquet", row_group_size=3)
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_sae_lens_cache_as_pushed_to_a_hub_gives_the_rows_of_the_saved_one(dtype: str, tmp_path: Path) -> None:
    values, token_ids = cached(dtype=dtype)
    saved = write_cache(tmp_path / "saved", {HOOK: values}, token_ids)
    as_on_the_hub(saved, tmp_path / "repository" / "data")
    on_the_hub, on_disk = imported(tmp_path / "repository", tmp_path / "1"), imported(saved, tmp_path / "2")
    assert on_the_hub.shards == on_disk.shards
    assert stored(tmp_path / "1", HOOK).tolist() == values.reshape(60, 4).tolist()


def test_a_repository_of_the_hub_that_is_not_one_cache_is_refused(tmp_path: Path) -> None:
    saved = write_cache(tmp_path / "saved", {HOOK: cached()[0]}, cached()[1])
    as_on_the_hub(saved, tmp_path / "in" / "data")
    as_on_the_hub(saved, tmp_path / "in" / "data", "test")
    assert "holds the splits test, train; give a folder with" in refusal(tmp_path / "in", tmp_path / "out")
    whole = as_on_the_hub(saved, tmp_path / "cut") / "train-00000-of-00003.parquet"
    whole.write_bytes(whole.read_bytes()[:-9])
    assert "train-00000-of-00003.parquet: not a whole Parquet file" in refusal(tmp_path / "cut", tmp_path / "out")
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other" / "a.parquet")
    line = refusal(tmp_path / "other", tmp_path / "out")
    assert "a.parquet: no column holds vectors of floats; its columns are text (string)" in line


# Sources in other stores


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty folder of an object store, found as `lexray data import` finds it."""
    monkeypatch.setattr("lexray.storage.objects.connections._CONNECTIONS", {})  # which were made in another environment
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    boto3.client("s3").create_bucket(Bucket="import-sources")
    return f"s3://import-sources/{uuid.uuid4().hex}"


def uploaded(source: Path, url: str) -> str:
    for path in source.rglob("*"):
        if path.is_file():
            Store.at(url).write(path.relative_to(source).as_posix(), path.read_bytes())
    return url


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of files are made."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.mark.parametrize("kind", SAVE)
def test_files_of_an_object_store_give_the_rows_of_local_ones(
    kind: str, bucket: str, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = random_rows(40, 3), random_rows(40, 5, seed=1)
    files = {f"early/{i}.{kind}": early[i * 10 : i * 10 + 10] for i in range(4)}
    files |= {f"late/{i}.{kind}": late[i * 10 : i * 10 + 10] for i in range(4)}
    source = folder_of(tmp_path / "in", {name: rows.clone() for name, rows in files.items()})
    here = imported(source, tmp_path / "here")
    monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", 3 * 8 * 4)
    there = imported(uploaded(source, bucket), tmp_path / "there")
    assert there.shards == here.shards
    assert there.provenance["imported"]["folder"] == bucket
    assert there.provenance["imported"]["bytes"] == here.provenance["imported"]["bytes"]
    assert not list(copies.iterdir())


def test_a_cache_in_an_object_store_gives_the_rows_of_a_local_one(bucket: str, copies: Path, tmp_path: Path) -> None:
    values, token_ids = cached()
    saved = write_cache(tmp_path / "saved", {HOOK: values}, token_ids)
    hub = as_on_the_hub(saved, tmp_path / "hub" / "data").parent
    here = imported(saved, tmp_path / "here")
    for source in (saved, hub):
        there = imported(uploaded(source, f"{bucket}/{source.name}"), tmp_path / f"of-{source.name}")
        assert there.shards == here.shards
    assert not list(copies.iterdir())


@pytest.mark.parametrize("kind", [*SAVE, "parquet"])
def test_of_files_in_an_object_store_every_byte_is_read_about_once(
    kind: str, bucket: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "parquet":
        values, token_ids = cached(contexts=12, positions=50, width=200)
        saved = write_cache(tmp_path / "saved", {HOOK: values}, token_ids)
        source = as_on_the_hub(saved, tmp_path / "in")
    else:
        source = folder_of(tmp_path / "in", {f"{i}.{kind}": random_rows(200, 200, seed=i) for i in range(3)})
    uploaded(source, bucket)
    monkeypatch.setattr(import_source_module, "EDGE_BYTES", 8192)
    with faulty_server(s3_server) as proxy:
        monkeypatch.setattr("lexray.storage.objects.connections._CONNECTIONS", {})
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        manifest = imported(bucket, tmp_path / "out")
    ranges = [request.headers["range"] for request in proxy.requests if "range" in request.headers]
    spans = [[int(number) for number in span.removeprefix("bytes=").split("-")] for span in ranges]
    whole = manifest.provenance["imported"]["bytes"]
    assert whole > 4e5
    assert whole <= sum(end - start + 1 for start, end in spans) <= 1.25 * whole


def test_what_is_wrong_in_an_object_store_is_named_by_its_url(bucket: str, copies: Path, tmp_path: Path) -> None:
    source = uploaded(folder_of(tmp_path / "in", {"0.npy": random_rows(9), "1.npy": random_rows(9, 5)}), bucket)
    assert f"{bucket}/1.npy: x has width 5, but 0.npy has 4" in refusal(source, tmp_path / "out", "x")
    Store.at(bucket).write("1.npy", b"not one")
    assert f"{bucket}/1.npy: not an .npy file" in refusal(source, tmp_path / "out", "x")
    with pytest.raises(UserError, match="lies in SOURCE"):
        open_source(bucket, f"{bucket}/out")
    with pytest.raises(UserError, match="holds no file"):
        open_source(f"{bucket}/none", "out")
    assert not list(copies.iterdir())
