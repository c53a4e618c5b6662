"""From a sweep file to its trials: which sites each architecture reads, which options win, what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import yaml
from synthetic import write_rows

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.sweep_plan import plan_sweep
from lexray.tuning.trials import Trial

ROWS, WIDTH = 2000, 12
SMALL_AXES = {"architecture": ["topk"], "width": [24], "target_l0": [4]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Two signed sites of different widths, and one without negative values."""
    generator = torch.Generator().manual_seed(0)
    vectors = {
        "early": torch.randn(ROWS, WIDTH, generator=generator),
        "late": torch.randn(ROWS, WIDTH - 4, generator=generator),
        "positive": torch.rand(ROWS, WIDTH, generator=generator),
        "rarely_negative": torch.rand(ROWS, WIDTH, generator=generator) - 0.01,
        "loud": torch.randn(ROWS, WIDTH, generator=generator),
        "flat": torch.full((ROWS, WIDTH), 0.1),
        "tiny": 1e-9 * torch.randn(ROWS, WIDTH, generator=generator),
    }
    vectors["loud"][::10] *= 100
    written = write_rows(tmp_path_factory.mktemp("data"), ROWS, vectors=vectors, dtype="float32", chunk_rows=64)
    return written.store.url


@pytest.fixture
def trials(data, tmp_path):
    """The trials of a small sweep file whose blocks are changed."""

    def make(**changes: Any) -> list[Trial]:
        content = {
            "name": "small",
            "output": str(tmp_path / "out"),
            "data": {
                "url": data,
                "site": "early",
                "output_site": "late",
                "sites": ["early", "late"],
                "batch_rows": 128,
            },
            "training": {"rows": 1280},
            "axes": SMALL_AXES,
            **{name: block for name, block in changes.items() if name != "data"},
        }
        content["data"] |= changes.get("data", {})
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(content))
        return plan_sweep(read_config_file(str(file), SweepFile), file.read_text()).trials

    return make


def axes(*architectures: str, width: int = 24, target_l0: int = 4, **others: Any) -> dict[str, Any]:
    return {"architecture": list(architectures), "width": [width], "target_l0": [target_l0], **others}


def test_each_kind_of_dictionary_reads_its_own_sites(trials):
    found = {
        t.config.dictionary.architecture: t.config.data for t in trials(axes=axes("topk", "transcoder", "crosscoder"))
    }
    assert (found["topk"].inputs, found["topk"].outputs) == (("early",), ())
    assert (found["transcoder"].inputs, found["transcoder"].outputs) == (("early",), ("late",))
    assert (found["crosscoder"].inputs, found["crosscoder"].outputs) == (("early", "late"), ())
    assert found["crosscoder"].sites == found["transcoder"].sites == ("early", "late")


def test_the_sites_belong_to_a_trials_identity(trials):
    ids = {trials(data={"site": site})[0].id for site in ("early", "late", "positive")}
    assert len(ids) == 3


def test_an_architectures_own_option_wins_over_the_axis_and_makes_one_trial_of_its_values(trials):
    made = trials(
        axes={"architecture": ["topk", "pca"], "width": [24, 48], "target_l0": [4]}, options={"pca": {"width": WIDTH}}
    )
    widths = sorted((t.config.dictionary.architecture, t.config.dictionary.width) for t in made)
    assert widths == [("pca", WIDTH), ("topk", 24), ("topk", 48)]


