"""`lexray data bench` as a user calls it."""

import json

import pytest
import s3fs
from synthetic import write_rows

from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

QUICK = ("--seconds", "0.2", "--batch-rows", "64")
SPEEDS = {
    "plain": ["parallel", "gets", "bytes", "seconds", "mb_per_s", "gets_per_s"],
    "stream": ["rows", "bytes", "batches", "seconds", "mb_per_s", "rows_per_s"],
    "core": ["checksum_mb_per_s", "permute_mb_per_s", "checksums_share", "permuting_share"],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A dataset of one site."""
    place = tmp_path_factory.mktemp("bench")
    write_rows(place, [500, 300], sites={"x": 8}, chunk_rows=32)
    return str(place)


@pytest.fixture
def s3_url(s3_server, monkeypatch):
    """The same on a real S3 server, which the environment names as it would for any S3 tool."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    s3fs.S3FileSystem(endpoint_url=s3_server).makedirs("bench-command", exist_ok=True)
    settings = StorageSettings(endpoint_url=s3_server, addressing_style="path")
    return write_rows(Store.at("s3://bench-command/data", settings), 800, sites={"x": 8}, chunk_rows=32).store.url


@pytest.mark.parametrize("place", ["url", "s3_url"])
def test_the_json_document_has_stable_keys_and_consistent_numbers(lexray, request, place):
    where = request.getfixturevalue(place)
    code, out, err = lexray("data", "bench", where, *QUICK, "--parallel", "3", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found) == ["url", "id", "sites", "batch_rows", *SPEEDS, "dictionary"]
    assert (found["sites"], found["batch_rows"], found["dictionary"]) == (["x"], 64, None)
    for part, names in SPEEDS.items():
        assert list(found[part]) == names
        assert min(found[part][name] for name in names if name != "batches") > 0
    assert found["plain"]["parallel"] == 3
    stream, core = found["stream"], found["core"]
    assert stream["mb_per_s"] == pytest.approx(stream["bytes"] / stream["seconds"] / 1e6)
    assert core["checksums_share"] == pytest.approx(stream["mb_per_s"] / core["checksum_mb_per_s"])


def test_a_named_dictionary_gives_the_number_of_workers_that_can_be_fed(lexray, url):
    code, out, err = lexray("data", "bench", url, *QUICK, "--width", "32", "--target-l0", "4", "--json")
    assert code == 0, err
    found = json.loads(out)
    made, stream = found["dictionary"], found["stream"]
    assert (made["architecture"], made["width"], made["target_l0"]) == ("topk", 32, 4)
    assert made["step_rows_per_s"] > 0
    assert made["workers_fed"] == int(stream["rows_per_s"] / made["step_rows_per_s"])
    assert made["io_bound_workers"] == made["workers_fed"] + 1
    assert made["sentence"].startswith("topk of width 32 and L0 4 ")


@pytest.mark.parametrize(
    ("sites", "options"),
    [
        (("a",), ("--architecture", "jumprelu", "--width", "16", "--target-l0", "4")),
        (("a",), ("--architecture", "kmeans", "--width", "16", "--target-l0", "1")),
        (("a", "b"), ("--architecture", "transcoder", "--width", "16", "--target-l0", "4")),
        (("b", "c", "a"), ("--architecture", "crosscoder", "--width", "16", "--target-l0", "4")),
    ],
)
def test_dictionaries_of_every_kind_can_be_named(lexray, tmp_path, sites, options):
    write_rows(tmp_path, 400, sites={"a": 4, "b": 4, "c": 4}, chunk_rows=32)
    named = [word for site in sites for word in ("--site", site)]
    code, out, err = lexray("data", "bench", tmp_path, *QUICK, *named, *options, "--json")
    assert code == 0, err
    assert json.loads(out)["sites"] == list(sites)
    assert json.loads(out)["dictionary"]["architecture"] == options[1]


def test_people_get_one_table_and_one_sentence(lexray, url):
    code, out, err = lexray("data", "bench", url, *QUICK, "--width", "32", "--target-l0", "4")
    assert (code, err) == (0, "")
    first, _, *table, sentence = out.splitlines()
    assert first == f"file://{url}: x"
    assert [line.split()[0] for line in table] == ["plain", "stream", "checksums", "permuting", "training"]
    assert sentence.startswith("topk of width 32 and L0 4 ")
    assert sentence.endswith(".")


def test_without_a_dictionary_nothing_is_trained_and_nothing_said_of_workers(lexray, url):
    code, out, _ = lexray("data", "bench", url, *QUICK)
    assert code == 0
    assert "training" not in out
    assert "workers" not in out


def test_wrong_input_is_exit_code_2_and_one_line(lexray, url, tmp_path):
    write_rows(tmp_path / "two", 400, sites={"a": 4, "b": 4}, chunk_rows=32)
    for command, said in [
        ((tmp_path,), "no manifest.json there"),
        ((url, "--site", "y"), "--site: the dataset has no site 'y'"),
        ((url, "--batch-rows", "100"), "batch_rows: 100 is not a multiple of data.lanes 16; use 96"),
        ((url, "--batch-rows", "4096"), "batch_rows: 4,096 is larger than the"),
        ((url, "--width", "32"), "target_l0: required"),
        ((url, "--architecture", "topc", "--width", "32"), "did you mean 'topk'?"),
        ((tmp_path / "two", "--width", "32", "--target-l0", "4"), "topk is for one site, the dataset has 2"),
        ((url, "--architecture", "crosscoder", "--width", "32", "--target-l0", "4"), "for two sites or more"),
    ]:
        code, out, err = lexray("data", "bench", *command)
        assert (code, out) == (2, ""), command
        assert len(err.strip().splitlines()) == 1
        assert said in err


def test_a_shard_that_is_missing_is_named_before_anything_is_measured(lexray, tmp_path):
    written = write_rows(tmp_path, [100, 100], chunk_rows=16)
    (tmp_path / written.manifest.shards[1].file).unlink()
    code, out, err = lexray("data", "bench", tmp_path, *QUICK)
    assert (code, out) == (2, "")
    assert "shards/000001.safetensors is missing" in err
