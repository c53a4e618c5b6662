"""An exported dictionary computes the same from raw rows; what has no place in a format is refused in one line."""

import ast
import json
from pathlib import Path

import pytest
import torch
from export_cases import (
    CASES,
    D_OUT,
    DICTIONARY_LEARNING,
    NORMALISERS,
    SAE_LENS,
    SPARSIFY,
    B,
    D,
    F,
    K,
    code_scale,
    raw_rows,
    relative_difference,
    saved,
    statistics,
    trained,
)
from quick_cases import quick
from safetensors.torch import load_file, save_file

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.checkpoint.saved import load_dictionary, read_dictionary_config
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.export import FORMATS, export_dictionary
from lexray.training.export.import_sae_lens import import_sae_lens

PLACES = {"sae-lens": SAE_LENS, "dictionary-learning": DICTIONARY_LEARNING, "sparsify": SPARSIFY}
FOLDED = [(case, kind) for case in SAE_LENS for kind in NORMALISERS if not (kind == "whiten" and case.startswith("mp"))]
X_BD = raw_rows(D)


def folder_of(tmp_path: Path, case: str, normaliser: str = "standard", **options) -> str:
    return saved(tmp_path / "dictionary", trained(case, normaliser, **options))


def refusal(url: str, to: str, path: Path, **options) -> str:
    """The one line of an export that leaves nothing behind."""
    with pytest.raises(UserError) as error:
        export_dictionary(url, to, str(path), **options)
    assert "\n" not in str(error.value)
    assert not path.exists()
    return str(error.value)


# The same codes and reconstructions -------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "normaliser"), quick(FOLDED, FOLDED[::3]))
def test_an_export_imported_again_has_the_same_codes_and_reconstructions(tmp_path, case, normaliser):
    loaded = load_dictionary(folder_of(tmp_path, case, normaliser))
    exported = export_dictionary(str(tmp_path / "dictionary"), "sae-lens", str(tmp_path / "exported"))
    assert exported.architecture == SAE_LENS[case]
    import_sae_lens(exported.url, str(tmp_path / "imported"))
    imported = load_dictionary(str(tmp_path / "imported"))
    expected_BF = loaded.encode(X_BD).dense() * code_scale(loaded)
    assert (expected_BF != 0).sum() > 2 * B
    assert relative_difference(imported.encode(X_BD).dense(), expected_BF) < 1e-5
    assert relative_difference(imported(X_BD), loaded(X_BD)) < 1e-5


@pytest.mark.parametrize("case", ["relu", "gated-free", "jumprelu-free", "topk-free", "batch_topk", "transcoder-relu"])
def test_unit_atoms_give_their_length_to_the_code_and_leave_reconstructions_alone(tmp_path, case):
    loaded = load_dictionary(folder_of(tmp_path, case))
    export_dictionary(str(tmp_path / "dictionary"), "sae-lens", str(tmp_path / "plain"))
    export_dictionary(str(tmp_path / "dictionary"), "sae-lens", str(tmp_path / "unit"), unit_atoms=True)
    norms_F = load_file(tmp_path / "plain/sae_weights.safetensors")["W_dec"].norm(dim=1)
    assert (norms_F - 1).abs().min() > 0.01
    unit_F = load_file(tmp_path / "unit/sae_weights.safetensors")["W_dec"].norm(dim=1)
    torch.testing.assert_close(unit_F, torch.ones(F))
    import_sae_lens(str(tmp_path / "unit"), str(tmp_path / "imported"))
    imported = load_dictionary(str(tmp_path / "imported"))
    expected_BF = loaded.encode(X_BD).dense() * code_scale(loaded) * norms_F
    assert relative_difference(imported.encode(X_BD).dense(), expected_BF) < 1e-5
    assert relative_difference(imported(X_BD), loaded(X_BD)) < 1e-5


def test_unit_atoms_of_whitened_topk_are_refused_because_the_choice_would_change(tmp_path):
    line = refusal(folder_of(tmp_path, "topk", "whiten"), "sae-lens", tmp_path / "out", unit_atoms=True)
    assert "dividing by that would change which are chosen" in line


