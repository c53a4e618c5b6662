"""Recovery of known features: counts by hand, and the command on a sweep of generated rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sweeps import sweep_content, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.training.measures.matching import match
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.ground_truth.large import Counts, bands, dataset_of, f1, nearest_features, recovery
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.sweep_plan import plan_sweep

URL = "synthetic://synthsaebench-1k?rows=40000&seed=0"
FEATURES_GD = torch.eye(4)[:, :3].clone()
FEATURES_GD[3] = torch.tensor([0.6, 0.8, 0.0])
ATOMS_FD = torch.tensor([[2.0, 0, 0], [0, 0, -1.0], [0.8, 0.6, 0]])


def test_measures_are_these_of_three_latents_and_four_features():
    """Atoms along feature 0, against feature 2, and at cosine 0.96 with feature 3, which is 0.8 with feature 0."""
    nearest_F = nearest_features(ATOMS_FD, FEATURES_GD)
    matched = match(FEATURES_GD, ATOMS_FD, signed_codes=True)
    assert nearest_F.tolist() == [0, 2, 3]
    present_BG = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]]).bool()
    active_BF = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]]).bool()
    counts = Counts.empty(3, 4, 3)
    counts.add(active_BF, present_BG, nearest_F, matched)
    x_BD = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]])
    counts.add_reconstruction(x_BD, 0.5 * x_BD)
    found = recovery(counts, nearest_F, matched)
    assert (found.rows, found.latents, found.true_l0, found.l0) == (4, 3, 1.5, 1.0)
    assert found.r2 == pytest.approx(0.75)
    assert found.mcc == pytest.approx((1 + 1 + 0.96) / 3)
    assert found.precision == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.recall == pytest.approx((1 + 0 + 1) / 3)
    assert found.f1 == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert (found.unique, found.dead) == (1.0, pytest.approx(1 / 3))
    assert found.recovered == 0.75  # feature 1 is matched with no latent
    assert [band.cosine for band in found.bands] == pytest.approx([1, 0, 1, 0.96])
    assert [band.f1 for band in found.bands] == pytest.approx([1, 0, 0, 2 / 3])
    assert [band.frequency for band in found.bands] == [0.5, 0.5, 0.25, 0.25]


def test_bands_are_tenths_of_the_features_in_order_of_frequency():
    frequency_G = torch.arange(25, 0, -1).double()
    cosines_G = torch.where(torch.arange(25) < 4, 0.75, 0.5).double()
    found = bands(frequency_G, cosines_G, torch.zeros(25).double())
    assert [band.features for band in found] == [3] * 5 + [2] * 5
    assert [band.recovered for band in found] == pytest.approx([1, 1 / 3, *[0] * 8])
    assert found[0].frequency == 24.0


def test_the_f1_of_what_is_never_there_is_zero():
    assert f1(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])).tolist() == pytest.approx(
        [0, 2 / 3]
    )


def test_a_dictionary_of_other_rows_has_no_known_features():
    with pytest.raises(UserError, match="dictionary: was trained on s3://b/x, whose features are unknown; train it"):
        dataset_of("s3://b/x", "dictionary")


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_of_generated_rows_is_judged_by_one_command(ray_session, tmp_path: Path):
    content = sweep_content(URL, str(tmp_path / "out"), training={"rows": 128 * 120, "lr": 0.003})
    content["rules"] = [{"when": {"architecture": "topk"}, "set": {"workers": 2}}]
    file = write_sweep(tmp_path / "sweep.yaml", content)
    table = run_sweep(plan_sweep(read_config_file(file, SweepFile), Path(file).read_text()), [])
    assert set(table["status"]) <= {"done", "target missed"}
    command = [sys.executable, "-m", "lexray", "bench", "synthsaebench", str(tmp_path / "out"), "--rows", "2048"]
    printed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=200).stdout
    found = json.loads(printed)["dictionaries"]
    assert sorted(found) == ["relu-w64-l4", "topk-w64-l4"]
    assert 3 < found["topk-w64-l4"]["l0"] <= 4
    assert all(len(one["bands"]) == 10 and one["rows"] == 2048 and one["mcc"] > 0.3 for one in found.values())
