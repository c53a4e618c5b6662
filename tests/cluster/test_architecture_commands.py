"""The table of architectures explains itself: on the command line, in the documentation, in the sweep file's schema."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.dictionaries.describe import describe_all
from lexray.tuning.file.schema import sweep_schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stdout(lexray):
    """What a command prints; of one that is refused, its message."""

    def run(*command: str, code: int = 0) -> str:
        found, out, err = lexray(*command)
        assert found == code, err
        return out if code == 0 else err

    return run


def test_the_list_names_every_architecture_with_its_paper_and_options(stdout):
    found = {d["name"]: d for d in json.loads(stdout("architectures", "--json"))}
    assert list(found) == list(ARCHITECTURES)
    for name, made in ARCHITECTURES.items():
        assert {"name", "paper", "summary", "options", "equations"} <= found[name].keys()
        assert found[name]["paper"] == made.paper
        assert {o["name"] for o in found[name]["options"]} == made.all_option_names


def test_every_architecture_has_equations_a_paper_and_a_word_on_each_option():
    for description in describe_all():
        assert description.summary.endswith("."), description.name
        assert len(description.paper) > 20, description.name
        assert "\n    " in f"\n{description.equations}", f"{description.name} shows no equations"
        assert all(option.doc for option in description.options), description.name


def test_one_architecture_is_shown_whole_and_an_unknown_one_refused(stdout):
    shown = stdout("architectures", "jumprelu")
    assert "theta" in shown
    assert "threshold_rate" in shown
    assert "unknown 'jumpelu'; did you mean 'jumprelu'?" in stdout("architectures", "jumpelu", code=2)


def test_the_page_of_documentation_is_what_the_command_prints(stdout):
    """After a change: lexray architectures --markdown > docs/architectures.md"""
    assert (ROOT / "docs" / "architectures.md").read_text() == stdout("architectures", "--markdown")


def test_the_shipped_schema_is_what_the_command_prints(stdout):
    """After a change: lexray schema > docs/sweep.schema.json"""
    assert (ROOT / "docs" / "sweep.schema.json").read_text() == stdout("schema")


def test_the_schema_is_one_and_knows_every_option_of_every_architecture():
    schema = sweep_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    options = schema["properties"]["options"]["properties"]
    for name, made in ARCHITECTURES.items():
        assert set(options[name]["properties"]) == made.all_option_names
    assert schema["properties"]["axes"]["properties"]["architecture"]["anyOf"][0]["enum"] == list(ARCHITECTURES)


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*/sweep*.yaml")), ids=lambda f: f.parent.name)
def test_the_schema_accepts_the_examples(file):
    jsonschema.validate(yaml.safe_load(file.read_text()), sweep_schema())


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"topk": {"k_auks": 3}}},
        {"options": {"jumprelu": {"l0_loss": "cubic"}}},
        {"axes": {"architecture": "top_k", "width": 64, "target_l0": 8}},
        {"axes": {"architecture": "topk", "width": "wide", "target_l0": 8}},
        {"axes": {"architecture": "topk", "width": 64}},
    ],
)
def test_the_schema_refuses_what_lexray_would_refuse(change):
    content = yaml.safe_load((ROOT / "examples" / "quickstart" / "sweep.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, **change}, sweep_schema())


def test_the_example_of_all_architectures_has_all_of_them():
    content = yaml.safe_load((ROOT / "examples" / "architectures" / "sweep.yaml").read_text())
    assert sorted(content["axes"]["architecture"]) == sorted(ARCHITECTURES)


def test_listing_them_needs_neither_ray_nor_deepspeed():
    program = (
        "import sys, lexray.cluster.cli; from lexray.cluster.commands.architectures import architectures; "
        "architectures(None, True, False); assert not {'ray', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)