def test_an_imported_dictionary_exports_to_what_it_was(tmp_path):
    folder_of(tmp_path, "jumprelu")
    export_dictionary(str(tmp_path / "dictionary"), "sae-lens", str(tmp_path / "first"))
    import_sae_lens(str(tmp_path / "first"), str(tmp_path / "imported"))
    export_dictionary(str(tmp_path / "imported"), "sae-lens", str(tmp_path / "second"))
    first, second = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("first", "second"))
    torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6)


# Folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_has_a_place_for_a_case_or_refuses_it_and_leaves_nothing(tmp_path, case, to):
    width = D if to == "sparsify" else D_OUT
    url = folder_of(tmp_path, case, output_width=width)
    if case not in PLACES[to]:
        assert CASES[case][0] in refusal(url, to, tmp_path / "out")
        return
    exported = export_dictionary(url, to, str(tmp_path / "out"))
    assert exported.architecture == PLACES[to][case]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(exported.files)


@pytest.mark.parametrize("case", ["relu", "p_anneal"])
def test_relu_with_unit_atoms_is_the_class_whose_loader_wants_them(tmp_path, case):
    url = folder_of(tmp_path, case)
    plain = export_dictionary(url, "dictionary-learning", str(tmp_path / "plain"))
    unit = export_dictionary(url, "dictionary-learning", str(tmp_path / "unit"), unit_atoms=True)
    assert (plain.architecture, unit.architecture) == ("AutoEncoderNew", "AutoEncoder")


FILES = {
    "sae-lens": {"cfg.json", "sae_weights.safetensors"},
    "dictionary-learning": {"config.json", "ae.pt"},
    "sparsify": {"cfg.json", "sae.safetensors"},
}


@pytest.mark.parametrize("to", FORMATS)
def test_a_folder_holds_the_files_of_its_format_and_no_pickle_but_the_one_that_must_be(tmp_path, to):
    exported = export_dictionary(folder_of(tmp_path, "topk"), to, str(tmp_path / "out"))
    assert set(exported.files) == FILES[to]
    said = any("ae.pt" in note for note in exported.notes)
    assert said == (to == "dictionary-learning")


