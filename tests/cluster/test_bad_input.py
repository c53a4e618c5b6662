"""Bad input is one clear line and exit code 2, never a traceback, and leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import ROWS, sweep_content, write_dataset, write_sweep

from lexray.cluster.cli import main


@pytest.fixture
def data(tmp_path) -> Path:
    return Path(write_dataset(tmp_path / "data"))


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command that must be refused; returns its one line."""

    def run(*command: str) -> str:
        before = files_in(tmp_path)
        monkeypatch.setattr(sys, "argv", ["lexray", *command])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        assert stop.value.code == 2, output.err
        assert output.out == ""
        assert output.err.startswith("error ")
        assert output.err.count("\n") == 1, output.err
        assert files_in(tmp_path) == before
        return output.err

    return run


@pytest.fixture
def refused_sweep(refused, data, tmp_path):
    """The same for `lexray sweep` with a sweep file whose blocks are replaced."""

    def run(**changes) -> str:
        content = sweep_content(str(data), str(tmp_path / "out"))
        for block, values in changes.items():
            merge = isinstance(values, dict) and isinstance(content.get(block), dict)
            content[block] = {**content[block], **values} if merge else values
        return refused("sweep", write_sweep(tmp_path / "sweep.yaml", content))

    return run


def test_a_file_that_is_not_there(refused):
    assert "nothing.yaml: no such file" in refused("sweep", "nothing.yaml")


def test_a_file_that_is_not_yaml(refused, tmp_path):
    (tmp_path / "bad.yaml").write_text("axes: [unclosed")
    assert "not valid YAML" in refused("sweep", str(tmp_path / "bad.yaml"))


def test_a_missing_dataset(refused_sweep, tmp_path):
    line = refused_sweep(data={"url": str(tmp_path / "nowhere")})
    assert f"{tmp_path}/nowhere" in line
    assert "no manifest.json there" in line


def test_a_manifest_without_a_shard(refused_sweep, data):
    (data / "shards" / "000002.safetensors").unlink()
    assert "shard shards/000002.safetensors is missing" in refused_sweep()


def test_a_truncated_shard(refused_sweep, data):
    shard = data / "shards" / "000001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    line = refused_sweep()
    assert "shards/000001.safetensors" in line
    assert f"{len(whole) - 10:,}" in line
    assert f"{len(whole):,}" in line


def test_a_site_that_the_dataset_does_not_have(refused_sweep):
    assert "data.site: the dataset has no site 'layer9'; its sites are site" in refused_sweep(data={"site": "layer9"})


def test_an_unknown_architecture_with_the_nearest_known_one(refused_sweep):
    assert "unknown 'topkk'; did you mean 'topk'?" in refused_sweep(axes={"architecture": ["topkk"]})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"retires": 3}, "retires: unknown key; did you mean 'retries'?"),
        ({"data": {"batch_row": 128}}, "data.batch_row: unknown key; did you mean 'batch_rows'?"),
        ({"axes": {"widht": [1]}}, "axes.widht: unknown; did you mean 'width'?"),
        ({"options": {"topk": {"k_auks": 1}}}, "options.topk.k_auks: unknown; did you mean 'k_aux'?"),
        ({"options": {"tok": {}}}, "options.tok: unknown; did you mean 'topk'?"),
        ({"rules": [{"when": {"widht": 1}, "set": {}}]}, "rules.when.widht: unknown; did you mean 'width'?"),
        ({"rules": [{"when": {}, "set": {"worker": 2}}]}, "rules.set.worker: unknown; did you mean 'workers'?"),
    ],
)
def test_an_unknown_key_with_the_nearest_known_one(refused_sweep, changes, expected):
    assert expected in refused_sweep(**changes)


def test_an_l0_above_the_width(refused_sweep):
    assert "target_l0: 65 must be at most the width 64" in refused_sweep(axes={"target_l0": [65]})


def test_a_batch_larger_than_the_dataset(refused_sweep):
    line = refused_sweep(data={"batch_rows": 16_000})
    assert "data.batch_rows: 16,000 is larger than the dataset's" in line
    assert f"{round(ROWS * 0.9):,}" in line


