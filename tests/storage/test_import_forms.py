"""Vectors in the forms that people have: each arrives bit for bit, or one line names the file and what to change."""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from import_cases import folder_of, imported, random_rows, refusal, stored
from safetensors.torch import save_file

from lexray.storage.imports import rows as import_rows_module
from lexray.storage.imports.array_files import RawFormat
from lexray.storage.imports.stored_tensor import StoredTensor, TensorFacts

ROWS = random_rows(30)
IDS = torch.arange(30)
X = ROWS.numpy()


def written(place: Path, name: str, write: Callable[[Path], Any]) -> Path:
    """A folder that holds one file."""
    place.mkdir(parents=True, exist_ok=True)
    write(place / name)
    return place


def saved(place: Path, content: Any, name: str = "x.pt") -> Path:
    return written(place, name, lambda path: torch.save(content, path))


# Files of torch.save


@pytest.mark.parametrize(
    ("content", "site"),
    [
        (ROWS, "in"),
        ({"layer3": ROWS, "model": "gpt2", "layer": 3, "shape": (30, 4), "none": None, "tags": ["a", "b"]}, "layer3"),
        ({"acts": {"layer3": ROWS}, "meta": {"model": "gpt2", "empty": {}}}, "acts.layer3"),
        ({3: ROWS}, "3"),
        ([ROWS], "in"),
        ({"acts": (ROWS,)}, "acts"),
        (OrderedDict(x=torch.nn.Parameter(ROWS)), "x"),
        ({"x": ROWS.clone().requires_grad_()}, "x"),
        ({"x": torch.cat([ROWS, ROWS], 1)[:, :4]}, "x"),
        ({"x": ROWS.T.contiguous().T}, "x"),
    ],
)
def test_tensors_are_found_in_whatever_torch_saved_them(content: Any, site: str, tmp_path: Path) -> None:
    for name in ("x.pt", "x.pth", "X.PT"):
        source, output = saved(tmp_path / name / "in", content, name), tmp_path / name / "out"
        assert list(imported(source, output).sites) == [site]
        assert torch.equal(stored(output, site), ROWS)


def test_tensors_that_share_their_storage_are_sites_of_their_own(tmp_path: Path) -> None:
    wide = random_rows(30, 10)
    imported(saved(tmp_path / "in", {"left": wide[:, :3], "right": wide[:, 3:], "all": wide}), tmp_path / "out")
    for site, expected in {"left": wide[:, :3], "right": wide[:, 3:], "all": wide}.items():
        assert torch.equal(stored(tmp_path / "out", site), expected)


