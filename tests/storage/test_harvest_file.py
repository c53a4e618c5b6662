"""Mistakes in a harvest file are told in one line that names the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest_file import HarvestFile


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("contxt_length: 3", "contxt_length: unknown key; did you mean 'context_length'?"),
        ("shard_rows: 100", "shard_rows 100 is not a multiple of chunk_rows 1024"),
        ("sites: {position: {hidden_state: 1}}", "sites: 'position' is the name of a column"),
        ("sites: {a b: {hidden_state: 1}}", "sites: 'a b' cannot name a site; use letters, digits, _, - and ."),
        ("sites: {a: {hidden_state: -1}}", "sites.a.hidden_state: -1 must be at least 0"),
        ("sites: {a: {}}", "sites.a: give one of hidden_state (a number), module (a path) and layer (a number)"),
        ("sites: {a: {layer: 1, module: b}}", "sites.a: give one of hidden_state (a number), module (a path) and"),
        ("sites: {a: {layer: 1, read: input}}", "sites.a: read: input has no meaning with layer; it takes residual_in"),
        ("sites: {a: {hidden_state: 1, read: mlp_in}}", "sites.a: read: mlp_in has no meaning with hidden_state"),
        ("sites: {a: {hidden_state: 1, model: b}}", "sites.a.model: 'b', but the file has one model; leave it out"),
        ("sites: {a: {hidden_stat: 1}}", "sites.a.hidden_stat: unknown key; did you mean 'hidden_state'?"),
        ("models: {a: b}", "give one of model (a name or path) and models (several, by name)"),
        ("text: {}", "text: give one of python (`module:attribute`) and files"),
        ("text: {python: 'a:b', files: c}", "text: give one of python (`module:attribute`) and files"),
        ("text: {python: 'a b'}", "text.python: "),
        ("text: {files: c, column: d}", "text: column has no meaning with files"),
        ("text: {parquet: c, split: d}", "text: split has no meaning with parquet"),
        ("images: 'x/*.png'", "give one of text and images"),
        ("pooling: cls", "pooling has no meaning with rows: token; write rows: text"),
        ("rows: text\ncontext: pack", "context: pack, but rows: text takes one piece of each document (truncate)"),
        ("workers: 0", "workers: is below 1, got 0"),
        ("gpus_per_worker: -1", "gpus_per_worker: is below 0, got -1"),
        ("storage: {region: x, addressing_style: odd}", "storage.addressing_style: "),
    ],
)
def test_mistakes_in_the_file_name_the_field(line: str, message: str, tmp_path: Path) -> None:
    base = {"output": "out", "model": "m", "sites": "{a: {hidden_state: 1}}", "text": "{files: x}"}
    base.pop(line.split(":")[0], None)
    path = tmp_path / "harvest.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in base.items()) + line)
    with pytest.raises(UserError) as caught:
        read_config_file(str(path), HarvestFile)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("sites: {a: {hidden_state: 1}}", "sites.a says no model; the models are x, y"),
        ("sites: {a: {hidden_state: 1, model: z}}", "sites.a says model 'z'; the models are x, y"),
        ("sites: {a: {hidden_state: 1, model: x}}", "models.y is read by no site; leave it out"),
    ],
)
def test_sites_of_several_models_name_theirs(lines: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "harvest.yaml"
    path.write_text(f"output: o\nmodels: {{x: m, y: n}}\ntext: {{files: t}}\n{lines}")
    with pytest.raises(UserError) as caught:
        read_config_file(str(path), HarvestFile)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("line", ["context: pack", "rows: text", "context_length: 8"])
def test_settings_of_text_are_refused_for_images(line: str, tmp_path: Path) -> None:
    path = tmp_path / "harvest.yaml"
    path.write_text(f"output: o\nmodel: m\nsites: {{a: {{layer: 1}}}}\nimages: 'x/*.png'\n{line}")
    with pytest.raises(UserError, match=f"{line.split(':')[0]} has no meaning with images"):
        read_config_file(str(path), HarvestFile)


def test_the_quickstart_file_is_valid_and_storage_settings_pass_through() -> None:
    config = read_config_file("examples/quickstart/harvest.yaml", HarvestFile)
    assert config.sites["layer3"].hidden_state == 3
    block = {"endpoint_url": "http://x", "region": "r", "addressing_style": "path"}
    changed = HarvestFile.model_validate(config.model_dump(exclude_unset=True) | {"storage": block})
    assert changed.storage.endpoint_url == "http://x"
    assert changed.settings == config.settings


def test_the_files_in_the_documentation_are_valid() -> None:
    page = Path("docs/harvest.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        HarvestFile.model_validate(yaml.safe_load(block))
    for name in HarvestFile.model_fields:
        assert f"`{name}" in page or f"{name}:" in page, name