def test_ae_pt_is_plain_tensors_that_load_without_running_code(tmp_path):
    export_dictionary(folder_of(tmp_path, "batch_topk"), "dictionary-learning", str(tmp_path / "out"))
    tensors = torch.load(tmp_path / "out/ae.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert (int(tensors["k"]), round(float(tensors["threshold"]), 6)) == (K, 0.25)


def test_no_file_of_the_source_runs_a_pickle():
    """`.pt` files of users are read as plain weights alone, which executes nothing."""
    root = Path(__file__).parents[2]
    sources = [p for floor in ("storage", "training", "tuning", "cluster") for p in (root / floor).rglob("*.py")]
    assert len(sources) > 50
    calls = [call for p in sources for call in ast.walk(ast.parse(p.read_text())) if isinstance(call, ast.Call)]
    loads = [
        ast.unparse(call) for call in calls if ast.unparse(call.func) in ("torch.load", "pickle.load", "pickle.loads")
    ]
    assert all(text.startswith("torch.load(") and "weights_only=True" in text for text in loads), loads


ABOUT = {
    "sites": {"inputs": [{"name": "middle", "source": "hidden state after layer 3"}]},
    "data": {
        "provenance": {
            "settings": {"model": "gpt2", "context_length": 64, "sites": {"middle": {"hidden_state": 3}}},
            "model": {"num_layers": 12},
        }
    },
    "held_out": {"l0": 5.0},
    "training": {"rows": 6400, "data": {"batch_rows": 64}, "optimizer": {"lr": 0.001}},
}


def test_a_folder_says_where_the_dictionary_came_from(tmp_path):
    url = saved(tmp_path / "dictionary", trained("topk"), **ABOUT)
    for to in FORMATS:
        export_dictionary(url, to, str(tmp_path / to))
    metadata = json.loads((tmp_path / "sae-lens/cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "gpt2"
    assert metadata["hook_name"] == "blocks.2.hook_resid_post"
    assert (metadata["context_size"], metadata["l0"]) == (64, 5.0)
    trainer = json.loads((tmp_path / "dictionary-learning/config.json").read_text())["trainer"]
    assert (trainer["trainer_class"], trainer["lm_name"], trainer["layer"]) == ("TopKTrainer", "gpt2", 2)
    assert (trainer["steps"], trainer["lr"], trainer["k"]) == (100, 0.001, K)
    assert json.loads((tmp_path / "sparsify/cfg.json").read_text())["k"] == K


def test_the_last_hidden_state_names_no_hook_because_models_differ_in_a_norm_behind_it(tmp_path):
    about = json.loads(json.dumps(ABOUT))
    about["data"]["provenance"]["settings"]["sites"]["middle"]["hidden_state"] = 12
    export_dictionary(saved(tmp_path / "dictionary", trained("topk"), **about), "sae-lens", str(tmp_path / "out"))
    assert "hook_name" not in json.loads((tmp_path / "out/cfg.json").read_text())["metadata"]


def test_b_dec_is_folded_out_of_every_encoder_but_that_of_matching_pursuit(tmp_path):
    for case in SAE_LENS:
        export_dictionary(saved(tmp_path / case, trained(case)), "sae-lens", str(tmp_path / f"{case}-out"))
        config = json.loads((tmp_path / f"{case}-out/cfg.json").read_text())
        assert config["apply_b_dec_to_input"] == case.startswith("mp")


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("crosscoder", {}, "no format has a place for a crosscoder"),
        ("crosscoder_batch_topk", {}, "no format has a place for a crosscoder"),
        ("omp", {}, "no format has orthogonal pursuit"),
        ("pca", {"width": D}, "its code is solved for, not encoded"),
        ("kmeans", {"target_l0": 1}, "its code is solved for, not encoded"),
        ("snmf", {}, "its code is solved for, not encoded"),
        ("nmf", {"signed_input": "split"}, "its code is solved for, not encoded"),
    ],
)
def test_what_has_no_place_anywhere_is_refused_with_the_reason(tmp_path, to, architecture, options, reason):
    config = dictionary_config({"architecture": architecture, "width": F, "target_l0": K} | options)
    site = statistics(X_BD)
    made = make_dictionary(config, Sites.same(*[site] * (2 if "crosscoder" in architecture else 1)))
    line = refusal(saved(tmp_path / "dictionary", made), to, tmp_path / "out")
    assert line.startswith(f"{architecture}: ")
    assert reason in line


@pytest.mark.parametrize(
    ("case", "normaliser", "options", "to", "reason"),
    [
        ("topk", "layer_norm", {}, "sae-lens", "layer_norm cannot be folded"),
        ("mp", "whiten", {}, "sae-lens", "whiten bends matching pursuit's atoms"),
        ("mp", "standard", {"inference": "omp"}, "sae-lens", "no format has orthogonal pursuit"),
        ("group_max", "standard", {}, "sae-lens", "SAELens has no group_max activation"),
        ("transcoder", "standard", {}, "sae-lens", "relu and jumprelu codes, not topk; sparsify has topk"),
        ("abs_topk", "standard", {}, "dictionary-learning", "no abs_topk; try sae-lens"),
        ("mp", "standard", {}, "dictionary-learning", "no pursuit; try sae-lens"),
        ("group_max", "standard", {}, "dictionary-learning", "no group_max; try sparsify"),
        ("skip_transcoder-relu", "standard", {}, "dictionary-learning", "has no transcoders"),
        ("batch_topk", "standard", {}, "sparsify", "sparsify has topk and groupmax, no jumprelu"),
        ("skip_transcoder", "standard", {}, "sparsify", f"the sites are {D} and {D_OUT} wide"),
    ],
)
def test_what_a_format_cannot_say_is_refused_with_the_reason(tmp_path, case, normaliser, options, to, reason):
    line = refusal(folder_of(tmp_path, case, normaliser, **options), to, tmp_path / "out")
    assert reason in line
    if line.endswith(("try sae-lens", "try sparsify")):  # what is advised is no dead end
        assert case in PLACES[line.rpartition(" ")[2]]


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path):
    assert "known: sae-lens, dictionary-learning, sparsify" in refusal(
        folder_of(tmp_path, "topk"), "sae", tmp_path / "o"
    )