def test_nested_columns_belong_to_the_sites(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", {"acts": {"p": ROWS}, "meta": {"token_ids": IDS * 3, "document": IDS // 7}})
    imported(source, tmp_path / "out")
    assert stored(tmp_path / "out", "token_id").tolist() == (IDS * 3).tolist()
    assert stored(tmp_path / "out", "position").tolist() == (IDS % 7).tolist()


def test_a_list_is_runs_of_rows_or_sites_only_if_the_user_says_so(tmp_path: Path) -> None:
    pair = saved(tmp_path / "pair", [ROWS, 2 * ROWS])
    assert "x.pt: holds a list of tensors" in refusal(pair, tmp_path / "out")
    assert "--lists rows or --lists sites" in refusal(pair, tmp_path / "out")
    imported(pair, tmp_path / "rows", lists="rows")
    assert torch.equal(stored(tmp_path / "rows", "pair"), torch.cat([ROWS, 2 * ROWS]))
    imported(pair, tmp_path / "sites", lists="sites")
    assert torch.equal(stored(tmp_path / "sites", "1"), 2 * ROWS)
    batches = [{"x": ROWS[:20], "token_ids": IDS[:20]}, {"x": ROWS[20:], "token_ids": IDS[20:]}]
    imported(saved(tmp_path / "batches", batches), tmp_path / "of", lists="rows")
    assert torch.equal(stored(tmp_path / "of", "x"), ROWS)
    assert torch.equal(stored(tmp_path / "of", "token_id"), IDS.int())
    batches[1]["token_ids"], batches[0]["token_ids"] = IDS[10:], IDS[:10]
    line = refusal(saved(tmp_path / "skewed", batches), tmp_path / "out", lists="rows")
    assert "token_ids" in line or "token_id has 10 rows, but x has 20" in line


def _sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (30, 4), check_invariants=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x": ROWS, "y": ROWS[:, 0].clone()}, "y has shape [30], expected 2 dimensions"),
        ({"x": ROWS, "scale": torch.tensor(2.0)}, "leave it out by --site x"),
        ({"x": ROWS, "y": ROWS[:20]}, "y has 20 rows, but x has 30"),
        ({"x": ROWS, "y": random_rows(6).reshape(2, 3, 4)}, "y has shape [2, 3, 4], expected 2 dimensions"),
        ({"x": (ROWS * 9).to(torch.int8)}, "x has dtype int8"),
        ({"x": ROWS.to(torch.float8_e4m3fn)}, "convert its values to float16 or float32"),
        ({"x": torch.complex(ROWS, ROWS)}, "x has dtype complex64"),
        ({"x": _sparse()}, "is a sparse_coo tensor; save it after to_dense()"),
        ({"x": torch.empty(30, 4, device="meta")}, "x.pt: "),
        ({"x": torch.ones(1, 4).expand(10**12, 4)}, "claims 16,000,000,000,000 bytes, the file stores"),
        ({"x": ROWS[:0]}, "has 0 rows"),
        ({"x": ROWS[:, :0]}, "x has shape [30, 0]"),
        ({"note": "nothing"}, "holds no tensor (note is str)"),
        ("a text", "holds no tensor (its content is str)"),
        ({}, "x.pt: holds no tensor"),
        ({1: ROWS, "1": ROWS}, "holds two items called '1'"),
        ({"x": ROWS, "y": X}, "arrays of numpy, which are never unpickled"),
        (X, "save tensors (torch.from_numpy)"),
        ({"x": ROWS, "position": IDS}, "a column position without document"),
        ({"x": ROWS, "token_ids": IDS[:, None]}, "token_id has shape [30, 1], expected 1 dimensions"),
        ({"x": ROWS, "token_ids": ROWS[:, 0].clone()}, "token_id has dtype float32"),
        ({"x": ROWS, "token_ids": IDS, "a": {"token_id": IDS}}, "both hold token_id; keep one"),
        ({"x": ROWS, "mask": IDS}, "mask of 2, expected 0 or 1"),
        ({"x": ROWS, "mask": IDS * 0}, "keep 0 of 30 rows"),
        ({"x": ROWS, "lengths": IDS}, "leave it out"),
        ({"mask": IDS}, "columns but no site"),
    ],
)
def test_tensors_that_are_no_rows_are_refused_by_name(content: Any, said: str, tmp_path: Path) -> None:
    line = refusal(saved(tmp_path / "in", content), tmp_path / "out")
    assert said in line
    assert str(tmp_path / "in") in line


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantized_tensor_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", {"x": torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8)})
    assert "x.pt: " in refusal(source, tmp_path / "out")


