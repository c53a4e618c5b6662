"""Exported folders, loaded by the libraries themselves, compute lexray's codes and reconstructions from raw rows."""

from pathlib import Path

import pytest
import torch
from dictionary_learning.utils import load_dictionary as load_theirs
from export_cases import (
    DICTIONARY_LEARNING,
    NORMALISERS,
    SAE_LENS,
    SPARSIFY,
    B,
    D,
    F,
    code_scale,
    raw_rows,
    saved,
    trained,
)
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sparsify import SparseCoder

from lexray.training.checkpoint.saved import load_dictionary
from lexray.training.export import export_dictionary
from lexray.training.export.import_sae_lens import import_sae_lens

X_BD = raw_rows(D)


def combinations(cases):
    """Every case with every normaliser; whitened atoms cannot be those of matching pursuit."""
    return [(case, kind) for case in cases for kind in NORMALISERS if not (kind == "whiten" and case.startswith("mp"))]


def exported(tmp_path: Path, case: str, normaliser: str, to: str, *, unit_atoms: bool = False, **options):
    """The dictionary as lexray loads it, and the folder."""
    url = saved(tmp_path / "dictionary", trained(case, normaliser, **options))
    export_dictionary(url, to, str(tmp_path / "exported"), unit_atoms=unit_atoms)
    return load_dictionary(url), tmp_path / "exported"


def hold(held, loaded, code_BF, reconstruction_BO, scale_F=1.0):
    expected_BF = loaded.encode(X_BD).dense() * code_scale(loaded) * scale_F
    assert (expected_BF != 0).sum() > 2 * B
    held("code", code_BF, expected_BF)
    held("reconstruction", reconstruction_BO, loaded(X_BD))


@torch.no_grad()
@pytest.mark.parametrize(("case", "normaliser"), combinations(SAE_LENS))
def test_sae_lens_computes_the_same(tmp_path, against, case, normaliser):
    loaded, folder = exported(tmp_path, case, normaliser, "sae-lens")
    sae = SAE.load_from_disk(str(folder))
    assert sae.cfg.architecture() == SAE_LENS[case]
    hold(against("SAELens, exported", case), loaded, sae.encode(X_BD), sae(X_BD))


@torch.no_grad()
@pytest.mark.parametrize("case", SAE_LENS)
def test_what_sae_lens_saves_anew_is_imported_with_the_same_codes(tmp_path, against, case):
    loaded, folder = exported(tmp_path, case, "standard", "sae-lens")
    SAE.load_from_disk(str(folder)).save_model(tmp_path / "theirs")
    import_sae_lens(str(tmp_path / "theirs"), str(tmp_path / "imported"))
    imported = load_dictionary(str(tmp_path / "imported"))
    hold(against("SAELens, imported", case), loaded, imported.encode(X_BD).dense(), imported(X_BD))


@torch.no_grad()
@pytest.mark.parametrize("case", ["relu", "gated-free", "jumprelu", "topk"])
def test_sae_lens_finds_nothing_left_to_fold_in_unit_atoms(tmp_path, case):
    loaded, folder = exported(tmp_path, case, "standard", "sae-lens", unit_atoms=True)
    sae = SAE.load_from_disk(str(folder))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))
    torch.testing.assert_close(sae(X_BD), loaded(X_BD), rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("case", "normaliser"), combinations(DICTIONARY_LEARNING))
def test_dictionary_learning_computes_the_same(tmp_path, against, case, normaliser):
    loaded, folder = exported(tmp_path, case, normaliser, "dictionary-learning")
    theirs, config = load_theirs(str(folder), "cpu")
    plain = normaliser in ("none", "centre") and case in ("relu", "p_anneal")  # atoms of length 1 in raw rows too
    assert config["trainer"]["dict_class"] == ("AutoEncoder" if plain else DICTIONARY_LEARNING[case])
    assert type(theirs).__name__ == config["trainer"]["dict_class"]
    hold(against("dictionary_learning, exported", case), loaded, theirs.encode(X_BD), theirs(X_BD))


@torch.no_grad()
@pytest.mark.parametrize("case", ["relu", "p_anneal", "relu_norm_weighted", "gated", "topk", "batch_topk"])
def test_dictionary_learning_takes_unit_atoms_as_saebench_wants_them(tmp_path, against, case):
    loaded, folder = exported(tmp_path, case, "standard", "dictionary-learning", unit_atoms=True)
    theirs, _ = load_theirs(str(folder), "cpu")
    atoms_FD = theirs.decoder.weight.T
    torch.testing.assert_close(atoms_FD.norm(dim=1), torch.ones(F))
    scale_F = loaded.atoms_FD().norm(dim=1) * loaded.output.scale_D[0]
    hold(against("dictionary_learning, unit", case), loaded, theirs.encode(X_BD), theirs(X_BD), scale_F)


@torch.no_grad()
@pytest.mark.parametrize("case", ["relu", "gated", "jumprelu", "topk", "batch_topk", "matryoshka_batch_topk"])
def test_sae_lens_reads_the_dictionary_learning_folder_too(tmp_path, against, monkeypatch, case):
    """By its own loader of that format (which knows no AutoEncoderNew); only the download is a local file here."""
    loaded, folder = exported(tmp_path, case, "none", "dictionary-learning")
    monkeypatch.setattr(loaders, "hf_hub_download", lambda repo_id, filename, **kwargs: str(folder.parent / filename))

    def convert(path, device, cfg_overrides=None):
        config, tensors, _ = loaders.dictionary_learning_sae_huggingface_loader_1("none", folder.name, device)
        return config, tensors

    sae = SAE.load_from_disk(str(folder), converter=convert)
    hold(against("SAELens, from dictionary_learning", case), loaded, sae.encode(X_BD), sae(X_BD))


def dense(out):
    return torch.zeros(B, F).scatter_add(1, out.latent_indices, out.latent_acts)


@torch.no_grad()
@pytest.mark.parametrize(("case", "normaliser"), combinations(SPARSIFY))
def test_sparsify_computes_the_same(tmp_path, against, case, normaliser):
    loaded, folder = exported(tmp_path, case, normaliser, "sparsify", output_width=D)
    coder = SparseCoder.load_from_disk(folder)
    out = coder(X_BD, raw_rows(D, seed=4) if coder.cfg.transcode else None)
    hold(against("sparsify, exported", case), loaded, dense(out), out.sae_out)
