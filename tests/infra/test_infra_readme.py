"""What the README of infra/ says is what the files say."""

from __future__ import annotations

import re

from hcl_files import INFRA, ROOTS, declared
from readme_tables import README, with_tables


def test_tables_of_variables_and_outputs_are_those_of_the_files():
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run `make infra-tables`"


def test_every_path_that_the_readme_links_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_examples_name_variables_that_exist():
    for root in ROOTS:
        text = (root / "terraform.tfvars.example").read_text(encoding="utf-8")
        names = set(re.findall(r"^(\w+)\s+=", text, flags=re.MULTILINE))
        assert {"region", "container_image"} <= names <= declared("variable", root).keys()
        assert 'backend "s3"' in (root / "backend.tf.example").read_text(encoding="utf-8")


def test_what_terraform_leaves_behind_is_not_kept():
    ignored = (INFRA.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {".terraform/", ".terraform.lock.hcl", "terraform.tfstate*", "*.tfvars"} <= set(ignored)