def test_what_is_no_vectors_may_stay_in_the_file_when_sites_are_chosen(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", {"x": ROWS, "scale": torch.tensor(2.0), "labels": IDS})
    imported(source, tmp_path / "out", "x")
    assert torch.equal(stored(tmp_path / "out", "x"), ROWS)


def _deep(levels: int) -> Any:
    content: Any = {"x": ROWS}
    for _ in range(levels):
        content = {"in": content}
    return content


def _laughs() -> Any:
    content: Any = [{}]
    for _ in range(7):
        content = [content] * 10
    return content


def _itself() -> Any:
    content: dict[str, Any] = {"x": ROWS}
    content["self"] = content
    return content


@pytest.mark.parametrize("content", [_deep(20), _deep(2000), _laughs(), _itself()], ids=["20", "2000", "many", "self"])
def test_containers_of_any_depth_and_number_end_in_one_line(content: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", _pickled(content))
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/.format_version", "1")
    source = written(tmp_path / "in", "x.pt", lambda path: path.write_bytes(buffer.getvalue()))
    assert "x.pt: " in refusal(source, tmp_path / "out")


def _pickled(content: Any) -> bytes:
    """As `torch.save` writes containers, with a number in the place of a tensor; the depth may be any."""
    import sys

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        return pickle.dumps(_without_tensors(content, {}), protocol=2)
    finally:
        sys.setrecursionlimit(limit)


def _without_tensors(content: Any, seen: dict[int, Any]) -> Any:
    if id(content) in seen:
        return seen[id(content)]
    if isinstance(content, dict):
        seen[id(content)] = made = {}
        made.update({key: _without_tensors(value, seen) for key, value in content.items()})
        return made
    if isinstance(content, list):
        seen[id(content)] = listed = []
        listed.extend(_without_tensors(value, seen) for value in content)
        return listed
    return 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["module", "script", "pickle"])
def test_programs_and_objects_are_refused_as_such(kind: str, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        if kind == "script":
            torch.jit.save(torch.jit.script(torch.nn.Linear(3, 3)), path)
        elif kind == "module":
            torch.save(torch.nn.Linear(3, 3), path)
        else:
            path.write_bytes(pickle.dumps(X))

    line = refusal(written(tmp_path / "in", "x.pt", write), tmp_path / "out")
    expected = {"module": "(torch.nn.modules.linear.Linear)", "script": "holds a program (TorchScript)"}
    assert expected.get(kind, "not a whole file of torch.save") in line
    assert "weights_only" not in line


def test_an_archive_that_was_compressed_or_cut_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "in", {"x": random_rows(3000)})
    whole = (source / "x.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive, zipfile.ZipFile(source / "x.pt", "w", 8) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert "x.pt: was compressed after torch.save" in refusal(source, tmp_path / "out")
    for size in (0, 3, 500, len(whole) // 2, len(whole) - 1):
        (source / "x.pt").write_bytes(whole[:size])
        assert "x.pt: not a whole file" in refusal(source, tmp_path / "out")
    torch.save(ROWS, source / "x.pt", _use_new_zipfile_serialization=False)
    assert "save it by torch.save" in refusal(source, tmp_path / "out")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_damage_to_a_file_gives_anything_but_one_line_or_its_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("damage")
    kind = data.draw(st.sampled_from(["pt", "npy", "npz", "safetensors"]))
    buffer = io.BytesIO()
    {
        "pt": lambda: torch.save({"x": ROWS}, buffer),
        "npy": lambda: np.save(buffer, X),
        "npz": lambda: np.savez_compressed(buffer, x=X),
        "safetensors": lambda: None,
    }[kind]()
    source = written(place / "in", f"x.{kind}", lambda path: path.write_bytes(buffer.getvalue()))
    if kind == "safetensors":
        save_file({"x": ROWS}, source / "x.safetensors")
    damaged = bytearray((source / f"x.{kind}").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (source / f"x.{kind}").write_bytes(damaged)
    try:
        manifest = imported(source, place / "out")
    except Exception:
        assert f"x.{kind}" in refusal(source, place / "out") or "cannot name a site" in refusal(source, place / "out")
    else:
        assert manifest.rows <= 30 * 4


# Arrays of numpy


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_arrays_of_an_npz_are_aligned_sites_and_columns(save: Any, order: Any, dtype: str, tmp_path: Path) -> None:
    p, q = np.asarray(X.astype(dtype), order=order), np.asarray(2 * X.astype(dtype), order=order)
    source = tmp_path / "in"
    for name, part in (("0.npz", slice(0, 10)), ("1.npz", slice(10, 30))):
        content = {"p": p[part], "q": q[part], "token_ids": IDS.numpy()[part], "texts": np.array(["a"] * 3)}
        written(source, name, lambda path, content=content: save(path, **content))
    imported(source, tmp_path / "out", dtype="float32")
    assert np.array_equal(stored(tmp_path / "out", "p"), p.astype(np.float32))
    assert np.array_equal(stored(tmp_path / "out", "q"), q.astype(np.float32))
    assert stored(tmp_path / "out", "token_id").tolist() == list(range(30))


def test_arrays_without_a_name_are_a_list(tmp_path: Path) -> None:
    source = written(tmp_path / "in", "x.npz", lambda path: np.savez(path, X, X))
    assert "--lists rows or --lists sites" in refusal(source, tmp_path / "out")
    assert imported(source, tmp_path / "out", lists="rows").rows == 60
    one = written(tmp_path / "one", "x.npz", lambda path: np.savez(path, X))
    assert list(imported(one, tmp_path / "of one").sites) == ["arr_0"]


def _npz(path: Path, header: str, data: bytes) -> None:
    """An archive whose one array claims what `header` says."""
    line = header.encode() + b" " * 20 + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + data)


CLAIM = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s, 16), }"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: _npz(path, CLAIM % 10**12, bytes(640)), "its header promises 64,000,000,000,"),
        (lambda path: _npz(path, CLAIM % -1, bytes(640)), "shape is [-1, 16]"),
        (
            lambda path: _npz(path, "{'descr': '|O', 'fortran_order': False, 'shape': (3, 16), }", b"x"),
            "Python objects",
        ),
        (lambda path: _npz(path, "__import__('os')", b"x"), "not an .npy file of numbers"),
        (lambda path: _npz(path, "(" * 5000, b"x"), "not an .npy file of numbers"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut"), "not a whole .npz file"),
        (lambda path: np.savez(path, x=X[:, 0]), "shape [30], expected 2 dimensions"),
        (lambda path: np.savez(path, x=X, y=X[:3]), "y has 3 rows, but x has 30"),
        (lambda path: np.savez(path, names=np.array(["a", "b"])), "holds no tensor (names is an array of <U1)"),
        (lambda path: np.savez(path), "holds no tensor"),
    ],
)
def test_what_an_npz_claims_is_compared_with_what_it_holds(write: Any, said: str, tmp_path: Path) -> None:
    line = refusal(written(tmp_path / "in", "x.npz", write), tmp_path / "out")
    assert said in line
    assert "x.npz" in line


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([(1.0, 2)], dtype=[("a", "f4"), ("b", "i4")]), "a structured array (fields a, b)"),
        (np.array([[None, 1]]), "Python objects, which is never loaded"),
        (np.array([["a", "b"]]), "an array of <U1"),
        (X.astype(np.complex64), "dtype complex64"),
        (X.astype(np.longdouble), "which torch does not know; save it as float16 or float32"),
        (np.float32(3), "shape [], expected 2 dimensions"),
        (X[:, :0], "shape [30, 0], expected 2"),
        (X.reshape(2, 3, 5, 4), "shape [2, 3, 5, 4], expected 2"),
    ],
)
def test_arrays_that_are_no_rows_are_refused_and_pickle_is_never_advised(array: Any, said: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in", "x.npy", lambda path: np.save(path, array, allow_pickle=True))
    line = refusal(source, tmp_path / "out")
    assert said in line
    assert "pickle" not in line


def test_a_header_that_promises_more_than_the_file_holds_is_refused_with_both_numbers(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"x.npy": ROWS})
    (source / "x.npy").write_bytes((source / "x.npy").read_bytes()[:-8])
    assert "600 bytes, its header promises 608; copy it again" in refusal(source, tmp_path / "out")


