"""A model folder is a stranger's: none of its code runs, and what it claims costs neither minutes nor memory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from harvest_cases import LLAMA, harvest_file, read_site, refusal, save_model
from safetensors.torch import load_file

from lexray.storage.harvest.harvest import harvest

SITES = {"x": {"hidden_state": 1}}
BOUND_S = 60
"""Generous: a busy machine takes seconds to import what reads a model."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", LLAMA, "$A")


def change(folder: Path, file: str, **values: Any) -> None:
    """Write values into a JSON file of the model folder."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def plant(folder: Path, mark: Path) -> None:
    """Python files that leave a mark when they are imported."""
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').write('ran')\nclass Evil: pass\n")


class _Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


AUTO_MAP = {
    "AutoConfig": "configuration_evil.Evil",
    "AutoModel": "modeling_evil.Evil",
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", None],
}


def test_a_model_that_needs_code_of_its_own_is_refused(folder: Path, tmp_path: Path) -> None:
    plant(folder, tmp_path / "mark")
    change(folder, "config.json", model_type="evil", auto_map=AUTO_MAP)
    assert refusal(harvest_file(tmp_path, model=str(folder), sites=SITES)) == (
        f"model: '{folder}' needs code of its own (auto_map), which is not run; "
        "choose a model that transformers has a class for"
    )
    assert not (tmp_path / "mark").exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(folder: Path, tmp_path: Path) -> None:
    plain = harvest_file(tmp_path, model=str(folder), sites=SITES, output=str(tmp_path / "plain"))
    expected = read_site(plain, harvest(plain)[0], "x")
    plant(folder, tmp_path / "mark")
    change(folder, "config.json", auto_map=AUTO_MAP)
    change(folder, "tokenizer_config.json", auto_map=AUTO_MAP)
    config = harvest_file(tmp_path, model=str(folder), sites=SITES)
    assert torch.equal(read_site(config, harvest(config)[0], "x"), expected)
    assert not (tmp_path / "mark").exists()


def test_weights_in_a_pickle_are_read_as_weights_only(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    config = harvest_file(tmp_path, model=str(folder), sites=SITES)
    assert harvest(config)[0].rows == 45
    torch.save(weights | {"evil": _Payload(tmp_path / "mark")}, folder / "pytorch_model.bin")
    message = refusal(harvest_file(tmp_path, model=str(folder), sites=SITES, output=str(tmp_path / "other")))
    assert message.startswith(f"model: cannot load '{folder}' (")
    assert not (tmp_path / "mark").exists()


def test_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    message = refusal(harvest_file(tmp_path, model=str(folder), sites=SITES))
    assert message.startswith(f"model: '{folder}' holds an adapter (adapter_config.json) of another model; merge it")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation_internal", "experts_implementation"])
def test_kernels_from_elsewhere_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    change(folder, "config.json", **{name: "someone/kernels"})
    assert refusal(harvest_file(tmp_path, model=str(folder), sites=SITES)) == (
        f"model: {folder / 'config.json'}: {name}: 'someone/kernels' is code from the hub, which is not run; "
        "remove the line"
    )


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"num_hidden_layers": 10**9}, "its configuration says num_hidden_layers: 1,000,000,000, more than the 1,000"),
        ({"hidden_size": 1 << 20}, " parameters, but the files of weights hold "),
        ({"vocab_size": 1 << 32}, " parameters, but the files of weights hold "),
        ({"vocab_size": 1 << 62, "hidden_size": 1 << 62}, "cannot load"),
    ],
)
def test_what_a_configuration_claims_is_not_built(
    claim: dict[str, int], said: str, folder: Path, tmp_path: Path
) -> None:
    change(folder, "config.json", **claim)
    began = time.monotonic()
    assert said in refusal(harvest_file(tmp_path, model=str(folder), sites=SITES))
    assert time.monotonic() - began < BOUND_S
