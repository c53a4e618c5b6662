"""No document that somebody else wrote ends in a traceback, hangs, or takes memory by what it claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from readers import READERS

FOLDER = Path(__file__).parent
GRACE_S = 240
"""For imports, and for a case that hangs where no signal reaches it."""


@pytest.mark.fuzz
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.timeout(1200)
def test_damaged_and_hostile_documents_are_refused_in_one_line(
    reader: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = request.config.getoption("--fuzz-s") / len(READERS)
    seed = request.config.getoption("--fuzz-seed") or time.time_ns()
    command = [sys.executable, str(FOLDER / "run.py"), reader, str(seed), str(seconds), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + GRACE_S)
    assert done.returncode == 0, f"--fuzz-seed {seed}\n{done.stderr}"
    tried = json.loads(done.stdout.splitlines()[-1])
    assert tried["cases"] > 5
    assert tried["refused"] > 0 or reader == "measures"  # the report goes on without damaged measures
    print(f"{reader}: {tried['cases']} documents, {tried['refused']} refused")
