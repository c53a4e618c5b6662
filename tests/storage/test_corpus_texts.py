"""Documents as people have them: packed, damaged, in odd encodings; each is read as it is meant, or named in a line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexray.storage.errors import UserError
from lexray.storage.harvest import corpus_tables, text
from lexray.storage.harvest.corpus_report import CorpusReport, report_lines
from lexray.storage.harvest.harvest_file import TextChoice
from lexray.storage.harvest.text import TextMeter, read_documents
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

SETTINGS = StorageSettings()
DOCUMENTS = [f"rows of vectors {i * 2654435761 % 10**9} the fox é 中" for i in range(3000)]
LINES = "".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS).encode()


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def lz4(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "lz4") as file:
        file.write(data)
    return out.getvalue().to_pybytes()


def zipped(*contents: bytes, names: tuple[str, ...] = ("b.jsonl", "a/c.jsonl", "d.jsonl")) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("a")
        archive.writestr("__MACOSX/._b.jsonl", b"\0\5\x16\7")
        for name, content in zip(names, contents, strict=False):
            archive.writestr(name, content)
    return buffer.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zst": zstd,
    "lz4": lz4,
    "zip": zipped,
}
MANY = {suffix: pack for suffix, pack in PACK.items() if suffix not in ("zip", "lzma")}
"""Whose files may be joined."""


def read(**choice: Any) -> list[str]:
    report = CorpusReport()
    documents = list(read_documents(TextChoice(**choice), SETTINGS, report))
    read.report = report  # type: ignore[attr-defined]
    return documents


def refused(**choice: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(**choice)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_are_unpacked_whatever_they_are_called(suffix: str, tmp_path: Path) -> None:
    for name in (f"x.jsonl.{suffix}", "x.jsonl", f"X.JSONL.{suffix.upper()}"):
        if suffix in ("lzma", "zip") and name == "x.jsonl":
            continue  # it has no first bytes to be known by; other files are zip archives too
        (tmp_path / name).write_bytes(PACK[suffix](LINES))
        assert read(jsonl=f"{tmp_path}/{name}") == DOCUMENTS
    (tmp_path / f"one.txt.{suffix}").write_bytes(PACK[suffix]("é".encode()))
    assert read(files=f"{tmp_path}/one.txt.*") == ["é"]
    (tmp_path / f"plain.jsonl.{suffix}").write_bytes(LINES)  # a server has unpacked it on the way
    assert read(jsonl=f"{tmp_path}/plain.jsonl.{suffix}") == DOCUMENTS


@pytest.mark.parametrize("suffix", MANY)
def test_joined_files_are_read_to_the_end(suffix: str, tmp_path: Path) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 3  # within a line
    (tmp_path / f"x.{suffix}").write_bytes(PACK[suffix](LINES[:half]) + PACK[suffix](LINES[half:]))
    assert read(jsonl=f"{tmp_path}/x.{suffix}") == DOCUMENTS


def test_all_files_of_a_zip_are_read(tmp_path: Path) -> None:
    lines = LINES.splitlines(keepends=True)
    (tmp_path / "x.zip").write_bytes(zipped(*(b"".join(lines[i::3]) for i in range(3))))
    assert read(jsonl=f"{tmp_path}/x.zip") == [document for i in range(3) for document in DOCUMENTS[i::3]]
    (tmp_path / "texts.zip").write_bytes(zipped(b"one", b"two", b"\xff"))
    assert refused(files=f"{tmp_path}/texts.zip") == (
        f"text.files: {tmp_path}/texts.zip/d.jsonl is not UTF-8 text (byte 0)"
    )
    (tmp_path / "texts.zip").write_bytes(zipped(b"one", b"two"))
    assert read(files=f"{tmp_path}/texts.zip") == ["one", "two"]


@pytest.mark.parametrize("suffix", PACK)
def test_a_file_that_was_cut_short_is_named_with_its_place(suffix: str, tmp_path: Path) -> None:
    packed = PACK[suffix](LINES)
    for kept in (3, 20, len(packed) * 2 // 3, len(packed) - 1):
        (tmp_path / f"x.{suffix}").write_bytes(packed[:kept])
        said = refused(jsonl=f"{tmp_path}/x.{suffix}")
        assert said.startswith(f"text.jsonl: {tmp_path}/x.{suffix} is "), kept
        assert "cut short or damaged" in said or "is named as" in said
        if kept > 20:
            assert f"of {kept:,} (" in said
            assert "the first " in said or suffix in ("zip", "bz2", "zst")  # in large blocks


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zip"])
@given(data=st.data())
def test_damage_is_told_in_a_line(suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    packed = bytearray(PACK[suffix](LINES[:3000].rpartition(b"\n")[0]))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    place = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    place.write_bytes(packed)
    said = f"text.jsonl: {place}"
    try:
        read(jsonl=str(place))
    except UserError as error:
        said = str(error)
    assert said.startswith(f"text.jsonl: {place}")
    assert "\n" not in said


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("content", [b"", b"\0" * 256, b"\xff\xd8\xff\xe0JFIF\0"], ids=["empty", "zeros", "jpeg"])
def test_a_file_that_is_not_what_its_name_says_is_told_with_its_first_bytes(
    suffix: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(content)
    begins = content[:6].hex(" ") or "nothing: it is empty"
    assert f"x.{suffix} is named as" in (said := refused(jsonl=f"{tmp_path}/x.{suffix}"))
    assert said.endswith(f"but begins with {begins}; copy or pack it again")


def test_archives_and_windows_that_are_not_read_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"))
    (tmp_path / "x.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(30))
    for name, kind in (("x.tar", "tar"), ("x.7z", "7z")):
        assert refused(jsonl=f"{tmp_path}/{name}").endswith(
            f"/{name} is a {kind} archive; unpack it and give the files in it"
        )
    for suffix in ("gz", "bz2"):
        with tarfile.open(tmp_path / f"x.tar.{suffix}", f"w:{suffix}") as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("a.jsonl"))
        assert f"x.tar.{suffix} is a tar file packed as " in refused(files=f"{tmp_path}/x.tar.{suffix}")
    (tmp_path / "x.gz").write_bytes(gzip.compress(gzip.compress(LINES)))
    assert refused(files=f"{tmp_path}/x.gz").endswith(
        "x.gz is a gzip file packed as gzip; unpack it and give what is in it"
    )
    (tmp_path / "x.docx").write_bytes(zipped(b"<xml/>"))
    assert "x.docx is a zip archive, as .docx and .npz files are" in refused(files=f"{tmp_path}/*.docx")
    window_of_2_gib = b"\x28\xb5\x2f\xfd\x00\xa8" + (8 << 3 | 1).to_bytes(3, "little") + b"01234567"
    (tmp_path / "x.zst").write_bytes(window_of_2_gib)
    assert "a window above 128 MiB" in refused(jsonl=f"{tmp_path}/x.zst")


def test_packed_files_behind_s3(s3_server: str, tmp_path: Path) -> None:
    block = StorageSettings(**{"endpoint_url": s3_server})
    store = Store.at("s3://corpus-packed", block)
    store.filesystem.mkdir("corpus-packed")
    for suffix in ("gz", "zst", "zip"):
        pack = PACK[suffix]
        store.filesystem.pipe_file(f"corpus-packed/{suffix}/x [1].{suffix}", pack(LINES))
        choice = TextChoice(jsonl=f"s3://corpus-packed/{suffix}/x [1].{suffix}")
        assert list(read_documents(choice, block)) == DOCUMENTS, suffix
        store.filesystem.pipe_file(f"corpus-packed/{suffix}/x [1].{suffix}", pack(LINES)[:-30])
        with pytest.raises(UserError, match="is cut short or damaged"):
            list(read_documents(choice, block))


@given(st.text(st.characters(categories=["L", "Cs"], include_characters="a\ud83d\ude00"), max_size=12))
def test_lone_surrogates_are_replaced_and_counted_whatever_holds_them(document: str) -> None:
    units = document.encode("utf-16-le", "surrogatepass")
    expected = units.decode("utf-16-le", "replace")
    report = CorpusReport()
    place = corpus_tables.TablePlace("x", "line", 1)
    assert text._as_document(place, "text", document, report) == expected
    lost = expected.count("\ufffd") - document.count("\ufffd")
    assert report.counts.get("lone_surrogates", 0) == lost
    assert list(TextMeter().pass_on([expected])) == [expected]


def test_lone_surrogates_in_every_kind_of_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = "cut \ud83d here".encode("utf-8", "surrogatepass")
    (tmp_path / "x.txt").write_bytes(encoded)
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "cut \\ud83d here"}\n{"text": "' + encoded + b'"}\n')
    table = pa.table({"text": pa.array([encoded]).view(pa.string()), "bytes": pa.array([encoded])})
    pq.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "half_of_an_emoji.py").write_text('docs = {"a": "cut \\ud83d here"}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    for count, choice in (
        (1, {"files": f"{tmp_path}/x.txt"}),
        (2, {"jsonl": f"{tmp_path}/x.jsonl"}),
        (1, {"parquet": f"{tmp_path}/x.parquet"}),
        (1, {"parquet": f"{tmp_path}/x.parquet", "column": "bytes"}),
        (1, {"python": "half_of_an_emoji:docs"}),
    ):
        assert read(**choice) == ["cut \ufffd here"] * count
        (line,) = report_lines(read.report.as_dict())  # type: ignore[attr-defined]
        assert line.startswith(f"{count} halves of characters (lone surrogates) replaced by U+FFFD (the first: text.")


def test_arrow_files_are_read_like_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(DOCUMENTS), "kind": pa.array(["a"] * len(DOCUMENTS)).dictionary_encode()})
    with pa.OSFile(f"{tmp_path}/file.arrow", "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    with pa.OSFile(f"{tmp_path}/stream.arrow", "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    pq.write_table(table.cast(pa.schema({"text": pa.large_string(), "kind": pa.string()})), tmp_path / "large.parquet")
    pq.write_table(table, tmp_path / "file.parquet")
    for name in ("file.arrow", "stream.arrow", "large.parquet", "file.parquet"):
        assert read(parquet=f"{tmp_path}/{name}") == DOCUMENTS
        assert read(parquet=f"{tmp_path}/{name}", column="kind") == ["a"] * len(DOCUMENTS)
        assert refused(parquet=f"{tmp_path}/{name}", column="txt").endswith("no column 'txt'; did you mean 'text'?")
        whole = (tmp_path / name).read_bytes()
        for kept in (0, 7, len(whole) // 2):
            (tmp_path / "cut").write_bytes(whole[:kept])
            assert refused(parquet=f"{tmp_path}/cut").startswith(f"text.parquet: {tmp_path}/cut is not a parquet file ")


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("content", "documents", "kinds"),
    [
        (BOM + b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n', ["a", "b"], {}),
        (b'{"text": "a"}\n' + BOM + b'{"text": "b"}', ["a", "b"], {}),
        (b' \n\n{"text": "a"}\n{"text": null}\n{"id": 1}\n{"text": ""}\n', ["a", "", "", ""], {"missing_texts": 2}),
        (b'{"text": "a\\u0000b\\n"}\n', ["a\0b\n"], {}),
        (b'{"text": "\\ud83d\\ude00"}\n', ["\U0001f600"], {}),
        (b"", [], {}),
    ],
)
def test_lines_as_people_write_them(
    content: bytes, documents: list[str], kinds: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    assert read(jsonl=f"{tmp_path}/x.jsonl") == documents
    assert read.report.counts == kinds  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'\n{"txt": "a"}\n', "has no key 'text'; did you mean 'txt'?"),
        (b'{"text": "a"}\n{"text": ["a"]}\n', "line 2: 'text' is a list, expected a string"),
        (b'{"text": {"text": "a"}}\n', "line 1: 'text' is a dict, expected a string"),
        (b'{"text": 1}\n', "line 1: 'text' is a int, expected a string"),
        (b'\n{"text": "caf\xe9"}\n', "line 2 is not UTF-8 text (byte 13 of it)"),
        (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", "line 2 is nested too deeply"),
        (b'{"text": "a"}\n\0\0\0\0\n', "line 2 is not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b'{"text": "a"', "line 1 is not JSON (Expecting ',' delimiter: line 1 column 13 (char 12))"),
        ('{"text": "a"}\n'.encode("utf-16"), "is UTF-16 text; convert it to UTF-8"),
        (b'{"text": "' + b"a" * 1000 + b'"}\n', "line 1 is longer than 1,000 bytes; give one JSON object a line"),
    ],
)
def test_lines_that_cannot_be_documents(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_tables, "MOST_LINE_BYTES", 1000 if b"aaaa" in content else 1 << 30)
    (tmp_path / "x.jsonl").write_bytes(content)
    assert refused(jsonl=f"{tmp_path}/x.jsonl") == f"text.jsonl: {tmp_path}/x.jsonl {said}"


def test_a_bomb_is_refused_without_being_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_tables, "MOST_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(text, "MOST_DOCUMENT_BYTES", 1 << 20)
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"a" * (64 << 20)))
    assert "line 1 is longer than 1,048,576 bytes" in refused(jsonl=f"{tmp_path}/x.gz")
    assert "is a document of more than 1,048,576 bytes" in refused(files=f"{tmp_path}/x.gz")


def test_text_files_as_people_write_them(tmp_path: Path) -> None:
    for name, content in {"a": BOM + "é".encode(), "b": b"", "c": b"a\0b\r\n"}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    assert read(files=f"{tmp_path}/*.txt") == ["é", "", "a\0b\r\n"]
    assert read.report.counts == {"byte_order_marks": 1}  # type: ignore[attr-defined]
    (tmp_path / "d.txt").write_bytes("é".encode("latin-1"))
    assert refused(files=f"{tmp_path}/*.txt") == f"text.files: {tmp_path}/d.txt is not UTF-8 text (byte 0)"
    (tmp_path / "d.txt").write_bytes("é".encode("utf-16"))
    assert refused(files=f"{tmp_path}/*.txt") == f"text.files: {tmp_path}/d.txt is UTF-16 text; convert it to UTF-8"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("input()", "EOFError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("docs = [", "SyntaxError: "),
        ("import no_such_module_at_all", "No module named 'no_such_module_at_all'"),
    ],
)
def test_a_module_that_raises_is_told(source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_texts.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert refused(python="raising_texts:docs").startswith(f"text.python: cannot import 'raising_texts' ({said}")
