"""An architecture, a code and a term from outside the package are used like ours: one file, one registration."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.training.codes.base import Code
from lexray.training.codes.topk import TopK
from lexray.training.dictionaries import ARCHITECTURES, register
from lexray.training.dictionaries.sae import SAE
from lexray.training.export import FORMATS
from lexray.tuning.sweep_folder import FINISHED

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_architecture" / "log_sum.py"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The file, in a folder of its own."""
    return Path(shutil.copy(EXAMPLE, tmp_path / "log_sum.py"))


def lexray(plugin: Path, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command with the plugin; what it printed when it ends with another code."""
    environment = {**os.environ, "LEXRAY_PLUGINS": str(plugin), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "lexray", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def content(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    axes = {"architecture": ["log_sum"], "width": [64], "target_l0": [4], "epsilon": [0.1, 0.2]}
    return sweep_content(write_dataset(tmp_path / "data"), str(tmp_path / "sweep"), axes=axes, **changes)


def test_it_is_listed_in_the_schema_and_planned(plugin: Path, tmp_path: Path) -> None:
    [found] = json.loads(lexray(plugin, "architectures", "log_sum", "--json").stdout)
    assert found["equations"].lstrip().startswith("f and x_hat as in ReLU")
    assert {"epsilon", "decoder_norm", "initial_coefficient"} <= {option["name"] for option in found["options"]}
    schema = json.loads(lexray(plugin, "schema").stdout)
    assert "epsilon" in schema["properties"]["options"]["properties"]["log_sum"]["properties"]
    file = write_sweep(tmp_path / "sweep.yaml", content(tmp_path))
    plan = json.loads(lexray(plugin, "plan", file, "--json").stdout)
    assert [trial["id"].split("-")[0] for trial in plan["trials"]] == ["log_sum", "log_sum"]
    refused = write_sweep(tmp_path / "refused.yaml", content(tmp_path / "2", options={"log_sum": {"epsilons": 1}}))
    assert (
        "options.log_sum.epsilons: unknown; did you mean 'epsilon'?" in lexray(plugin, "plan", refused, code=2).stderr
    )


def test_a_file_that_the_environment_does_not_name_is_not_run(plugin: Path, tmp_path: Path) -> None:
    plugin.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    file = write_sweep(tmp_path / "sweep.yaml", content(tmp_path))
    environment = {name: value for name, value in os.environ.items() if name != "LEXRAY_PLUGINS"}
    command = [sys.executable, "-m", "lexray", "plan", file]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown 'log_sum'" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_file_that_cannot_be_imported_is_named(plugin: Path) -> None:
    plugin.write_text("import nothing_of_that_name")
    said = lexray(plugin, "architectures", code=2).stderr
    assert f"LEXRAY_PLUGINS: {plugin}: cannot be imported (ModuleNotFoundError" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
def test_it_trains_resumes_saves_measures_reports_and_is_refused_by_every_export(
    plugin: Path, tmp_path: Path, workers: int
) -> None:
    resources = {"workers": workers, "cpus_per_worker": 1}
    file = write_sweep(tmp_path / "sweep.yaml", content(tmp_path, resources=resources))
    lexray(plugin, "sweep", file)
    folders = sorted((tmp_path / "sweep" / "trials").iterdir())
    records = [json.loads((folder / "trial.json").read_text()) for folder in folders]
    assert len(records) == 2
    assert {record["status"] for record in records} <= set(FINISHED), "few steps, which may not meet the target L0"
    assert all(record["result"]["fvu"] < 1 for record in records)
    for folder in folders:
        assert json.loads((folder / "measures.json").read_text())["rows"] > 0
    # Lost after its last checkpoint: the next run goes on from there.
    (folders[0] / "trial.json").unlink()
    shutil.rmtree(folders[0] / "dictionary")
    lexray(plugin, "sweep", file)
    assert json.loads((folders[0] / "trial.json").read_text())["status"] in FINISHED
    measured = json.loads(lexray(plugin, "measure", str(folders[0] / "dictionary"), "--json").stdout)
    assert measured["fvu"] < 1
    assert "log_sum" in (tmp_path / "sweep" / "report.html").read_text()
    for to in FORMATS:
        refusal = lexray(plugin, "export", str(folders[0] / "dictionary"), str(tmp_path / to), "--to", to, code=2)
        assert "log_sum: not yet tried in another library" in refusal.stderr


# What is missing fails when the class is made -----------------------------------------------------------------------


def test_a_code_that_changes_another_must_say_what_it_costs_and_what_an_export_may_say() -> None:
    with pytest.raises(TypeError, match="code SoftTopK must define terms, cost, fold itself"):

        class SoftTopK(TopK):
            def value(self, z: Any) -> Any:
                return z.sigmoid()


def test_a_code_without_terms_cost_and_fold_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="must define terms, cost, fold itself"):

        class Empty(Code):
            kind = "empty"


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="architecture: 'topk' is there already"):
        register("topk", SAE, TopK)
    assert ARCHITECTURES["topk"].codes == (TopK,)


def test_an_architecture_of_ones_own_takes_one_file() -> None:
    """The whole of it: term, code, options, cost, fold and registration."""
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) < 70
    assert sum(line.startswith("register(") for line in lines) == 1
