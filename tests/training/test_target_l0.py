"""On real activations every family without a k reaches the number of active latents that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from lexray.storage.config_file import read_config_file
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.manifest import Manifest
from lexray.storage.store import Store
from lexray.training.codes.base import Code
from lexray.training.codes.penalised import Penalised
from lexray.training.config import DataConfig, EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config
from lexray.training.loop.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("process_group")]


class Case(NamedTuple):
    """An architecture, its options, and what it is trained on."""

    name: str
    options: Mapping[str, Any] = MappingProxyType({})
    inputs: tuple[str, ...] = ("layer3",)
    outputs: tuple[str, ...] = ()
    lr: float = 3e-3
    targets: tuple[int, ...] = (16, 32, 64, 128)


PENALTIES = [
    name
    for name, made in ARCHITECTURES.items()
    if issubclass(made.codes[0] if made.codes else Code, Penalised) and made.kind == "sae"
]
BORROWED = [
    Case("crosscoder", inputs=("layer3", "layer4")),
    Case("transcoder", {"code": "relu"}, outputs=("layer4",)),
    # A step moves every entry of mixtures that sum to 1, so steps are small; thresholds must keep up all the same.
    Case("relaxed_archetypal", {"code": "jumprelu", "threshold_rate": 50}, lr=3e-4),
]
"""Dictionaries of other kinds that have a penalty family's code."""
THRESHOLDS = [
    Case("batch_topk"),
    Case("mp", {"residual_threshold": "auto"}, targets=(4, 8, 16)),
]
"""Codes whose L0 follows from one threshold."""
CASES = [*map(Case, PENALTIES), *BORROWED, *THRESHOLDS]
WIDTH, BATCH, EPOCHS = 768, 1024, 2


@pytest.fixture(scope="module")
def activations(tmp_path_factory) -> tuple[Store, Manifest]:
    """The quickstart's: MiniLM on Python's help pages."""
    folder = tmp_path_factory.mktemp("minilm")
    text = (Path(__file__).resolve().parents[2] / "examples/quickstart/harvest.yaml").read_text()
    (folder / "harvest.yaml").write_text(text.replace("runs/quickstart/activations", str(folder / "activations")))
    config = read_config_file(str(folder / "harvest.yaml"), HarvestFile)
    manifest, _ = harvest(config)
    return Store.at(config.output), manifest


def trained(activations: tuple[Store, Manifest], folder: Path, case: Case, target_l0: int) -> dict[str, float]:
    """Metrics on validation rows, which the target is for, of a short training with the defaults but for the case."""
    store, manifest = activations
    common = {"architecture": case.name, "width": WIDTH, "target_l0": target_l0, "dead_after_rows": 100_000}
    config = TrainingConfig(
        dictionary=dictionary_config(common | dict(case.options)),
        data=DataConfig(
            url=store.url,
            dataset_id=manifest.id,
            inputs=case.inputs,
            outputs=case.outputs,
            batch_rows=BATCH,
            held_out=0.2,
        ),
        rows=EPOCHS * manifest.rows * 9 // 10,
        optimizer=OptimizerConfig(lr=case.lr, decay=0.3),
        every=EveryConfig(log=100, evaluate=25, checkpoint=10_000, eval_rows=8192),
    )
    return Trainer(config=config, store=Store.at(str(folder / f"{case.name}-{target_l0}"))).run().validation


def test_there_are_the_seven_penalty_families():
    assert len(PENALTIES) == 7


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_target_is_met_within_a_tenth_and_more_latents_reconstruct_better(activations, tmp_path, case):
    found = [trained(activations, tmp_path, case, target) for target in case.targets]
    reached = [metrics["l0"] for metrics in found]
    assert reached == pytest.approx(case.targets, rel=0.1)
    assert reached == sorted(reached)
    fvu = [metrics["fvu"] for metrics in found]
    assert fvu == sorted(fvu, reverse=True)