def test_a_batch_that_the_lanes_do_not_divide(refused_sweep):
    assert "100 is not a multiple of data.lanes 16" in refused_sweep(data={"batch_rows": 100})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"batch_rows": 8}}, "data.batch_rows: 8 rows cannot come from data.lanes 16 in equal shares; use 16"),
        ({"data": {"lanes": 10**9}}, "data.batch_rows: 128 rows cannot come from data.lanes 1000000000"),
        ({"data": {"batch_rows": 17}}, "data.batch_rows: 17 is not a multiple of data.lanes 16; use 16"),
        ({"data": {"batch_rows": 256, "held_out": 0.98}}, "training rows (data.held_out 0.98 keeps the others)"),
        ({"data": {"batch_rows": 2**63}}, "data.batch_rows: 9223372036854775808 has more than 64 bits"),
        ({"training": {"rows": True}}, "training.rows: true stands where a number belongs"),
        ({"training": {"eps": 0}}, "training.eps: 0 must be at least 1e-15 and at most 1: Adam divides by it"),
        ({"training": {"eps": 1e-50}}, "training.eps: 1e-50 must be at least 1e-15 and at most 1"),
        ({"training": {"eps": 2.0}}, "eps: 2.0 must be at least 1e-15 and at most 1"),
        ({"training": {"lr": 1e5}}, "lr: 100000.0 must be above 0 and at most 10: Adam moves every weight"),
        ({"training": {"lr": 1e-50}}, "lr: 1e-50 is out of what float32"),
        ({"axes": {"lr": [1e30]}}, "axes.lr: 1e+30 must be above 0 and at most 10"),
        ({"training": {"lr_scale": {"b_dec": 1e30}}}, "lr_scale.b_dec: 1e+30 must be at least 0 and at most 1000"),
        ({"training": {"clip_norm": 1e-12}}, "clip_norm: 1e-12 must be at least 1e-09, or 0"),
        ({"options": {"relu": {"initial_coefficient": 1e-40}}}, "initial_coefficient: 1e-40 is out of what float32"),
        ({"options": {"topk": {"aux_weight": 1e30}}}, "aux_weight: 1e+30 is out of what float32"),
        ({"options": {"all": {"dead_after_rows": True}}}, "dead_after_rows: true stands where a number belongs"),
        ({"axes": {"architecture": ["jumprelu"]}, "options": {"jumprelu": {"bandwidth": 1e-300}}}, "bandwidth: 1e-300"),
        ({"axes": {"target_l0": [1e-300]}}, "target_l0: 1e-300 is out of what float32"),
        (
            {"axes": {"width": [10**12]}},
            "width: 1000000000000 must be at least 1 and below 2147483648: latents are numbered with 32 bits",
        ),
        ({"axes": {"seed": [True]}}, "axes.seed: True is not a whole number"),
        ({"axes": {"seed": list(range(15_000))}}, "axes: 30,000 dictionaries; a sweep has at most 20,000"),
        ({"search": {"kind": "random", "trials": 10**9}}, "search.trials: 1,000,000,000 dictionaries"),
        ({"include": [{"seed": list(range(15_000))}]}, "include: entry 1: 30,000 dictionaries"),
        ({"deadline": 1e300}, "deadline: neither hours above 0 nor a time"),
        ({"resources": {"timeout_s": 1e300}}, "resources.timeout_s: 1e+300 must be at least 1 and at most 1e+09"),
        (
            {"resources": {"gpu_memory_gib": 1e300}},
            "resources.gpu_memory_gib: 1e+300 must be above 0 and at most 1e+06",
        ),
        ({"every": {"checkpoint_s": 1e300}}, "every.checkpoint_s: 1e+300 must be above 0 and at most 1e+09"),
        ({"storage": {"retry_budget_s": 1e300}}, "storage.retry_budget_s: 1e+300 must be at least 0 and at most 1e+09"),
        ({"name": ""}, "name: string should have at least 1 character"),
    ],
)
def test_a_value_that_would_end_in_nan_or_in_an_error_elsewhere(refused_sweep, changes, expected):
    assert expected in refused_sweep(**changes)


def test_an_expansion_that_gives_no_latent(refused, data, tmp_path):
    content = sweep_content(str(data), str(tmp_path / "out"))
    del content["axes"]["width"]
    content["axes"]["expansion"] = [1e-18]
    assert "axes.expansion: 1e-18 times" in refused("sweep", write_sweep(tmp_path / "sweep.yaml", content))


def test_nothing_held_out(refused_sweep):
    assert "data.held_out: 0 must be above 0 and below 1" in refused_sweep(data={"held_out": 0})


def test_fewer_rows_held_out_than_lanes(refused_sweep):
    line = refused_sweep(data={"held_out": 0.05, "lanes": 256, "batch_rows": 256})
    assert "data.held_out: 0.05 of the rows leave 150 rows for validation, fewer than the 256 lanes" in line


def test_a_single_document_held_out(refused_sweep):
    line = refused_sweep(data={"held_out": 0.01, "held_out_of": "documents"})
    assert "data.held_out: 0.01 of 40 documents is 1; validation and test need one each, so 0.05 or more" in line


def test_more_workers_than_lanes(refused_sweep):
    assert "17" in refused_sweep(resources={"workers": 17})