def test_a_folder_with_something_in_it_is_not_written_over(tmp_path):
    url = folder_of(tmp_path, "topk")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="there is something there already"):
        export_dictionary(url, "sae-lens", str(tmp_path / "out"))
    with pytest.raises(UserError, match="there is something there already"):
        export_dictionary(url, "sae-lens", str(tmp_path / "out/notes.txt"))
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_matching_pursuit_with_a_residual_threshold_says_which_rows_differ(tmp_path):
    exported = export_dictionary(folder_of(tmp_path, "mp-repeat"), "sae-lens", str(tmp_path / "out"))
    scale = float(trained("mp-repeat").input.scale_D[0])
    assert any(f"closer than {0.05 * scale:.4g} to b_dec" in note for note in exported.notes)
    config = json.loads((tmp_path / "out/cfg.json").read_text())
    assert config["residual_threshold"] == pytest.approx(0.05 * scale)
    assert (config["max_iterations"], config["stop_on_duplicate_support"]) == (9, True)


# Import -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sae_lens_folder(tmp_path) -> Path:
    export_dictionary(folder_of(tmp_path, "topk", "none"), "sae-lens", str(tmp_path / "sae"))
    return tmp_path / "sae"


def edit(folder: Path, **changes) -> None:
    content = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(content | changes))


def import_refusal(folder: Path, path: Path) -> str:
    with pytest.raises(UserError) as error:
        import_sae_lens(str(folder), str(path))
    assert "\n" not in str(error.value)
    assert not path.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' has no place; known: standard"),
        ({"architecture": "batchtopk"}, "has no place"),
        ({"architecture": None}, "names no architecture"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is layer_norm"),
        ({"normalize_activations": "expected_average_only_in"}, "which is not in the weights"),
        ({"metadata": {}}, "written before SAELens 6"),
        ({"metadata": {"sae_lens_version": "5.10.2"}}, "written before SAELens 6"),
        ({"architecture": "gated", "k": None}, "it has no b_gate, which cfg.json (gated"),
        ({"architecture": "jumprelu", "k": None}, "it has no threshold, which cfg.json (jumprelu"),
        ({"k": F + 1}, f"k: {F + 1} is not a whole number from 1 to {F}"),
    ],
)
def test_a_sae_lens_folder_that_does_not_fit_is_refused(sae_lens_folder, tmp_path, changes, reason):
    edit(sae_lens_folder, **changes)
    assert reason in import_refusal(sae_lens_folder, tmp_path / "out")


def test_weights_of_half_precision_are_read_as_float32_and_that_is_said(sae_lens_folder, tmp_path):
    weights = sae_lens_folder / "sae_weights.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    edit(sae_lens_folder, dtype="bfloat16")
    imported = import_sae_lens(str(sae_lens_folder), str(tmp_path / "out"))
    assert imported.notes == ("its weights are bfloat16 and SAELens computes in that; here they are float32",)
    assert load_dictionary(imported.url)(X_BD).dtype == torch.float32


def test_a_folder_without_a_dictionary_is_refused(tmp_path):
    assert "no SAELens folder" in import_refusal(tmp_path / "nowhere", tmp_path / "out")


def test_damaged_weights_are_refused(sae_lens_folder, tmp_path):
    weights = sae_lens_folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    assert "is damaged" in import_refusal(sae_lens_folder, tmp_path / "out")


