"""The quickstart as a user runs it, and whether what comes out makes sense. Takes minutes."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EXAMPLES = Path(__file__).parent.parent / "examples" / "quickstart"


def lexray(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "lexray", *command], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    harvested = json.loads(lexray(folder, "harvest", str(EXAMPLES / "harvest.yaml"), "--json").stdout)
    swept = lexray(folder, "sweep", str(EXAMPLES / "sweep.yaml"))
    return folder, harvested, swept


@pytest.fixture(scope="module")
def frontier(quickstart) -> pd.DataFrame:
    return pd.read_parquet(quickstart[0] / "runs/quickstart/sweep/frontier.parquet")


def test_the_dataset_is_the_one_promised(quickstart):
    _, harvested, _ = quickstart
    assert harvested["rows"] >= 100_000
    assert harvested["sites"]["layer3"]["width"] == 384
    assert harvested["sites"]["layer3"]["dtype"] == "bfloat16"


def test_twelve_trials_are_done_one_of_them_by_two_workers(frontier):
    assert len(frontier) == 12
    assert set(frontier["status"]) == {"done"}
    assert (frontier["workers"] == 2).sum() == 1
    assert set(frontier["architecture"]) == {"relu", "topk", "batch_topk"}


def test_fvu_falls_with_l0_and_with_width(frontier):
    fvu = frontier.set_index(["architecture", "width", "target_l0"])["fvu"]
    for architecture in ("relu", "topk", "batch_topk"):
        for width in (1536, 3072):
            assert fvu[architecture, width, 32] < fvu[architecture, width, 16]
        for l0 in (16, 32):
            assert fvu[architecture, 3072, l0] < fvu[architecture, 1536, l0]


def test_l0_is_within_a_tenth_of_its_target(frontier):
    assert ((frontier["l0"] / frontier["target_l0"] - 1).abs() <= 0.1).all()


def test_every_trial_beats_the_mean_predictor_by_far(frontier):
    assert (frontier["fvu"] < 0.5).all()


def test_table_parquet_picture_and_report_agree(quickstart, frontier):
    folder, _, swept = quickstart
    out = folder / "runs/quickstart/sweep"
    html = (out / "report.html").read_text()
    for row in frontier.itertuples():
        (line,) = [
            line
            for line in swept.stdout.splitlines()
            if line.split()[:1] and f" {row.l0:.2f} " in line and f"{row.fvu:.4f}" in line
        ]
        assert str(row.width) in line
        assert f'data-value="{row.fvu!r}"' in html
        assert f'data-value="{row.l0!r}"' in html
    assert len(re.findall(r"<details", html)) >= 12
    assert matplotlib.image.imread(io.BytesIO((out / "frontier.png").read_bytes())).shape[0] > 500


def test_again_nothing_is_trained(quickstart, frontier):
    folder, _, _ = quickstart
    weights = list(folder.rglob("dictionary.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert json.loads(lexray(folder, "harvest", str(EXAMPLES / "harvest.yaml"), "--json").stdout)["reused"]
    again = json.loads(lexray(folder, "sweep", str(EXAMPLES / "sweep.yaml"), "--json").stdout)
    assert [trial["fvu"] for trial in again["trials"]] == pytest.approx(list(frontier["fvu"]), rel=1e-9)
    assert [path.stat().st_mtime_ns for path in weights] == before


def test_the_lines_of_the_readme_load_and_encode(quickstart):
    readme = (EXAMPLES.parent.parent / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=quickstart[0], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([8, 384])" in done.stdout
