"""`lexray data` as a user calls it: results on stdout, notes and damage on stderr, the right exit code."""

import json

import numpy as np
import torch
from cached_activations import write_cache
from synthetic import write_rows

from lexray.cluster.commands.data import share_above

SHARD = "shards/000000.safetensors"


def flip_byte(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


# verify


def test_verify_of_a_sound_dataset_is_exit_code_0_and_one_table(lexray, tmp_path):
    write_rows(tmp_path, [40, 24], sites={"early": 3, "late": 5})
    code, out, err = lexray("data", "verify", tmp_path)
    assert (code, err.strip()) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"file://{tmp_path}: 64 rows in 2 shards, sound"
    assert [line.split()[0] for line in lines[1:]] == ["site", "early", "late"]


def test_verify_of_a_damaged_dataset_is_exit_code_1_and_names_all_of_it(lexray, tmp_path):
    shard = write_rows(tmp_path, 40, chunk_rows=8).manifest.shards[0]
    flip_byte(tmp_path / SHARD, shard.offsets["x"])
    flip_byte(tmp_path / SHARD, shard.offsets["document"])
    code, out, err = lexray("data", "verify", tmp_path)
    assert code == 1
    assert "2 damages, named on stderr" in out
    named = [line.split(": ")[1] for line in err.splitlines() if line.startswith("damaged: ")]
    assert named == [f"{SHARD}, x, chunk 0", f"{SHARD}, document, chunk 0"]


def test_verify_as_json_is_one_document_with_everything(lexray, tmp_path):
    shard = write_rows(tmp_path, 40, chunk_rows=8).manifest.shards[0]
    flip_byte(tmp_path / SHARD, shard.offsets["x"])
    code, out, _ = lexray("data", "verify", tmp_path, "--json")
    content = json.loads(out)
    assert (code, content["sound"], content["rows"]) == (1, False, 40)
    assert [(one["file"], one["tensor"], one["chunk"]) for one in content["damage"]] == [(SHARD, "x", 0)]
    assert (content["sites"]["x"]["rows"], content["sites"]["x"]["duplicates"]) == (32, 0)


def test_verify_of_no_dataset_is_exit_code_2(lexray, tmp_path):
    code, out, err = lexray("data", "verify", tmp_path)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "no manifest.json there" in err


def test_inspect_shows_what_a_dataset_holds(lexray, tmp_path):
    write_rows(tmp_path, 40, sites={"early": 3}, provenance={"text": "planted"})
    code, out, err = lexray("data", "inspect", tmp_path)
    assert (code, err) == (0, "")
    assert "40 rows in 1 shards" in out
    assert "text: planted" in out


def test_inspect_shows_the_norms_and_how_many_rows_training_leaves_out_for_theirs(lexray, tmp_path):
    rows = torch.zeros(400, 3)
    rows[:, 0] = torch.arange(400) % 4 + 1.0
    rows[7, 0] = 1000.0
    write_rows(tmp_path, 400, vectors={"early": rows, "late": rows.clamp(max=4)}, dtype="float32")
    code, out, _ = lexray("data", "inspect", tmp_path)
    _, _, heading, early, late = out.splitlines()[:5]
    assert code == 0
    assert " ".join(heading.split()).endswith("norm 1 % median 99 % max above 10 medians source")
    assert early.split()[5:] == ["1", "2", "4", "1000", "0.1%", "to", "1.0%", "of", "rows"]
    assert late.split()[5:] == ["1", "2", "4", "4", "no", "row"]
    sites = json.loads(lexray("data", "inspect", tmp_path, "--json")[1])["sites"]
    assert sites["early"]["norm_quantiles"]["1"] == 1000.0


def test_the_share_of_rows_above_a_norm_lies_within_the_bounds_told(tmp_path):
    rows = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0)).exp()
    quantiles = write_rows(tmp_path, 5000, vectors={"x": rows}, dtype="float32").manifest.sites["x"].norm_quantiles
    for norm in (0.0, 0.5, 1.0, 5.0, 9.0, 20.0, 1e6):
        low, high = share_above(quantiles, norm)
        assert low <= float((rows > norm).float().mean()) <= high
        assert high - low < 0.26


# import


def tensor_files(folder):
    for number, site in enumerate(("early", "late")):
        (folder / site).mkdir(parents=True)
        rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(number))
        np.save(folder / site / "0.npy", rows.numpy())
    return folder


