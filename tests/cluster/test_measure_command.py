"""`lexray measure` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from harvest_cases import causal_model, harvest_file, tiny_model, write_text

from lexray.storage.harvest.harvest import harvest
from lexray.storage.store import Store
from lexray.training.checkpoint.saved import save_dictionary
from lexray.training.config import DataConfig, TrainingConfig
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.measures.held_out import read_measures

TEXTS = [" ".join(f"w{(7 * document + step * step) % 40}" for step in range(20)) for document in range(30)]


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Path:
    """A trial's folder with an untrained dictionary on the activations of a tiny Llama."""
    folder = tmp_path_factory.mktemp("measured")
    causal_model("bert"), tiny_model("llama")  # making them writes to stderr
    config = harvest_file(
        folder,
        model=causal_model("llama"),
        text={"files": write_text(folder / "text", TEXTS)},
        output=str(folder / "d"),
    )
    manifest, _ = harvest(config)
    data = DataConfig(
        url=f"file://{folder}/d", dataset_id=manifest.id, inputs=("layer2",), held_out=0.5, batch_rows=64, lanes=4
    )
    options = dictionary_config({"architecture": "topk", "width": 32, "target_l0": 4})
    training = TrainingConfig(dictionary=options, data=data, rows=1000)
    about = {"training": training.to_dict()}
    with torch.random.fork_rng():
        made = make_dictionary(options, data.sites_in(manifest))
    save_dictionary(Store.at(str(folder / "trial/dictionary")), made, about=about)
    return folder / "trial"


def test_a_saved_dictionary_is_measured_and_saved_beside_it(lexray, trial):
    code, out, err = lexray("measure", trial / "dictionary", "--json", "--save")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert 100 < found["rows"] <= 150  # lanes serve equally many
    assert found["firing"]["l0"] == 4
    assert 0 < found["fvu"] < 1
    assert read_measures(Store.at(str(trial))) == found
    code, out, _ = lexray("measure", trial / "dictionary", "--rows", 40, "--every-atom")
    lines = dict(line.rsplit(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert (lines["rows"], lines["L0"]) == ("40", "4")
    assert {"FVU", "dead latents", "FVU at k 8", "bits per row at FVU 0.5", "Babel function at 4"} <= lines.keys()


def test_its_language_model_says_what_is_recovered(lexray, trial, tmp_path):
    texts = write_text(tmp_path / "texts", TEXTS[:5])
    command = ("measure", trial / "dictionary", "--model", causal_model("llama"), "--texts", texts)
    code, out, err = lexray(*command, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["language_model"]
    assert found["tokens_replaced"] == found["tokens_predicted"] == 100, "all but the first special token"
    assert set(found["ce"]) == {"clean", "replaced", "mean", "zero"}
    assert found["kl"]["replaced"] > 0
    assert found["kl_recovered_mean"] == pytest.approx(1 - found["kl"]["replaced"] / found["kl"]["mean"])
    elsewhere = json.loads(lexray(*command, "--site", "layer2: {hidden_state: 1}", "--json")[1])["language_model"]
    assert elsewhere["ce"]["clean"] == found["ce"]["clean"]
    assert elsewhere["ce"]["zero"] != found["ce"]["zero"]
    code, out, _ = lexray(*command, "--tokens", 20)
    assert code == 0
    assert {"CE clean", "ce recovered mean"} <= {line.rsplit(maxsplit=1)[0] for line in out.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda: ("--model", "somewhere"), "measure: --model and --texts go together"),
        (lambda: ("--model", "./nowhere", "--texts", "x"), "model: no folder './nowhere'"),
        (lambda: ("--data", "nowhere"), "nowhere"),
        (lambda: ("--model", tiny_model("llama"), "--texts", "*.md", "--site", "layer2"), "--site: 'layer2'"),
        (lambda: ("--model", causal_model("bert"), "--texts", __file__), "its tokens see later ones"),
    ],
    ids=["half", "no model", "no data", "no site", "no causal model"],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments, said, lexray, trial):
    code, out, err = lexray("measure", trial / "dictionary", *arguments())
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err


def test_a_dictionary_of_unknown_origin_and_a_folder_of_another_name_are_refused(lexray, tmp_path):
    sites = Sites.of_widths({"inputs": [4], "outputs": [4]}, reconstructs_its_input=True)
    made = make_dictionary(dictionary_config({"architecture": "topk", "width": 8, "target_l0": 2}), sites)
    save_dictionary(Store.at(str(tmp_path / "found")), made)
    code, _, err = lexray("measure", tmp_path / "found")
    assert code == 2
    assert "does not say what it was trained on" in err
    assert lexray("measure", tmp_path / "nothing")[0] == 2
