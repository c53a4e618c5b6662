"""A saved dictionary is the one that was trained: on raw activations, in a process that has torch alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quick_cases import quick
from safetensors.torch import load_file, save_file
from training_cases import CASES, DEFAULTS, Case, find_case, learned_from, named, random_rows, randomise, untrained

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.checkpoint.saved import (
    CONFIG,
    TENSORS,
    load_dictionary,
    read_dictionary_config,
    save_dictionary,
    to_state_dict,
)
from lexray.training.dictionaries.base import Dictionary, RawRows

ROOT = Path(__file__).parents[2]
NORMALISERS = ("none", "centre", "unit_norm", "standard", "layer_norm", "whiten")


def trained(case: Case, **options) -> Dictionary:
    """A dictionary whose every tensor has a value of its own, as after training."""
    made = untrained(case, 3, **options)
    if case.cls.Config.learns_by == "statistics":
        learned_from(made, 3)
    else:
        if made.needs_sample:
            batches = [random_rows(made.sites, number, 60, torch.float32) for number in range(3)]
            made.prepare(lambda: batches)
        randomise(made, 3)
    made.rows_since_fired_F[::2] = 5000
    if hasattr(made, "threshold"):
        made.threshold.fill_(0.2)
    return made


def rows_for(made: Dictionary, count: int = 50) -> RawRows:
    return random_rows(made.sites, 7, count, torch.float32)


def saved(folder: Path, made: Dictionary, **about) -> str:
    save_dictionary(Store.at(str(folder)), made, to_state_dict(dict(made.named_parameters()), made), about)
    return str(folder)


def is_accepted(case: Case, normaliser: str) -> bool:
    try:
        untrained(case, normaliser=normaliser)
    except UserError:
        return False
    return True


def assert_same_on_raw_rows(loaded: Dictionary, made: Dictionary) -> None:
    """Codes and reconstructions. Folding the constraints into tensors costs a rounding."""
    x_BD = rows_for(made).x_BD
    expected, code = made.encode(x_BD), loaded.encode(x_BD)
    assert (code.values != 0).sum() > 20
    torch.testing.assert_close(code.dense(), expected.dense(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded(x_BD), made(x_BD), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", **named(CASES))
def test_loaded_encodes_and_reconstructs_raw_activations_as_saved(case, tmp_path):
    made = trained(case)
    loaded = load_dictionary(saved(tmp_path, made))
    assert_same_on_raw_rows(loaded, made)
    assert loaded.config == made.config
    assert type(loaded) is type(made)


@pytest.mark.parametrize("normaliser", quick(NORMALISERS, ["whiten"]))
@pytest.mark.parametrize("case", **named(DEFAULTS))
def test_loaded_is_as_saved_with_every_normaliser_that_the_architecture_takes(case, normaliser, tmp_path):
    if not is_accepted(case, normaliser):
        with pytest.raises(UserError, match="normaliser"):
            untrained(case, normaliser=normaliser)
        return
    made = trained(case, normaliser=normaliser)
    assert_same_on_raw_rows(load_dictionary(saved(tmp_path, made)), made)


@pytest.fixture(params=DEFAULTS, ids=str)
def pair(request, tmp_path) -> tuple[Dictionary, Dictionary]:
    """A dictionary, and the same saved and loaded."""
    made = trained(request.param)
    return made, load_dictionary(saved(tmp_path, made))


def test_loaded_has_every_tensor_of_the_saved_one_in_its_dtype(pair):
    """But sums that only further training would need, and what archetypal atoms are made of: the atoms are there."""
    made, loaded = pair
    expected = made.tensors_to_save(made.state_dict())
    found = loaded.state_dict()
    assert {name for name in found if not name.startswith("sum_")} == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    torch.testing.assert_close(loaded.atoms_FD(), made.atoms_FD().detach(), rtol=1e-6, atol=1e-6)


def test_the_rows_of_the_saved_decoder_are_unit_atoms(tmp_path):
    folder = saved(tmp_path, trained(find_case("topk")))
    torch.testing.assert_close(load_file(f"{folder}/{TENSORS}")["W_dec"].norm(dim=1), torch.ones(30))


def test_free_atoms_are_saved_with_their_length(tmp_path):
    made = trained(find_case("topk-free"))
    assert torch.equal(load_file(f"{saved(tmp_path, made)}/{TENSORS}")["W_dec"], made.W_dec)


def test_archetypal_atoms_are_saved_instead_of_what_they_are_made_of(tmp_path):
    made = trained(find_case("relaxed_archetypal"))
    tensors = load_file(f"{saved(tmp_path, made)}/{TENSORS}")
    assert not tensors.keys() & {"mixture_FC", "candidates_CD", "relaxation_FD", "log_scale"}
    torch.testing.assert_close(tensors["W_dec"], made.atoms_FD().detach())


def test_loaded_is_for_use_and_not_for_training(pair):
    assert not pair[1].training
    assert not any(p.requires_grad for p in pair[1].parameters())


def test_saving_a_loaded_dictionary_again_changes_nothing(pair, tmp_path):
    again = load_dictionary(saved(tmp_path / "again", pair[1]))
    torch.testing.assert_close(again.state_dict(), pair[1].state_dict(), rtol=0, atol=2.5e-7)  # of ones


def test_saving_leaves_the_given_tensors_alone(pair, tmp_path):
    made = pair[0]
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    saved(tmp_path / "again", made)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_the_config_says_where_the_dictionary_came_from(tmp_path):
    url = saved(tmp_path, trained(find_case("transcoder")), trial="transcoder-w30", sites={"inputs": ["layer3"]})
    content = read_dictionary_config(Store.at(url))
    assert (content["trial"], content["sites"]) == ("transcoder-w30", {"inputs": ["layer3"]})
    assert content["site_widths"] == {"inputs": [7], "outputs": [5]}


FRESH = """
import json, sys
import torch
from lexray.training.checkpoint.saved import load_dictionary
for folder, rows, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
    torch.save(load_dictionary(folder)(torch.load(rows)), out)