def test_import_writes_a_sound_dataset_and_says_what_was_made_up(lexray, tmp_path):
    code, out, err = lexray("data", "import", tensor_files(tmp_path / "in"), tmp_path / "out", "--document-rows", "10")
    assert code == 0
    assert out.startswith(f"file://{tmp_path}/out: 30 rows, ")
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert notes == ["note: documents: of 10 rows each, a new one with each file", "note: token ids: unknown (-1)"]
    assert lexray("data", "verify", tmp_path / "out")[0] == 0
    code, out, _ = lexray("data", "inspect", tmp_path / "out", "--json")
    content = json.loads(out)
    assert (content["rows"], list(content["sites"])) == (30, ["early", "late"])
    assert content["provenance"]["imported"]["folder"] == str(tmp_path / "in")


def test_import_prints_what_it_takes_from_where_before_it_writes(lexray, tmp_path):
    for site in ("early", "late"):
        (tmp_path / "in" / site).mkdir(parents=True)
        for number in range(12):
            np.save(tmp_path / "in" / site / f"{number}.npy", np.ones((3, 4), dtype=np.float64))
    np.save(tmp_path / "in" / "late" / "11.npy", np.full((3, 4), np.nan))
    code, out, err = lexray("data", "import", tmp_path / "in", tmp_path / "out")
    assert (code, out) == (2, "")
    *printed, error = err.splitlines()
    names = "0.npy, 1.npy, 2.npy, 3.npy, 4.npy, 5.npy, ..., 11.npy"
    for site in ("early", "late"):
        assert f"site {site}: 36 rows x 4, float64 stored as float32, 12 files: {names}" in printed
    assert "late/11.npy, row 0: NaN" in error


def test_import_takes_what_the_files_do_not_say_from_options(lexray, tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    (tmp_path / "in").mkdir()
    for layer in (3, 4):
        rows.tofile(tmp_path / "in" / f"layer{layer}.bin")
    command = ("data", "import", tmp_path / "in", tmp_path / "out")
    said = []
    for more in [(), ("--raw-dtype", "float32"), ("--raw-dtype", "float32", "--raw-width", "4")]:
        code, out, err = lexray(*command, *more)
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
        said.append(err)
    assert "--raw-dtype float32 --raw-width WIDTH" in said[0]
    assert "--raw-width: is missing" in said[1]
    assert "add --files rows or --files sites" in said[2]
    code, out, _ = lexray(*command, *more, "--files", "sites", "--json")
    content = json.loads(out)
    assert (code, content["rows"], list(content["sites"])) == (0, 30, ["layer3", "layer4"])
    assert content["imported"]["layer4"] == {"files": 1, "first": "layer4.bin", "last": "layer4.bin"}
    for wrong in (("--files", "both"), ("--lists", "x"), ("--raw-dtype", "int8", "--raw-width", "4")):
        code, out, err = lexray(*command, *wrong)
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
        assert f"{wrong[0]}: {wrong[1]!r} is none of" in err


def test_import_as_json_is_one_document_and_takes_sites_and_dtype(lexray, tmp_path):
    command = ("data", "import", tensor_files(tmp_path / "in"), tmp_path / "out", "--site", "x=late", "--json")
    code, out, _ = lexray(*command, "--dtype", "bfloat16")
    content = json.loads(out)
    assert (code, list(content["sites"]), content["sites"]["x"]["dtype"]) == (0, ["x"], "bfloat16")
    assert len(content["notes"]) == 2


def test_import_reads_a_sae_lens_cache(lexray, tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    write_cache(tmp_path / "in", {"blocks.0.hook_in": values}, np.ones((6, 5), dtype=np.int32))
    code, out, err = lexray("data", "import", tmp_path / "in", tmp_path / "out")
    assert (code, "30 rows" in out) == (0, True)
    assert "one for each context of 5 positions" in err


def test_import_of_wrong_input_is_exit_code_2_and_one_line(lexray, tmp_path):
    source = tensor_files(tmp_path / "in")
    lexray("data", "import", source, tmp_path / "taken")
    for command, said in [
        ((tmp_path / "nowhere", tmp_path / "out"), "is not a folder"),
        ((source, tmp_path / "out", "--dtype", "int8"), "--dtype: 'int8' is none of"),
        ((source, tmp_path / "out", "--site", "middle"), "it has early, late"),
        ((source, tmp_path / "taken"), "already holds a dataset"),
    ]:
        code, out, err = lexray("data", "import", *command)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1
        assert said in err
