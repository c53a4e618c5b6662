"""Floating-point operations of a training, by hand."""

from training_cases import LEARNED_DEFAULTS, default_case, sites_of

from lexray.training.config import DataConfig, TrainingConfig
from lexray.training.cost.operations import training_flop
from lexray.training.dictionaries import dictionary_config
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.mesh.settings import MeshConfig

SITES = Sites.same(SiteStatistics(mean=(0.0,) * 10, mean_squared_norm=1.0))


def config_of(architecture: str, mesh: MeshConfig | None = None, **options) -> TrainingConfig:
    return TrainingConfig(
        dictionary=dictionary_config({"architecture": architecture, "width": 64, "target_l0": 4, **options}),
        data=DataConfig(url="u", dataset_id="x", inputs=("x",), batch_rows=32),
        rows=320,
        mesh=mesh or MeshConfig(),
    )


def test_a_sparse_step_has_one_dense_product_and_four_of_its_pairs():
    """320 rows: 64 x 10 for all pre-activations, then 10 to the encoder and 3 x 10 of each of 4 chosen pairs."""
    assert training_flop(config_of("topk", aux_weight=0), SITES) == 2 * 320 * (640 + 4 * 40)


def test_a_dense_step_has_five_products():
    assert training_flop(config_of("relu"), SITES) == 2 * 320 * 5 * 640


def test_a_mesh_does_not_change_what_is_computed():
    for name, options in (("relu", {}), ("topk", {"aux_weight": 0})):
        alone = training_flop(config_of(name, **options), SITES)
        for mesh in (MeshConfig(data=2), MeshConfig(data=2, feature=2), MeshConfig(micro_batches=4)):
            assert training_flop(config_of(name, mesh, **options), SITES) == alone


def test_every_architecture_that_learns_by_gradient_says_its_operations():
    for case in LEARNED_DEFAULTS:
        sites = sites_of(case)
        assert training_flop(config_of(case.architecture, **case.options), sites) > 0
    assert training_flop(config_of("pca"), sites_of(default_case("topk"))) is None