def test_an_option_for_all_does_not_win_over_an_axis(trials):
    made = trials(axes=axes("topk", k_aux=[2, 3]), options={"all": {"k_aux": 5}})
    assert sorted(t.config.dictionary.code.k_aux for t in made) == [2, 3]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"axes": axes("transcoder"), "data": {"output_site": None}},
            "data.output_site: transcoder reads one site and",
        ),
        ({"axes": axes("skip_transcoder"), "data": {"output_site": "early"}}, "cannot reconstruct the site it reads"),
        (
            {"axes": axes("crosscoder"), "data": {"sites": ["early"]}},
            "data.sites: crosscoder reads several sites at once",
        ),
        ({"axes": axes("crosscoder"), "data": {"sites": ["late", "late"]}}, "data.sites: 'late' stands there 2 times"),
        ({"axes": axes("topk"), "data": {"site": None}}, "data.site: required for topk, but not given"),
        ({"axes": axes("crosscoder"), "data": {"sites": ["early", "no"]}}, "data.sites: the dataset has no site 'no'"),
        ({"axes": axes("topk", target_l0=25)}, "target_l0: 25 must be at most the width 24"),
        ({"axes": axes("pca")}, f"width: 24, but PCA of this site has {WIDTH} components at most"),
        ({"axes": axes("kmeans")}, "target_l0: 4, but k-means has one active latent"),
        ({"axes": axes("archetypal", candidates=[5000])}, "candidates: 5,000 are more than the dataset's 1,"),
        ({"axes": axes("snmf", width=3000)}, "width: 3,000 latents are more than the dataset's 1,"),
        ({"axes": axes("nmf")}, "nmf: activations must not be negative, the site has a mean of -"),
        ({"axes": axes("nmf"), "data": {"site": "rarely_negative"}}, "site 'rarely_negative' has -0.0"),
        ({"axes": axes("crosscoder", normaliser=["whiten"])}, "normaliser: whiten works on one site, 2 are given"),
        ({"axes": axes("group_max", width=25)}, "target_l0: the width 25 is not a multiple of 4 groups"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused_in_one_line_before_anything_starts(trials, tmp_path, changes, line):
    with pytest.raises(UserError) as refusal:
        trials(**changes)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_rows_of_outlying_norm_are_no_training_rows_and_a_filter_that_drops_many_is_refused(trials, tmp_path):
    data = {"site": "loud"}
    epoch = {"training": {"epochs": 1}}
    rows = {r: trials(data={**data, "max_norm_ratio": r}, **epoch)[0].config.rows for r in (None, 10, 1000)}
    assert rows[None] == rows[1000] > rows[10]
    with pytest.raises(UserError, match=r"data.max_norm_ratio: 0.5 drops [\d,]+ of [\d,]+ rows \(.*%, at most 20% are"):
        trials(data={**data, "max_norm_ratio": 0.5})


def test_nmf_takes_activations_that_are_not_negative_and_with_split_any(trials):
    assert len(trials(axes=axes("nmf"), data={"site": "positive"})) == 1
    assert len(trials(axes=axes("nmf"), options={"nmf": {"signed_input": "split"}})) == 1


# Meshes -----------------------------------------------------------------------------------------------------------


def test_a_mesh_has_workers_along_both_axes_and_workers_alone_split_the_rows(trials):
    (made,) = trials(resources={"mesh": {"data": 2, "feature": 3}})
    assert (made.config.mesh.data, made.config.mesh.feature, made.footprint.workers) == (2, 3, 6)
    (rows,) = trials(resources={"workers": 4})
    assert (rows.config.mesh.data, rows.config.mesh.feature, rows.footprint.workers) == (4, 1, 4)
    (one,) = trials()
    assert one.footprint.workers == 1
    assert {made.id, rows.id, one.id} == {one.id}, "how many workers trained it is no part of what a dictionary is"


def test_a_rule_gives_some_trials_another_mesh(trials):
    rules = [
        {"when": {"width": 48}, "set": {"mesh": {"feature": 2}}},
        {"when": {"width": 24}, "set": {"workers": 3}},
    ]
    made = trials(axes=axes("topk") | {"width": [24, 48]}, resources={"workers": 2}, rules=rules)
    assert [(t.config.mesh.data, t.config.mesh.feature) for t in made] == [(3, 1), (1, 2)]


def test_dictionaries_that_learn_by_statistics_split_the_rows_over_the_whole_mesh(trials):
    (made,) = trials(axes=axes("snmf"), resources={"mesh": {"data": 2, "feature": 5}})
    assert made.footprint.workers == 10
    with pytest.raises(UserError, match="20 data-parallel workers, but the stream has 16 lanes"):
        trials(axes=axes("snmf"), resources={"mesh": {"data": 4, "feature": 5}})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"resources": {"mesh": {"feature": 5}}},
            "mesh.feature: 5 parts, but the width 24 is not a multiple of that; use 25",
        ),
        (
            {"axes": axes("group_max"), "resources": {"mesh": {"feature": 3}}},
            "mesh.feature: 3 parts, but 4 groups (target_l0) cannot be dealt to them",
        ),
        (
            {"resources": {"mesh": {"data": 2}, "workers": 2}},
            "resources: give `workers` (2) or `mesh`, one of the two",
        ),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(trials, changes, line):
    with pytest.raises(UserError) as refused:
        trials(**changes)
    assert line in str(refused.value)


# Options of the engine --------------------------------------------------------------------------------------------


def test_options_of_the_engine_reach_the_trials(trials):
    resources = {"workers": 2, "offload_optimizer": True, "micro_batches": 4, "check_rows": True}
    training = {"rows": 1280, "precision": "bf16", "lr_scale": {"b_dec": 2}}
    (trial,) = trials(resources=resources, training=training)
    mesh, optimizer = trial.config.mesh, trial.config.optimizer
    assert (mesh.offload_optimizer, mesh.micro_batches, mesh.check_rows, mesh.stage) == (True, 4, True, 1)
    assert (optimizer.precision, optimizer.lr_scale) == ("bf16", {"b_dec": 2.0})


