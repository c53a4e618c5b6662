"""Files are paired and ordered by their names, links lead where they lead, and nothing is concatenated unsaid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from import_cases import SAVE, folder_of, imported, random_rows, refusal, stored
from safetensors.torch import save_file

from lexray.storage.errors import UserError
from lexray.storage.imports.file_names import check_one_series, check_same_names, in_order, name_key
from lexray.storage.imports.source import SourceFolder, open_source
from lexray.storage.imports.tensors import TensorFolder
from lexray.storage.store import Store

ROWS = random_rows(60)
IDS = torch.arange(60)
FOLDER = SourceFolder(Store.at("/nowhere/in"))


def parts(place: Path, *names: str, rows: int = 10) -> Path:
    """Files of the next `rows` rows each, in the order given."""
    return folder_of(place, {name: ROWS[i * rows : i * rows + rows].clone() for i, name in enumerate(names)})


def series(*names: str) -> None:
    check_one_series(in_order([FOLDER.file(name) for name in names]), FOLDER, "add --files rows or --files sites")


# Order


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True), st.integers(1, 8), st.randoms())
def test_numbers_in_names_compare_as_numbers(numbers: list[int], digits: int, random: Any) -> None:
    shuffled = random.sample(numbers, len(numbers))
    files = in_order([FOLDER.file(f"part-{number:0{digits}d}.npy") for number in shuffled])
    assert [file.name for file in files] == [f"part-{number:0{digits}d}.npy" for number in sorted(numbers)]


def test_files_are_imported_by_their_numbers(tmp_path: Path) -> None:
    source = parts(tmp_path / "in", "1.npy", "2.npy", "03.npy", "10.npy", "100.npy", "1000.npy")
    imported(source, tmp_path / "out", "x")
    assert torch.equal(stored(tmp_path / "out", "x"), ROWS)


@pytest.mark.parametrize("names", [("7.npy", "007.npy"), ("7.npy", "7.pt"), ("a-7.npy", "a-07.npy", "a-8.npy")])
def test_two_files_of_one_number_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    line = refusal(parts(tmp_path / "in", *names), tmp_path / "out", files="rows")
    assert "has the name or number of" in line
    assert "rename or remove one" in line


# Series or sites


@pytest.mark.parametrize(
    "names",
    [
        ("0.npy", "1.npy", "10.npy"),
        ("shard-00000-of-00002.npy", "shard-00001-of-00002.npy"),
        ("layer8_part0.npy", "layer8_part1.npy"),
        ("blocks.3.hook_resid_post.chunk-1.npy", "blocks.3.hook_resid_post.chunk-2.npy"),
        ("gpt2_pile_0.npy", "gpt2_pile_1.npy"),
        ("2024-01-01_0.npy", "2024-01-02_7.npy"),
    ],
)
def test_names_that_count_runs_of_rows_are_one_series(names: tuple[str, ...]) -> None:
    series(*names)


@pytest.mark.parametrize(
    "names",
    [
        ("layer3.npy", "layer4.npy"),
        ("L3.npy", "L4.npy"),
        ("blocks.3.hook_resid_post.npy", "blocks.4.hook_resid_post.npy"),
        ("model.layers.3.mlp.npy", "model.layers.4.mlp.npy"),
        ("resid_post_3.npy", "resid_post_4.npy"),
        ("hidden_states_0.npy", "hidden_states_1.npy"),
        ("layer3_part0.npy", "layer3_part1.npy", "layer4_part0.npy", "layer4_part1.npy"),
        ("h.0.npy", "h.1.npy"),
        ("Layer 3.npy", "Layer 4.npy"),
        ("a.npy", "b.npy"),
        ("x.npy", "x1.npy"),
        ("early.npy", "late.npy"),
        ("train.npy", "test.npy"),
    ],
)
def test_names_that_may_be_sites_are_refused_with_the_options_that_decide(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="add --files rows or --files sites") as caught:
        series(*names)
    assert names[0] in str(caught.value)
    assert str(FOLDER) in str(caught.value)


def test_layers_side_by_side_are_what_the_user_says(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"layer3.npy": ROWS, "layer4.npy": 2 * ROWS})
    assert "layer3.npy and layer4.npy" in refusal(source, tmp_path / "no")
    imported(source, tmp_path / "sites", files="sites")
    assert torch.equal(stored(tmp_path / "sites", "layer3"), ROWS)
    assert torch.equal(stored(tmp_path / "sites", "layer4"), 2 * ROWS)
    imported(source, tmp_path / "rows", "x", files="rows")
    assert torch.equal(stored(tmp_path / "rows", "x"), torch.cat([ROWS, 2 * ROWS]))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_named_tensors_of_files_side_by_side_are_no_series_unsaid(kind: str, tmp_path: Path) -> None:
    save: Any = torch.save if kind == "pt" else save_file
    (tmp_path / "in").mkdir()
    for layer in (3, 4):
        save({"x": layer * ROWS}, tmp_path / "in" / f"layer{layer}.{kind}")
    assert "--files sites" in refusal(tmp_path / "in", tmp_path / "no")
    assert list(imported(tmp_path / "in", tmp_path / "out", files="sites").sites) == ["layer3.x", "layer4.x"]


def test_a_column_in_a_file_of_its_own_belongs_to_the_site_beside_it(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"acts.npy": ROWS, "token_ids.npy": torch.arange(60), "document.npy": IDS // 9})
    assert list(imported(source, tmp_path / "out").sites) == ["acts"]
    assert stored(tmp_path / "out", "token_id").tolist() == list(range(60))
    np.save(source / "more.npy", ROWS.numpy())
    assert "add --files sites" in refusal(source, tmp_path / "no")
    assert set(imported(source, tmp_path / "two", files="sites").sites) == {"acts", "more"}


def test_a_sub_folder_of_layers_is_no_series_unsaid(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"acts/layer3.npy": ROWS, "acts/layer4.npy": ROWS})
    assert "add --files rows" in refusal(source, tmp_path / "no")
    assert "own folder" in refusal(source, tmp_path / "no", files="sites")
    assert imported(source, tmp_path / "out", files="rows").rows == 120
    save_file({"p": ROWS}, source / "acts" / "0.safetensors")
    save_file({"q": ROWS}, source / "acts" / "1.safetensors")
    for name in ("layer3.npy", "layer4.npy"):
        (source / "acts" / name).unlink()
    assert "1.safetensors: holds q, but 0.safetensors holds p" in refusal(source, tmp_path / "no")


@pytest.mark.parametrize("names", [["x-00000-of-00003.npy"], ["x-00000-of-00003.npy", "x-00001-of-00003.npy"]])
def test_a_name_that_promises_more_files_than_there_are_is_refused(names: list[str], tmp_path: Path) -> None:
    line = refusal(parts(tmp_path / "in", *names), tmp_path / "out")
    assert f"its name says 3 files, but {len(names)} are there" in line
    assert imported(tmp_path / "in", tmp_path / "out", files="rows").rows == 10 * len(names)


# Pairs


def test_sites_whose_files_have_other_names_are_refused_naming_the_first(tmp_path: Path) -> None:
    kept = {"a": (0, 1, 2, 4, 5), "b": (0, 2, 3, 4, 5)}
    files = {f"{site}/{i}.npy": ROWS[i * 10 : i * 10 + 10].clone() for site, some in kept.items() for i in some}
    line = refusal(folder_of(tmp_path / "in", files), tmp_path / "out")
    assert f"{tmp_path}/in/a/1.npy: b has no file of this name" in line


@given(
    st.sets(st.integers(0, 30), min_size=1),
    st.sets(st.integers(0, 30), min_size=1),
    st.integers(1, 4),
    st.sampled_from(["", "x", "p-", "late_"]),
)
def test_sites_pair_exactly_if_their_numbers_do(first: set[int], other: set[int], digits: int, text: str) -> None:
    left = in_order([FOLDER.folder("early").file(f"{text}{number}.npy") for number in first])
    right = in_order([FOLDER.folder("late").file(f"{text}{number:0{digits}d}.pt") for number in other])
    if first == other:
        check_same_names(left, right)
        return
    with pytest.raises(UserError) as caught:
        check_same_names(left, right)
    number = min(first ^ other)
    site, name = ("early", f"{text}{number}.npy") if number in first else ("late", f"{text}{number:0{digits}d}.pt")
    assert f"{site}/{name}: " in str(caught.value)


def test_names_may_hold_the_name_of_their_folder(tmp_path: Path) -> None:
    files = {f"{site}/{site}_{i}.npy": random_rows(10) for site in ("early", "late") for i in (2, 10)}
    assert imported(folder_of(tmp_path / "in", files), tmp_path / "out").rows == 20
    (tmp_path / "in" / "late" / "late_2.npy").rename(tmp_path / "in" / "late" / "late_3.npy")
    assert "early/early_2.npy: late has no file" in refusal(tmp_path / "in", tmp_path / "no")


def test_files_of_one_name_need_equal_rows(tmp_path: Path) -> None:
    sizes = {"early": (10, 20, 30), "late": (10, 30, 20)}
    files = {f"{site}/{i}.npy": random_rows(n) for site, some in sizes.items() for i, n in enumerate(some)}
    line = refusal(folder_of(tmp_path / "in", files), tmp_path / "out")
    assert "late/1.npy: late has 30 rows, but early has 20 in" in line
    assert "early/1.npy" in line


def test_columns_in_folders_pair_by_name_as_well(tmp_path: Path) -> None:
    files = {"x/0.npy": ROWS, "token_id/1.npy": IDS}
    assert "x/0.npy: token_id has no file of this name" in refusal(folder_of(tmp_path / "in", files), tmp_path / "out")


@given(st.text(alphabet="ab0123456789._- ", min_size=1, max_size=12))
def test_a_key_holds_texts_and_numbers_in_turn(stem: str) -> None:
    key = name_key(stem)
    assert all(isinstance(part, int if index % 2 else str) for index, part in enumerate(key))
    assert len(key) % 2 == 1


# Links


def snapshot(place: Path, files: dict[str, torch.Tensor], *, folders: bool) -> Path:
    """The files as the cache of a hub keeps them: links to blobs, or links to whole folders."""
    real = folder_of(place / "real", files)
    linked = place / "snapshots" / "0f3a"
    if folders:
        linked.mkdir(parents=True)
        for folder in real.iterdir():
            (linked / folder.name).symlink_to(os.path.relpath(folder, linked))
        return linked
    for number, name in enumerate(files):
        blob, link = place / "blobs" / f"{number:040x}", linked / name
        blob.parent.mkdir(exist_ok=True)
        (real / name).rename(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return linked


@pytest.mark.parametrize("kind", [*SAVE])
@pytest.mark.parametrize("folders", [False, True])
def test_linked_files_and_folders_are_read(kind: str, folders: bool, tmp_path: Path) -> None:
    files = {f"{site}/{i}.{kind}": random_rows(10, seed=i) for site in ("early", "late") for i in range(3)}
    linked = snapshot(tmp_path, files, folders=folders)
    imported(linked, tmp_path / "out")
    expected = torch.cat([random_rows(10, seed=i) for i in range(3)])
    assert torch.equal(stored(tmp_path / "out", "early"), expected)
    assert torch.equal(stored(tmp_path / "out", "late"), expected)


def test_the_source_may_be_a_link(tmp_path: Path) -> None:
    folder_of(tmp_path / "real", {"x.npy": ROWS})
    (tmp_path / "link").symlink_to("real")
    folder = open_source(str(tmp_path / "link"), str(tmp_path / "out"))
    assert [file.name for file in folder.files()] == ["x.npy"]
    with pytest.raises(UserError, match="lies in SOURCE"):
        open_source(str(tmp_path / "link"), str(tmp_path / "real" / "out"))


def _loop(source: Path) -> None:
    (source / "1.npy").symlink_to("2.npy")
    (source / "2.npy").symlink_to("1.npy")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda source: (source / "1.npy").symlink_to("../blobs/none"),
            "1.npy: is a link to ../blobs/none, which does",
        ),
        (lambda source: (source / "late").symlink_to("/nowhere/late"), "late: is a link to /nowhere/late, which does"),
        (_loop, "1.npy: is a link to 2.npy, which loops"),
        (lambda source: (source / "1.npy").symlink_to("/dev/zero"), "1.npy: is neither a file nor a folder"),
        (lambda source: os.mkfifo(source / "1.npy"), "1.npy: is neither a file nor a folder"),
    ],
)
def test_links_that_lead_nowhere_and_devices_are_refused_by_name(spoil: Any, said: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"0.npy": ROWS})
    spoil(source)
    assert said in refusal(source, tmp_path / "out")


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"x/0.npy": ROWS})
    (source / "x" / "again").symlink_to("..")
    assert "lies deeper than in a sub-folder" in refusal(source, tmp_path / "out")


# What else lies there


def test_hidden_files_and_folders_of_archives_are_passed_over(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", dict.fromkeys(("x/0.npy", "x/._0.npy", "__MACOSX/0.npy", ".git/0.npy"), ROWS))
    (source / "x" / "README.md").write_text("rows")
    manifest = imported(source, tmp_path / "out")
    assert (manifest.rows, list(manifest.sites)) == (60, ["x"])


@pytest.mark.parametrize("deep", ["late/part/0.npy", "late/a/b/c/0.npy", "early/more/1.npy"])
def test_files_that_lie_deeper_than_others_are_never_left_out_unsaid(deep: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"early/0.npy": ROWS, deep: ROWS})
    assert f"{deep}: lies deeper" in refusal(source, tmp_path / "out")


def test_a_folder_without_rows_says_what_it_holds(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "acts.h5").write_bytes(b"x")
    line = refusal(source, tmp_path / "out")
    assert "it holds acts.h5" in line
    assert "or save the rows as .npy" in line


def test_folders_that_are_no_sites_are_named(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"x/0.npy": ROWS})
    (source / "docs").mkdir()
    (source / "docs" / "README.md").write_text("rows")
    assert (
        "passed over 1 folders without tensor files (docs)" in TensorFolder(SourceFolder(Store.at(str(source)))).notes
    )


def test_names_that_are_not_utf8_do_not_stop_an_import(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {os.fsdecode(b"\xfe-0.npy"): ROWS})
    assert imported(source, tmp_path / "out", "x").rows == len(ROWS)
