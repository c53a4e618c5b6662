"""Files of a corpus are found under the names that people write, on this machine and in object stores."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lexray.storage.errors import UserError
from lexray.storage.harvest.corpus_files import find_files
from lexray.storage.harvest.corpus_report import CorpusReport, report_lines
from lexray.storage.harvest.file_trees import split_braces
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

SETTINGS = StorageSettings()
FILES = [
    "dir [v1]/a.txt",
    "dir [v1]/b.txt",
    "dir v/class.txt",
    "plain/a.txt",
    "plain/deep/b.txt",
    "plain/deep/[x]/c.txt",
    "with space/a b.txt",
    "{a,b}/literal.txt",
    "a/one.txt",
    "b/two.txt",
    "star/x1.txt",
    "star/x2.txt",
    "star/x10.txt",
    "odd/[0-9].txt",
    "odd/7.txt",
    "que?tion/a#b%20c.txt",
]
PATTERNS = {
    "dir [v1]/*.txt": ["dir [v1]/a.txt", "dir [v1]/b.txt"],
    "dir [v1]/a.txt": ["dir [v1]/a.txt"],
    "dir [vw]/*.txt": ["dir v/class.txt"],
    "d*/*.txt": ["dir [v1]/a.txt", "dir [v1]/b.txt", "dir v/class.txt"],
    "plain/*": ["plain/a.txt"],
    "plain/**": ["plain/a.txt", "plain/deep/[x]/c.txt", "plain/deep/b.txt"],
    "plain/**/*.txt": ["plain/a.txt", "plain/deep/[x]/c.txt", "plain/deep/b.txt"],
    "plain/**/**/b.txt": ["plain/deep/b.txt"],
    "**/[x]/*": ["plain/deep/[x]/c.txt"],
    "with space/a b.txt": ["with space/a b.txt"],
    "{a,b}/*.txt": ["{a,b}/literal.txt"],
    "{a/one,b/two}.txt": ["a/one.txt", "b/two.txt"],
    "{plain,star}/{a,x1*}.txt": ["plain/a.txt", "star/x1.txt", "star/x10.txt"],
    "star/x?.txt": ["star/x1.txt", "star/x2.txt"],
    "star/x[!2].txt": ["star/x1.txt"],
    "{star/*,star/x1*}": ["star/x1.txt", "star/x10.txt", "star/x2.txt"],
    "odd/[0-9].txt": ["odd/[0-9].txt"],
    "odd/[5-8].txt": ["odd/7.txt"],
    "que?tion/a#b%20c.txt": ["que?tion/a#b%20c.txt"],
}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(folder: Path | str, pattern: str, report: CorpusReport | None = None) -> list[str]:
    """Names below `folder`, each of a file that holds its own name."""
    files = find_files("text.files", f"{folder}/{pattern}", SETTINGS, report)
    names = [file.name.removeprefix(f"{folder}/") for file in files]
    assert [file.read().decode() for file in files] == names
    assert [file.size for file in files] == [len(name.encode()) for name in names]
    return names


def refused(pattern: str) -> str:
    with pytest.raises(UserError) as caught:
        find_files("text.files", pattern, SETTINGS)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("text.files: ")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_exists_under_a_name_is_meant_by_it(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *FILES)
    assert found(tmp_path, pattern) == PATTERNS[pattern]
    by_url = find_files("text.files", f"file://{tmp_path}/{pattern}", SETTINGS)
    monkeypatch.chdir(tmp_path)
    relative = find_files("text.files", f"./{pattern}", SETTINGS)
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = find_files("text.files", f"~/{pattern}", SETTINGS)
    assert [file.name for file in relative] == PATTERNS[pattern]
    assert [file.name for file in at_home] == [file.name for file in by_url]
    assert [file.name for file in by_url] == [f"{tmp_path}/{name}" for name in PATTERNS[pattern]]


def test_the_same_in_an_object_store(s3_server: str) -> None:
    block = StorageSettings(**{"endpoint_url": s3_server})
    store = Store.at("s3://corpus-names", block)
    store.filesystem.mkdir("corpus-names")
    for name in [*FILES, "plainer/a.txt"]:
        store.filesystem.pipe_file(f"corpus-names/in/{name}", name.encode())
    for pattern, names in PATTERNS.items():
        files = find_files("text.files", f"s3://corpus-names/in/{pattern}", block)
        assert [file.name for file in files] == [f"s3://corpus-names/in/{name}" for name in names], pattern
        assert [file.read().decode() for file in files] == names
    for pattern, said in {
        "s3://corpus-names/in/plain": "s3://corpus-names/in/plain is a folder; write s3://corpus-names/in/plain/* for",
        "s3://corpus-names": "s3://corpus-names is a folder; write s3://corpus-names/* for",
        "s3://corpus-names/in/pla*n": "no file matches 's3://corpus-names/in/pla*n' but folders do; write",
        "s3://corpus-names/in/none.txt": "no file matches 's3://corpus-names/in/none.txt'",
        "s3://corpus-names/no/*.txt": "no file matches 's3://corpus-names/no/*.txt'",
        "s3://corpus-nobody-has/*.txt": "no file matches 's3://corpus-nobody-has/*.txt'",
        "s3://": "s3:// names no bucket",
        "s3:///in/*.txt": "s3:///in/*.txt names no bucket",
        "s3:/corpus-names/*": "no file matches 's3:/corpus-names/*'; a url is written s3://corpus-names/*",
    }.items():
        with pytest.raises(UserError) as caught:
            find_files("text.files", pattern, block)
        assert str(caught.value).startswith(f"text.files: {said}")


_NAMES = st.text("ab[]*?{,}!-~# .é", min_size=1, max_size=6).filter(lambda name: name.strip(".") and name != "**")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(_NAMES, min_size=1, max_size=4, unique=True), folder=_NAMES)
def test_a_literal_name_finds_its_file_and_nothing_else(
    names: list[str], folder: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("names")
    write(root, *(f"{folder}/{name}" for name in names))
    for name in names:
        assert found(root, f"{folder}/{name}") == [f"{folder}/{name}"]
    visible = sorted(f"{folder}/{name}" for name in names if not name.startswith("."))
    if visible and "*" not in names:
        assert found(root, f"{folder}/*") == visible


@pytest.mark.parametrize(
    ("pattern", "choices"),
    [
        ("a{b,c}d{e,f}", ["abd{e,f}", "acd{e,f}"]),
        ("{a,{b,c}}x", ["ax", "{b,c}x"]),
        ("{,x}", ["", "x"]),
        ("{a}{b,c}", ["{a}b", "{a}c"]),
        ("{a", []),
        ("a}", []),
        ("{a}", []),
        ("{a,b", []),
    ],
)
def test_braces(pattern: str, choices: list[str]) -> None:
    assert split_braces(pattern) == choices


def test_folders_devices_and_nothing_are_refused_in_a_line(tmp_path: Path) -> None:
    write(tmp_path, *FILES)
    os.mkfifo(tmp_path / "pipe")
    advice = f"write {tmp_path}/plain/* for the files in it, or {tmp_path}/plain/**/* for those in its folders too"
    for pattern in ("plain", "plain/"):
        assert refused(f"{tmp_path}/{pattern}") == f"{tmp_path}/{pattern} is a folder; {advice}"
    assert refused(f"{tmp_path}/dir [v1]").endswith(
        f"write {tmp_path}/dir [v1]/* for the files in it, or {tmp_path}/dir [v1]/**/* for those in its folders too"
    )
    said = "the braces stand for 1,073,741,824 names, at most 10,000 may"
    assert refused(f"{tmp_path}/" + "{a,b}" * 30) == said
    assert refused("/dev/zero") == "/dev/zero is not a regular file"
    assert refused(f"{tmp_path}/pipe") == f"{tmp_path}/pipe is not a regular file"
    assert refused(f"{tmp_path}/pip?") == f"no file matches '{tmp_path}/pip?'"
    assert refused(f"{tmp_path}/a\0b").endswith("holds a NUL character, which no file name has")
    assert refused(f"{tmp_path}/{'x' * 5000}").startswith("no file matches ")


def test_links_are_followed_and_those_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    """As in a snapshot of Hugging Face, where files are links to blobs."""
    write(tmp_path, "blobs/7f", "blobs/more/x.txt")
    snapshot = tmp_path / "snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "train.txt").symlink_to("../../blobs/7f")
    (snapshot / "folder").symlink_to("../../blobs/more")
    for root in (str(snapshot), f"file://{snapshot}"):
        files = find_files("text.files", f"{root}/**/*.txt", SETTINGS)
        assert [file.name for file in files] == [f"{snapshot}/folder/x.txt", f"{snapshot}/train.txt"]
        assert [file.read() for file in files] == [b"blobs/more/x.txt", b"blobs/7f"]
        assert [file.size for file in files] == [16, 8]
    (snapshot / "gone.txt").symlink_to("../../blobs/8a")
    for pattern in ("**/*.txt", "gone.txt"):
        said = refused(f"{snapshot}/{pattern}")
        assert said == f"{snapshot}/gone.txt is a link that leads nowhere (../../blobs/8a); mend or remove it"
    (snapshot / "gone.txt").unlink()
    (snapshot / "self.txt").symlink_to("self.txt")
    assert refused(f"{snapshot}/*.txt").startswith(f"{snapshot}/self.txt is a link that leads nowhere (self.txt)")


def test_links_back_to_a_folder_above_are_not_entered(tmp_path: Path) -> None:
    write(tmp_path, "top/a.txt", "top/sub/b.txt", "other/c.txt")
    (tmp_path / "top/sub/up").symlink_to("..")
    (tmp_path / "top/out").symlink_to("../other")
    (tmp_path / "other/back").symlink_to(tmp_path / "top")
    (tmp_path / "top/root").symlink_to("/")
    report = CorpusReport()
    files = find_files("text.files", f"{tmp_path}/top/**/*.txt", SETTINGS, report)
    assert [file.read() for file in files] == [b"top/a.txt", b"other/c.txt", b"top/sub/b.txt"]
    assert report.counts == {"folder_loops": 3}
    (line,) = report_lines(report.as_dict())
    assert line.startswith(f"3 links to a folder that holds them, not entered (the first: {tmp_path}/top/")


def test_very_deep_folders_are_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = os.open(".", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=place)
        deeper = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    try:
        assert refused("d/**/*.txt") == "d/**/*.txt leads into too many folders, one in the other"
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)  # Python's own removal is recursive


def test_names_that_are_not_utf8_are_read_and_can_be_printed(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb") as file:
        file.write(b"\xff")
    (found,) = find_files("text.files", f"{tmp_path}/*.txt", SETTINGS)
    assert found.read() == b"\xff"
    assert found.place == f"text.files: {tmp_path}/caf\\udce9.txt"