def test_rules_set_options_of_the_engine(trials):
    rule = {
        "when": {"architecture": "relu"},
        "set": {"micro_batches": 2, "precision": "bf16", "lr_scale": {"b_enc": 3}},
    }
    found = {t.config.dictionary.architecture: t.config for t in trials(axes=axes("topk", "relu"), rules=[rule])}
    assert (found["relu"].mesh.micro_batches, found["relu"].optimizer.precision) == (2, "bf16")
    assert found["relu"].optimizer.lr_scale == {"b_enc": 3.0}
    assert (found["topk"].mesh.micro_batches, found["topk"].optimizer.precision) == (1, "fp32")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"resources": {"offload_optimizer": True, "zero_stage": 0}},
            "offload_optimizer: not possible with zero_stage 0",
        ),
        ({"resources": {"micro_batches": 2}, "axes": axes("pca", width=8)}, "but pca learns from whole batches"),
        (
            {"resources": {"micro_batches": 65, "workers": 2}},
            "micro_batches: 65, but a worker has only 64 rows of a batch",
        ),
        (
            {"resources": {"micro_batches": 41, "workers": 3}},
            "micro_batches: 41, but a worker has only 40 rows of a batch",
        ),
        ({"training": {"rows": 1280, "lr_scale": {"b_dec": -1}}}, r"lr_scale\.b_dec: -1 must be at least 0"),
        (
            {"training": {"rows": 1280, "lr_scale": {"scaled_log_threshold": 0.1}}},
            r"lr_scale\.scaled_log_threshold: topk has no such parameter; it has W_enc, b_enc, W_dec, b_dec",
        ),
        ({"training": {"rows": 1280, "precision": "fp8"}}, r"training\.precision"),
    ],
)
def test_options_that_do_not_fit_are_refused(trials, changes, said):
    with pytest.raises(UserError, match=said):
        trials(**changes)


@pytest.mark.parametrize("changes", [
    {"data": {"site": "flat"}},
    {"axes": axes("transcoder"), "data": {"output_site": "flat"}},
    {"axes": axes("crosscoder"), "data": {"sites": ["early", "flat"]}},
    {"axes": axes("topk", site=["early", "flat"])},
])  # fmt: skip
def test_a_site_without_variance_is_refused_by_the_plan(trials, data, changes):
    """Every row is the same there: FVU would be 0 / 0."""
    with pytest.raises(UserError) as error:
        trials(**changes)
    assert f": dataset {data}: site 'flat' has no variance" in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_that_are_too_small_for_adam_without_a_normaliser_are_refused_by_the_plan(trials):
    assert trials(data={"site": "tiny"})
    with pytest.raises(UserError, match=r"normaliser: none leaves site 'tiny' .* use normaliser: standard"):
        trials(data={"site": "tiny"}, options={"all": {"normaliser": "none"}})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"axes": SMALL_AXES | {"lr": [1e-3, 20]}},
            "axes.lr: 20 must be above 0 and at most 10",
        ),
        (
            {"axes": SMALL_AXES | {"target_l0": [65]}},
            "axes.target_l0: 65 must be at most the width",
        ),
        ({"options": {"topk": {"k_aux": 0}}}, "options.topk.k_aux: 0 must be at least 1"),
        ({"options": {"all": {"k_aux": 0}}}, "options.all.k_aux: 0 must be at least 1"),
        ({"rules": [{"when": {}, "set": {"k_aux": 0}}]}, "rules.set.k_aux: 0 must be at least 1"),
        ({"rules": [{"when": {}, "set": {"lr": 20}}]}, "rules.set.lr: 20 must be above 0 and at most 10"),
        ({"training": {"rows": 1280, "lr_scale": {"w": 2}}}, "training.lr_scale.w: topk has no such parameter"),
        ({"resources": {"mesh": {"feature": 5}}}, "resources.mesh.feature: 5 parts, but the width"),
        ({"resources": {"workers": 17}}, "resources.workers: 17 data-parallel workers"),
    ],
)
def test_an_error_of_a_trial_says_file_field_and_trial(trials, tmp_path, changes, line):
    with pytest.raises(UserError) as error:
        trials(**changes)
    text = str(error.value)
    assert re.match(r"\S+/\w+\.yaml: ", text)
    assert text.split(": ", 1)[1].startswith(line)
    assert re.search(r" \(trial: architecture topk, .*target_l0 \d+.*\)$", text)
    assert text.count(".yaml") == text.count("(trial: ") == 1
