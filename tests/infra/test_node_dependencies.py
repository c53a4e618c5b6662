"""What head and nodes import is in the extra `node`, which the image installs; seen without installing anything.

The environment of the tests has more than that. A process that cannot import the rest stands for the image.
"""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import inspect
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lexray

ON_NODES = (
    "ray._private.process_watcher",
    "ray.autoscaler._private.aws.node_provider",
    "ray.autoscaler._private.kuberay.run_autoscaler",
    "ray.autoscaler._private.monitor",
    "ray.autoscaler.v2.monitor",
    "ray.dashboard.agent",
    "ray.dashboard.dashboard",
    "ray.dashboard.modules.job.job_head",
    "ray.dashboard.modules.reporter.reporter_head",
    "ray.scripts.scripts",
    "lexray.cluster.node.drain_node",
    "s3fs",
    "smart_open",
    "wandb",
)
"""Modules of the processes that run on head and nodes beside lexray's own, whose imports are read instead."""
OPTIONAL = {"datasets", "pillow", "obstore", "vllm", "triton"}
"""What lexray imports only for who has it: extras, accelerators, and what comes with a GPU build of torch."""
HIDE = """
import importlib, importlib.abc, sys
hidden = set(sys.argv[1].split(","))

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def installed_by(*requirements: str) -> set[str]:
    """Return the distributions that these requirements bring in, as pip would resolve them here."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    queue = [(Requirement(text).name, extra) for text in requirements for extra in ("", *Requirement(text).extras)]
    while queue:
        name, extra = queue.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        found.add(canonicalize_name(name))
        try:
            needed = map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            continue  # of another platform
        for need in needed:
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                queue += [(need.name, wanted) for wanted in ("", *need.extras)]
    return found


@pytest.fixture(scope="module")
def on_node() -> set[str]:
    return installed_by("lexray[node]")


@cache
def owners() -> dict[str, set[str]]:
    """Return the distributions of each top-level module; those that Ray carries inside itself are Ray's."""
    found: dict[str, set[str]] = {}
    for dist in metadata.distributions(path=[sysconfig.get_paths()["purelib"]]):
        paths = {line.partition(",")[0].partition("/") for line in (dist.read_text("RECORD") or "").splitlines()}
        tops = {top if slash else inspect.getmodulename(top) for top, slash, _ in paths}
        for name in (top for top in tops if top and top.isidentifier()):
            found.setdefault(name, set()).add(canonicalize_name(dist.metadata["Name"]))
    return found


def hidden_modules(present: set[str]) -> list[str]:
    """Return the top-level modules that only other distributions have."""
    return [name for name, dists in owners().items() if not present & dists]


def import_all(hidden: list[str], modules: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE, ",".join(hidden), *modules]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_all_that_runs_on_head_and_nodes_can_be_imported_with_the_extra_alone(on_node):
    hidden = hidden_modules(on_node)
    assert {"pytest", "moto"} <= set(hidden)
    done = import_all(hidden, ON_NODES)
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_boto3_rays_autoscaler_would_not_start():
    hidden = hidden_modules(installed_by("lexray[harvest]"))
    done = import_all(hidden, ("ray.autoscaler._private.aws.node_provider",))
    assert "No module named 'boto3'" in done.stderr


def test_every_package_that_lexray_imports_comes_with_the_extra(on_node):
    """Imports inside functions too, which a module's own import does not reach."""
    folder = Path(lexray.__file__).parent
    names = {name: file for file in folder.glob("*/**/*.py") for name in imported(file)}
    foreign = {name: file for name, file in names.items() if name not in (*sys.stdlib_module_names, "lexray")}
    assert {"ray", "torch", "wandb", "transformers"} <= foreign.keys()
    known = on_node | OPTIONAL
    assert {name: file for name, file in foreign.items() if not known & (owners().get(name) or {name})} == {}


def imported(file: Path) -> set[str]:
    """Top-level names of all absolute imports."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    plain |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in plain}