def test_an_archive_of_nothing_that_claims_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    rows = 2**28 // 64 + 1
    source = written(tmp_path / "in", "x.npz", lambda path: _npz(path, CLAIM % rows, bytes(rows * 64)))
    assert "more than 200 to 1" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("shape", [(10**15, 0, 4), (10**15, 0)])
def test_shapes_that_need_no_bytes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"1.npy": ROWS.reshape(3, 10, 4)})
    header = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
    (source / "0.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert "0.npy: x has shape" in refusal(source, tmp_path / "out", "x")


# Raw numbers


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", ">float32", ">float16"])
@pytest.mark.parametrize("name", ["x.npy", "x.bin", "x.dat", "x.memmap", "X.RAW"])
def test_raw_numbers_are_read_as_the_user_says(dtype: str, name: str, tmp_path: Path) -> None:
    rows = ROWS.to(getattr(torch, dtype.removeprefix(">")))
    data = rows.view(torch.uint8).numpy()
    if dtype.startswith(">"):
        data = rows.numpy().astype(rows.numpy().dtype.newbyteorder(">"))
    source = written(tmp_path / "in", name, lambda path: path.write_bytes(data.tobytes()))
    imported(source, tmp_path / "out", "x", raw=RawFormat.of(dtype, 4))
    expected = rows.float() if dtype == "float64" else rows
    assert torch.equal(stored(tmp_path / "out", "x"), expected)


def test_raw_numbers_without_their_format_are_refused_with_the_options_to_add(tmp_path: Path) -> None:
    for name in ("x.npy", "x.bin", "x.dat"):
        source = written(tmp_path / name, name, lambda path: path.write_bytes(X.tobytes()))
        line = refusal(source, tmp_path / "out")
        assert f"{name}: " in line
        assert "480 bytes" in line
        assert "--raw-dtype float32 --raw-width WIDTH" in line
        assert "pickle" not in line
    line = refusal(source, tmp_path / "out", raw=RawFormat.of("float32", 7))
    assert "x.dat: 480 bytes are no whole number of rows of 7 x float32 (28 bytes each)" in line
    for options, said in [
        (("float32", None), "--raw-width: is missing"),
        ((None, 4), "--raw-dtype: is missing"),
        (("int8", 4), "'int8' is none of"),
        (("float32", 0), "0, but a row has at least 1"),
    ]:
        with pytest.raises(ValueError, match=said):
            RawFormat.of(*options)
    assert RawFormat.of(None, None) is None


def test_true_npy_and_torch_files_are_not_read_as_raw_numbers(tmp_path: Path) -> None:
    raw = RawFormat.of("float32", 4)
    source = folder_of(tmp_path / "in", {"x.npy": ROWS})
    imported(source, tmp_path / "out", "x", raw=raw)
    assert torch.equal(stored(tmp_path / "out", "x"), ROWS)
    model = saved(tmp_path / "model", ROWS, "pytorch_model.bin")
    assert "rename it to .pt" in refusal(model, tmp_path / "no", raw=raw)


# Documents x tokens x width


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "safetensors"])
@pytest.mark.parametrize("block_rows", [1, 3, 7, 1000])
def test_documents_of_tokens_become_rows_with_documents_and_positions(
    kind: str, block_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random_rows(2 * 3 * 5 + 4 * 2).split([30, 8])
    files = [x[0].reshape(6, 5, 4), x[1].reshape(4, 2, 4)]
    for number, part in enumerate(files):
        content = {"x": part.contiguous(), "token_ids": torch.arange(part[..., 0].numel()).reshape(part.shape[:2])}
        save: Any = {"npz": lambda c, path: np.savez(path, **c), "pt": torch.save, "safetensors": save_file}.get(kind)
        place = tmp_path / "in"
        place.mkdir(exist_ok=True)
        if save:
            save(content, place / f"{number}.{kind}")
        else:
            np.save(place / f"{number}.npy", np.asfortranarray(part.numpy()))
    monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", 16 * block_rows)
    imported(place, tmp_path / "out", "x")
    assert torch.equal(stored(tmp_path / "out", "x"), torch.cat(x))
    assert stored(tmp_path / "out", "document").tolist() == [*np.repeat(range(6), 5), *np.repeat(range(6, 10), 2)]
    assert stored(tmp_path / "out", "position").tolist() == [*range(5)] * 6 + [*range(2)] * 4
    if save:
        assert stored(tmp_path / "out", "token_id").tolist() == [*range(30), *range(8)]


@pytest.mark.parametrize("block_rows", [1, 4, 1000])
@pytest.mark.parametrize("by", ["lengths", "mask", "attention_mask"])
def test_rows_beyond_a_document_are_left_out(
    by: str, block_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, lengths = random_rows(30).reshape(6, 5, 4), torch.tensor([5, 0, 1, 3, 5, 2])
    kept = torch.arange(5)[None] < lengths[:, None]
    column = lengths if by == "lengths" else kept if by == "mask" else kept.long().flip(1)
    if by == "attention_mask":  # padded on the left
        kept = kept.flip(1)
    content = {"x": x, by: column, "token_ids": torch.arange(30).reshape(6, 5)}
    monkeypatch.setattr(import_rows_module, "BLOCK_BYTES", 16 * block_rows)
    assert imported(saved(tmp_path / "in", content), tmp_path / "out").rows == 16
    assert torch.equal(stored(tmp_path / "out", "x"), x[kept])
    assert stored(tmp_path / "out", "token_id").tolist() == torch.arange(30).reshape(6, 5)[kept].tolist()
    assert stored(tmp_path / "out", "document").tolist() == np.repeat(range(6), lengths).tolist()
    assert stored(tmp_path / "out", "position").tolist() == [p for n in lengths.tolist() for p in range(n)]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"lengths": torch.tensor([5, 6])}, "document 1: a length of 6, but 5 rows are stored"),
        ({"lengths": torch.tensor([5, -1])}, "document 1: a length of -1"),
        ({"lengths": torch.tensor([5])}, "lengths of 1 documents, but the sites have 2"),
        ({"lengths": torch.tensor([5, 5]), "mask": torch.ones(2, 5).long()}, "leave one out"),
        ({"token_ids": torch.arange(10)}, "token_id has shape [10], expected 2 dimensions (documents x tokens"),
        ({"token_ids": torch.arange(10).reshape(5, 2)}, "differ in documents or tokens"),
        ({"y": random_rows(10)}, "y has shape [10, 4], expected 3 dimensions"),
        ({"mask": torch.full((2, 5), 3)}, "document 0, token 0: a mask of 3, expected 0 or 1"),
    ],
)
def test_what_does_not_fit_documents_is_refused(extra: dict[str, Any], said: str, tmp_path: Path) -> None:
    line = refusal(saved(tmp_path / "in", {"x": random_rows(10).reshape(2, 5, 4), **extra}), tmp_path / "out")
    assert said in line