def test_matching_pursuit_with_atoms_of_other_lengths_keeps_them(tmp_path):
    """f_j += c and r -= c atom_j with c = <r, atom_j>, whatever the length."""
    export_dictionary(folder_of(tmp_path, "mp-unit", "none"), "sae-lens", str(tmp_path / "sae"))
    weights = tmp_path / "sae/sae_weights.safetensors"
    tensors = load_file(weights)
    atoms_FD = tensors["W_dec"] * torch.linspace(0.9, 1.1, F)[:, None]
    save_file({**tensors, "W_dec": atoms_FD}, weights)
    import_sae_lens(str(tmp_path / "sae"), str(tmp_path / "out"))
    residual_BD, expected_BF = X_BD - tensors["b_dec"], torch.zeros(B, F)
    for _ in range(K):
        best = (residual_BD @ atoms_FD.T).max(dim=1)
        expected_BF.scatter_add_(1, best.indices[:, None], best.values[:, None])
        residual_BD = residual_BD - best.values[:, None] * atoms_FD[best.indices]
    imported = load_dictionary(str(tmp_path / "out"))
    assert relative_difference(imported.encode(X_BD).dense(), expected_BF) < 1e-5
    assert "gives other codes" in refusal(str(tmp_path / "out"), "sae-lens", tmp_path / "unit", unit_atoms=True)


def test_a_topk_that_rescales_by_norms_gives_sae_lens_codes(sae_lens_folder, tmp_path):
    """SAELens: code = topk(z ||atom||), reconstruction = code / ||atom|| times the atom."""
    weights = sae_lens_folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"] = tensors["W_dec"] * torch.linspace(0.5, 2, F)[:, None]
    save_file(tensors, weights)
    edit(sae_lens_folder, rescale_acts_by_decoder_norm=True)
    import_sae_lens(str(sae_lens_folder), str(tmp_path / "out"))
    norms_F = tensors["W_dec"].norm(dim=1)
    scores = (X_BD @ tensors["W_enc"] + tensors["b_enc"]) * norms_F
    best = scores.topk(K, dim=1)
    expected_BF = torch.zeros(B, F).scatter(1, best.indices, best.values.relu())
    imported = load_dictionary(str(tmp_path / "out"))
    assert relative_difference(imported.encode(X_BD).dense(), expected_BF) < 1e-5
    expected_BD = expected_BF / norms_F @ tensors["W_dec"] + tensors["b_dec"]
    assert relative_difference(imported(X_BD), expected_BD) < 1e-5


@pytest.mark.parametrize("case", ["relu", "gated", "jumprelu", "topk"])
def test_a_bias_that_sae_lens_subtracts_from_the_input_is_subtracted_here_too(tmp_path, case):
    export_dictionary(folder_of(tmp_path, case, "none"), "sae-lens", str(tmp_path / "sae"))
    edit(tmp_path / "sae", apply_b_dec_to_input=True)
    b_dec = load_file(tmp_path / "sae/sae_weights.safetensors")["b_dec"]
    import_sae_lens(str(tmp_path / "sae"), str(tmp_path / "out"))
    imported, plain = load_dictionary(str(tmp_path / "out")), load_dictionary(str(tmp_path / "dictionary"))
    expected_BF = plain.encode(X_BD - b_dec).dense()
    assert relative_difference(imported.encode(X_BD).dense(), expected_BF) < 1e-5


def test_an_imported_dictionary_remembers_its_source_and_names(sae_lens_folder, tmp_path):
    edit(sae_lens_folder, metadata={"sae_lens_version": "6.1.0", "model_name": "gpt2", "hook_name": "blocks.3.hook"})
    imported = import_sae_lens(str(sae_lens_folder), str(tmp_path / "out"))
    assert (imported.architecture, imported.width) == ("topk", F)
    content = read_dictionary_config(Store.at(imported.url))
    assert content["imported"]["from"] == f"file://{sae_lens_folder}"
    export_dictionary(imported.url, "sae-lens", str(tmp_path / "again"))
    metadata = json.loads((tmp_path / "again/cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("gpt2", "blocks.3.hook")
