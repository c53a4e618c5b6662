"""Dictionaries find the features that rows were made of."""

from dataclasses import replace

import pytest
from training_synthetic import Dataset, small_config, sparse_features, write_features

from lexray.storage.store import Store
from lexray.training.checkpoint.saved import load_dictionary
from lexray.training.config import EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries.base import Dictionary
from lexray.training.loop.build import build_dictionary
from lexray.training.loop.trainer import Trainer

pytestmark = pytest.mark.usefixtures("process_group")

FEATURES, SITE_WIDTH, ACTIVE, WIDTH = 64, 48, 5, 128
BATCH, STEPS = 256, 800
# Rows have 5 features on average: k in every row misses some and adds others. An L1 penalty misses the weak ones.
ARCHITECTURES = ("topk", "batch_topk", "relu")
PRECISION_AND_RECALL = {"topk": (0.75, 0.75), "batch_topk": (0.9, 0.9), "relu": (0.9, 0.6)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    features = sparse_features(FEATURES, SITE_WIDTH, active=ACTIVE, rows=20_000)
    return write_features(tmp_path_factory.mktemp("data"), features)


def training(dataset: Dataset, name: str) -> TrainingConfig:
    config = small_config(
        dataset,
        name,
        dictionary={"width": WIDTH, "target_l0": ACTIVE, "dead_after_rows": 20 * BATCH},
        rows=STEPS * BATCH,
        optimizer=OptimizerConfig(lr=5e-3),
        every=EveryConfig(log=100, evaluate=200, checkpoint=STEPS, eval_rows=1024),
    )
    return replace(config, data=replace(config.data, batch_rows=BATCH, window_bytes=2**19))


def recovered(dataset: Dataset, dictionary: Dictionary) -> float:
    """Share of the true features that have an atom at a cosine above 0.9."""
    best = (dataset.features.atoms @ dictionary.atoms_FD().T).amax(1)
    return float((best > 0.9).float().mean())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request, dataset, tmp_path_factory):
    """An architecture, its dictionary after training as loaded from disk, and its held-out metrics."""
    folder = tmp_path_factory.mktemp(request.param)
    result = Trainer(config=training(dataset, request.param), store=Store.at(str(folder))).run()
    return request.param, load_dictionary(f"{folder}/dictionary"), result.metrics


def test_at_least_nine_of_ten_features_are_recovered(dataset, trained):
    assert recovered(dataset, trained[1]) >= 0.9


def test_a_recovered_latent_is_active_where_its_feature_is(dataset, trained):
    features, dictionary = dataset.features, trained[1]
    latents = (features.atoms @ dictionary.atoms_FD().T).argmax(1)
    active = dictionary.encode(features.rows[:2000]).dense()[:, latents] > 0
    both = (active & features.present[:2000]).sum()
    precision, recall = PRECISION_AND_RECALL[trained[0]]
    assert both / active.sum() > precision
    assert both / features.present[:2000].sum() > recall


def test_the_target_l0_is_met_on_held_out_rows(trained):
    assert trained[2]["l0"] == pytest.approx(ACTIVE, rel=0.1)


def test_before_training_no_feature_is_known(dataset):
    """The test above can fail."""
    config = training(dataset, "topk")
    assert recovered(dataset, build_dictionary(config, dataset.manifest)) < 0.1