def test_a_value_that_is_not_finite_is_named_by_document_and_token(tmp_path: Path) -> None:
    x = random_rows(30).reshape(6, 5, 4)
    x[3, 2, 1] = float("nan")
    mask = torch.ones(6, 5).long()
    mask[0, 4] = 0
    assert "document 3, token 2: NaN" in refusal(saved(tmp_path / "in", {"x": x, "mask": mask}), tmp_path / "out")
    assert "each first index" not in refusal(saved(tmp_path / "in", {"x": x}), tmp_path / "out", document_rows=3)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_rows_of_documents_are_cut_at_any_place(documents: int, tokens: int, data: st.DataObject) -> None:
    x = torch.arange(documents * tokens * 2).reshape(documents, tokens, 2)
    start = data.draw(st.integers(0, documents * tokens - 1))
    stop = data.draw(st.integers(start + 1, documents * tokens))
    one = StoredTensor(TensorFacts(tuple(x.shape), x.dtype), lambda box: x[box])
    assert torch.equal(one.read(start, stop, 2), x.reshape(-1, 2)[start:stop])


# Names


def test_nested_names_of_safetensors_name_sites(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"acts/layer3": ROWS, "acts/token_ids": IDS}, tmp_path / "in" / "x.safetensors")
    imported(tmp_path / "in", tmp_path / "out")
    assert torch.equal(stored(tmp_path / "out", "acts.layer3"), ROWS)
    assert stored(tmp_path / "out", "token_id").tolist() == IDS.tolist()
    save_file({"a/b": ROWS, "a.b": ROWS.clone()}, tmp_path / "in" / "x.safetensors")
    assert "'a.b' stands twice" in refusal(tmp_path / "in", tmp_path / "no")


def test_dtypes_that_differ_between_files_meet_in_the_widest(tmp_path: Path) -> None:
    for number, dtypes in enumerate(itertools.permutations((torch.float16, torch.float32, torch.bfloat16))):
        parts = [ROWS[i * 10 : i * 10 + 10].to(dtype) for i, dtype in enumerate(dtypes)]
        source = folder_of(tmp_path / str(number), {f"{i}.pt": part.clone() for i, part in enumerate(parts)})
        assert imported(source, tmp_path / f"out{number}", "x").sites["x"].dtype == "float32"
        assert torch.equal(stored(tmp_path / f"out{number}", "x"), torch.cat([part.float() for part in parts]))
