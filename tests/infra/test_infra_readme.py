"""What the README of infra/ says is what the files say."""

from __future__ import annotations

import re

from hcl_files import INFRA, ROOTS, declared
from readme_tables import README, commands, with_tables


def test_tables_of_variables_and_outputs_are_those_of_the_files():
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run `make infra-tables`"


def test_every_path_that_the_readme_links_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_walks_have_as_many_commands_as_they_say():
    """Up to the first sweep; those of the image and the copy of activations stand in sentences."""
    text = " ".join(README.read_text(encoding="utf-8").split())
    walk = commands("The walk on EC2")
    walk = walk[: [command.split()[:2] for command in walk].index(["lexray", "submit"]) + 1]
    of_the_image = [command for command in walk if " ecr " in command]
    in_sentences = ["`aws ecr get-login-password", "`docker build`", "`docker push`"]
    assert all(command in text for command in [*in_sentences, "`aws s3 sync`"])
    key, copy = 1, 1
    assert (len(walk), len(of_the_image)) == (6, 1), "six below up to `lexray submit`"
    assert len(walk) + len(in_sentences) + copy == 10
    assert len(walk) - len(of_the_image) - key + copy == 5
    shared = len(walk) - len(of_the_image) - key - len(["lexray up"])
    without = shared + len(commands("The walk on EKS"))
    assert (without + len(of_the_image) + len(in_sentences), without) == (12, 8)
    for said in (
        "they are ten at most: six below",
        "they are five, or six",
        "these are twelve commands",
        "without one eight",
    ):
        assert said in text


def test_examples_name_variables_that_exist():
    for root in ROOTS:
        text = (root / "terraform.tfvars.example").read_text(encoding="utf-8")
        names = set(re.findall(r"^(\w+)\s+=", text, flags=re.MULTILINE))
        assert {"region", "container_image"} <= names <= declared("variable", root).keys()
        assert 'backend "s3"' in (root / "backend.tf.example").read_text(encoding="utf-8")


def test_what_terraform_leaves_behind_is_not_kept():
    ignored = (INFRA.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {".terraform/", ".terraform.lock.hcl", "terraform.tfstate*", "*.tfvars"} <= set(ignored)
