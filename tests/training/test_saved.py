"""A saved dictionary is the one that was trained: on raw activations, in a process that has torch alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_synthetic import ARCHITECTURES, random_dictionary

from storage.errors import UserError
from storage.store import Store
from training.dictionaries.base import Dictionary
from training.saved import CONFIG, TENSORS, load_dictionary, read_dictionary_config, save_dictionary, to_state_dict

ROOT = Path(__file__).parents[2]
ROWS = torch.randn(50, 6, generator=torch.Generator().manual_seed(3)) * 2 + 1


def trained(name: str) -> Dictionary:
    """A dictionary whose every tensor has a value of its own, as after training."""
    made = random_dictionary(name, width=20, site_width=6, target_l0=3, dead_after_rows=100).float()
    made.rows_since_fired_F[::2] = 5000
    if name == "batch_topk":
        made.threshold.fill_(0.4)
    if name == "relu":
        made.controller.double().log_coefficient.fill_(-2.5)
    return made


def saved(folder: Path, made: Dictionary, **about) -> str:
    save_dictionary(Store.at(str(folder)), made.config, to_state_dict(dict(made.named_parameters()), made), about)
    return str(folder)


@pytest.fixture(params=ARCHITECTURES)
def pair(request, tmp_path) -> tuple[Dictionary, Dictionary]:
    """A dictionary, and the same saved and loaded."""
    made = trained(request.param)
    return made, load_dictionary(saved(tmp_path, made))


def test_loaded_encodes_raw_activations_as_saved(pair):
    made, loaded = pair
    expected, code = made.encode(ROWS), loaded.encode(ROWS)
    assert torch.equal(code.indices, expected.indices)
    assert torch.equal(code.values, expected.values)
    assert (code.values > 0).sum() > 20


def test_loaded_reconstructs_raw_activations_as_saved(pair):
    made, loaded = pair
    torch.testing.assert_close(loaded(ROWS), made(ROWS), rtol=1e-6, atol=1e-6)


def test_loaded_has_every_tensor_and_option_of_the_saved_one(pair):
    made, loaded = pair
    expected = {**made.state_dict(), "W_dec": made.atoms_FD().detach()}
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name])
        assert tensor.dtype == expected[name].dtype
    assert loaded.config == made.config


def test_the_rows_of_the_saved_decoder_are_unit_atoms(tmp_path):
    folder = saved(tmp_path, trained("topk"))
    torch.testing.assert_close(load_file(f"{folder}/{TENSORS}")["W_dec"].norm(dim=1), torch.ones(20))


def test_loaded_is_for_use_and_not_for_training(pair):
    assert not pair[1].training
    assert not any(p.requires_grad for p in pair[1].parameters())


def test_saving_a_loaded_dictionary_again_changes_nothing(pair, tmp_path):
    again = load_dictionary(saved(tmp_path / "again", pair[1]))
    torch.testing.assert_close(dict(again.named_parameters()), dict(pair[1].named_parameters()), rtol=0, atol=1e-7)


def test_saving_leaves_the_given_tensors_alone(tmp_path):
    made = trained("topk")
    before = made.W_dec.detach().clone()
    saved(tmp_path, made)
    assert torch.equal(made.W_dec, before)


def test_the_config_says_where_the_dictionary_came_from(tmp_path):
    url = saved(tmp_path, trained("topk"), trial="topk-w20", site={"name": "layer3"})
    content = read_dictionary_config(Store.at(url))
    assert (content["trial"], content["site"], content["site_width"]) == ("topk-w20", {"name": "layer3"}, 6)


FRESH = """
import json, sys
import torch
from training.saved import load_dictionary
loaded = load_dictionary(sys.argv[1])
torch.save(loaded(torch.load(sys.argv[2])), sys.argv[3])
print(json.dumps([name for name in ("ray", "deepspeed", "wandb", "transformers") if name in sys.modules]))
"""


def test_a_fresh_process_loads_and_uses_it_without_ray_or_deepspeed(tmp_path):
    made = trained("batch_topk")
    folder = saved(tmp_path / "dictionary", made)
    torch.save(ROWS, tmp_path / "rows.pt")
    command = [sys.executable, "-c", FRESH, folder, str(tmp_path / "rows.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), made(ROWS).detach(), rtol=1e-6, atol=1e-6)


# Refusals ---------------------------------------------------------------------------------------------------------


def refusal(folder: Path | str) -> str:
    with pytest.raises(UserError) as error:
        load_dictionary(str(folder))
    text = str(error.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(saved(tmp_path / "dictionary", trained("topk")))


def edit(folder: Path, **changes) -> None:
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**content, **changes}))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert f"no {CONFIG} there" in refusal(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    assert f"no {CONFIG} there" in refusal(tmp_path / "file")


def test_missing_tensors_are_refused(folder):
    (folder / TENSORS).unlink()
    assert f"{TENSORS} is missing or damaged" in refusal(folder)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_tensors_are_refused(folder, length):
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:length])
    assert f"{TENSORS} is missing or damaged" in refusal(folder)


def test_a_damaged_header_is_refused(folder):
    data = bytearray((folder / TENSORS).read_bytes())
    data[:8] = b"\xff" * 8
    (folder / TENSORS).write_bytes(bytes(data))
    assert f"{TENSORS} is missing or damaged" in refusal(folder)


def test_a_missing_tensor_is_refused_by_name(folder):
    tensors = load_file(folder / TENSORS)
    del tensors["b_enc"]
    save_file(tensors, folder / TENSORS)
    assert "b_enc" in refusal(folder)


def test_tensors_of_another_width_are_refused_by_name(folder):
    content = json.loads((folder / CONFIG).read_text())
    edit(folder, dictionary={**content["dictionary"], "width": 21})
    assert "size mismatch" in refusal(folder)


def test_another_version_is_refused_with_both_versions(folder):
    edit(folder, version=2)
    assert "version 2, this lexray reads lexray-dictionary version 1" in refusal(folder)


def test_another_format_is_refused(folder):
    edit(folder, format="sae")
    assert "has format sae" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_config_that_is_not_json_is_refused(folder, text):
    (folder / CONFIG).write_text(text)
    assert f"{CONFIG} is not valid JSON" in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / CONFIG).write_text(text)
    assert f"{CONFIG} holds no settings" in refusal(folder)


@pytest.mark.parametrize(
    "changes", [{"dictionary": {}}, {"dictionary": 3}, {"site_width": None}, {"dictionary": {"architecture": "tokp"}}]
)
def test_a_config_that_describes_no_dictionary_is_refused(folder, changes):
    edit(folder, **changes)
    assert f"{CONFIG} does not describe a dictionary" in refusal(folder)