print(json.dumps([name for name in ("ray", "deepspeed", "wandb", "transformers") if name in sys.modules]))
"""


def test_a_fresh_process_loads_and_uses_every_architecture_without_ray_or_deepspeed(tmp_path):
    made = {case.architecture: trained(case) for case in DEFAULTS}
    command = [sys.executable, "-c", FRESH]
    for name, dictionary in made.items():
        folder = saved(tmp_path / name, dictionary)
        torch.save(rows_for(dictionary).x_BD, tmp_path / f"{name}.rows.pt")
        command += [folder, str(tmp_path / f"{name}.rows.pt"), str(tmp_path / f"{name}.out.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    for name, dictionary in made.items():
        expected = dictionary(rows_for(dictionary).x_BD).detach()
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.out.pt"), expected, rtol=1e-5, atol=1e-4)


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
    return Path(saved(tmp_path / "dictionary", trained(find_case("topk"))))


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
    edit(folder, dictionary={**content["dictionary"], "width": 31})
    assert "rows_since_fired_F has the shape 30, its configuration implies 31" in refusal(folder)


def test_another_version_is_refused_with_both_versions(folder):
    edit(folder, version=1)
    assert "version 1, this lexray reads lexray-dictionary version 2" in refusal(folder)


def test_another_format_is_refused(folder):
    edit(folder, format="sae")
    assert "has format 'sae'" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_config_that_is_not_json_is_refused(folder, text):
    (folder / CONFIG).write_text(text)
    assert f"{CONFIG} is not valid JSON" in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_a_config_that_is_no_object_is_refused(folder, text):
    (folder / CONFIG).write_text(text)
    assert f"{CONFIG} holds no settings" in refusal(folder)


NO_DICTIONARY = [
    {"dictionary": {}},
    {"dictionary": 3},
    {"site_widths": None},
    {"site_widths": {"inputs": [7, 7], "outputs": [7]}},
    {"dictionary": {"architecture": "tokp"}},
]


@pytest.mark.parametrize("changes", NO_DICTIONARY, ids=str)
def test_a_config_that_describes_no_dictionary_is_refused(folder, changes):
    edit(folder, **changes)
    assert f"{CONFIG} does not describe a dictionary" in refusal(folder)
