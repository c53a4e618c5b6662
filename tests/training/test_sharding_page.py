"""The numbers of the page on sharding are those of the formulas."""

from __future__ import annotations

import re
from pathlib import Path

from lexray.training.config import DataConfig, TrainingConfig
from lexray.training.cost.memory import needs, rank_memory, shapes_of
from lexray.training.cost.step_memory import Rows
from lexray.training.cost.traffic import over_latents, over_rows
from lexray.training.dictionaries import dictionary_config
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.mesh.settings import MeshConfig

PAGE = Path(__file__).parents[2] / "docs" / "sharding.md"
ROW = re.compile(
    r"\| *(?P<sizes>[\d, ]*)\| (?P<data>\d) x (?P<feature>\d) \| (?P<stage>\d) \| (?P<numbers>[\d. |]+) \|"
)
BATCH_ROWS = 4096


def numbers(width: int, latents: int, mesh: MeshConfig) -> list[str]:
    """What the table says of TopK: GB held, in a step, at the peak, on the host; sent over rows and over latents."""
    sites = Sites.same(SiteStatistics(mean=(0.0,) * width, mean_squared_norm=1.0))
    k = 32 if width == 768 else 64
    dictionary = dictionary_config({"architecture": "topk", "width": latents, "target_l0": k})
    data = DataConfig(url="nowhere", dataset_id="", inputs=("site",), batch_rows=BATCH_ROWS)
    config = TrainingConfig(dictionary=dictionary, data=data, rows=1, mesh=mesh)
    memory, shapes = rank_memory(config, sites), shapes_of(dictionary, sites, mesh.feature)
    over_slices = over_latents(dictionary, shapes, Rows(BATCH_ROWS // mesh.data, BATCH_ROWS)).sent(mesh.feature)
    return [
        *(f"{size / 1e9:.2f}" for size in (memory.held, memory.step + memory.gathered, memory.on_device)),
        f"{needs(config, sites, on_gpu=True).host / 1e9:.1f}",
        *(f"{size / 1e9:.3f}" for size in (over_rows(shapes, mesh).sent(mesh.data), over_slices)),
    ]


def test_the_table_of_memory_and_traffic_is_what_the_formulas_say() -> None:
    sizes, rows = (0, 0), 0
    for found in ROW.finditer(PAGE.read_text()):
        if found["sizes"].strip():
            width, latents = re.split(r", (?=\d)", found["sizes"].strip())
            sizes = int(width.replace(",", "")), int(latents.replace(",", ""))
        data, feature, stage = (int(found[name]) for name in ("data", "feature", "stage"))
        expected = numbers(*sizes, MeshConfig(data=data, feature=feature, zero_stage=stage))
        assert found["numbers"].split(" | ") == expected, (sizes, found[0])
        rows += 1
    assert rows == 18