def test_an_output_that_cannot_be_written(refused_sweep, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused_sweep(output=str(tmp_path / "file" / "out"))
    assert "output: cannot write" in line
    assert f"{tmp_path}/file/out" in line


def test_an_empty_axis(refused_sweep):
    assert "has no values" in refused_sweep(axes={"width": []})


def test_two_trials_that_are_the_same(refused_sweep):
    assert "two trials are the same, topk-w64-l4" in refused_sweep(axes={"width": [64, 64]})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"rules": [{"when": {"width": 64}, "set": {"rows": -1}}]},
            "rules.set.rows: -1 must be at least 1 (trial: architecture topk",
        ),
        ({"rules": [{"when": {"width": 64}, "set": {"workers": 0}}]}, "rules.set.workers: 0 must be at least 1"),
        ({"rules": [{"when": {"width": 65}, "set": {"workers": 1}}]}, "matches no trial"),
        ({"training": {"rows": None, "epochs": float("inf")}}, "training.epochs: inf is not a finite number"),
        ({"axes": {"architecture": ["topk", 3]}}, "architecture: 3 is not a name"),
        ({"axes": {"lr": [float("inf")]}}, "lr"),
        ({"options": {"topk": {"aux_weight": float("nan")}}}, "aux_weight: nan is not a finite number"),
    ],
)
def test_values_that_make_no_sense_wherever_they_stand(refused_sweep, changes, expected):
    assert expected in refused_sweep(**changes)


def test_a_key_that_stands_twice(refused, tmp_path):
    (tmp_path / "twice.yaml").write_text("name: a\nname: b\n")
    assert "'name' stands twice" in refused("sweep", str(tmp_path / "twice.yaml"))


def test_a_dataset_as_output(refused_sweep, data):
    assert "holds a dataset; choose another folder" in refused_sweep(output=str(data))


def test_a_manifest_that_was_edited(refused_sweep, data):
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["sites"]["site"]["mean_squared_norm"] = 1.0
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json was changed after it was written" in refused_sweep()


def test_brackets_in_a_path_are_no_markup(refused, tmp_path):
    assert "[/x]/a.yaml: no such file" in refused("sweep", str(tmp_path / "[/x]" / "a.yaml"))


def test_neither_rows_nor_epochs(refused_sweep):
    assert "training: give `rows` or `epochs`" in refused_sweep(training={"rows": None})


def test_a_value_of_the_wrong_type(refused_sweep):
    assert "data.batch_rows: " in refused_sweep(data={"batch_rows": "many"})


def test_a_width_that_is_no_number(refused_sweep):
    assert "width: input should be a valid integer" in refused_sweep(axes={"width": ["wide"]})
    assert "lr" in refused_sweep(axes={"lr": ["fast"]})
    assert "axes.seed: -1" in refused_sweep(axes={"seed": [-1]})


def test_an_unknown_storage_scheme(refused_sweep):
    assert "no storage scheme is called 'ftpp'" in refused_sweep(output="ftpp://somewhere")


def test_a_report_of_no_sweep(refused, tmp_path):
    assert "no sweep there" in refused("report", str(tmp_path))


def test_inspect_of_no_dataset(refused, tmp_path):
    assert "no manifest.json there" in refused("data", "inspect", str(tmp_path))


def test_a_harvest_file_with_an_unknown_key(refused, tmp_path):
    (tmp_path / "harvest.yaml").write_text("output: x\nmodel: y\nsites: {a: {hidden_state: 1}}\ntxt: {}\n")
    assert "did you mean 'text'?" in refused("harvest", str(tmp_path / "harvest.yaml"))


def test_a_wrong_call_of_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lexray", "sweeep"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "No such command" in capsys.readouterr().err


def in_a_process(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lexray", *command], capture_output=True, text=True, timeout=120)


@pytest.mark.ray
def test_more_workers_than_the_cluster_has(data, ray_session, tmp_path):
    resources = {"workers": 5, "cpus_per_worker": 1}
    file = write_sweep(tmp_path / "sweep.yaml", sweep_content(str(data), str(tmp_path / "out"), resources=resources))
    before = files_in(tmp_path)
    done = in_a_process("sweep", file, "--address", ray_session)
    assert done.returncode == 2, done.stderr
    assert "wants 5 workers of 1 CPU" in done.stderr
    assert "has room for 4" in done.stderr
    assert "Traceback" not in done.stderr
    assert files_in(tmp_path) == before


def test_no_cluster_at_the_address(data, tmp_path):
    file = write_sweep(tmp_path / "sweep.yaml", sweep_content(str(data), str(tmp_path / "out")))
    done = in_a_process("sweep", file, "--address", "127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "--address 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_prints_one_json_document_on_stdout(data):
    done = in_a_process("data", "inspect", str(data), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["rows"] == ROWS
    assert done.stderr == ""
