"""Names of Ray that are not its interface: each in one file, and each still does what that file relies on."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch.distributed as dist
from ray import cloudpickle
from ray._raylet import GcsClient
from ray.train import ControllerError, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from lexray.cluster.provisioned.description import Pool
from lexray.cluster.provisioned.pools import pools_of, pools_option
from lexray.cluster.ray_backend.internals import announce_node_groups, wants_another_token
from lexray.tuning.ray_backend.attempts import is_of_the_trial
from lexray.tuning.ray_backend.cluster_view import cluster_view
from lexray.tuning.ray_backend.in_process_trainer import TrainHere
from lexray.tuning.ray_backend.process_groups import WorkersConfig

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not import tests
ROOT = Path(__file__).parents[2]
PRIVATE = {
    "cluster/node/drain_node.py": {"ray._raylet.GcsClient"},
    "cluster/node/ec2_provider.py": {
        "ray.autoscaler._private.aws.node_provider.AWSNodeProvider",
        "InstanceManager._update_instance",
        "LaunchNodeError.__str__",
    },
    "cluster/ray_backend/internals.py": {
        "ray._private.ray_constants",
        "ray._private.authentication.http_token_authentication.get_auth_headers_if_auth_enabled",
        "ray._private.grpc_utils.init_grpc_channel",
        "ray._raylet.AuthenticationTokenLoader",
        "ray._raylet.Config",
        "ray._raylet",
        "ray.experimental.internal_kv._internal_kv_get",
        "ray.experimental.internal_kv._internal_kv_put",
    },
    "cluster/ray_backend/local_ray.py": {"_node_ip_address", "_temp_dir", "_plasma_directory"},
    "tuning/ray_backend/attempts.py": {"ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError"},
    "tuning/ray_backend/cluster_view.py": {
        "ray._private.state.available_resources_per_node",
        "ray._private.state.state",
    },
    "tuning/ray_backend/in_process_trainer.py": {
        "ray.train.v2._internal.callbacks.DatasetsCallback",
        "ray.train.v2._internal.execution.context.TrainRunContext",
        "ray.train.v2._internal.execution.controller.TrainController",
    },
    "tuning/ray_backend/process_groups.py": {
        "ray.train.torch.config._set_torch_distributed_env_vars",
        "ray.train.torch.config._TorchBackend",
    },
}
"""What is private of Ray, by the one file that uses it. A name that is added here needs a test below, or the one named
there: local_ray's in tests/cluster/test_local_ray.py, ec2_provider's in tests/infra/test_launch_failures.py."""


def test_each_private_name_of_ray_is_used_by_the_one_file_that_is_known_for_it() -> None:
    files = {str(path.relative_to(ROOT)): path for floor in ("cluster", "tuning", "training", "storage")
             for path in (ROOT / floor).rglob("*.py")}  # fmt: skip
    found = {name: names for name, path in files.items() if (names := set(private_names(path)))}
    assert found == PRIVATE
    counts = Counter(name for names in PRIVATE.values() for name in names)
    assert max(counts.values()) == 1


def private_names(path: Path) -> Iterator[str]:
    """Yield imports from Ray below a name with an underscore, attributes of what is imported, options of `ray.init`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    of_ray = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ray":
            of_ray |= {alias.asname or alias.name for alias in node.names}
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if any(part.startswith("_") for part in name.split(".")))
        if isinstance(node, ast.Import):
            of_ray |= {alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] == "ray"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr.startswith("_"):
            yield from [f"{node.value.id}.{node.attr}"] * (node.value.id in of_ray)
        if isinstance(node, ast.Call) and of_ray and isinstance(node.func, ast.Attribute) and node.func.attr == "init":
            yield from (keyword.arg for keyword in node.keywords if keyword.arg and keyword.arg.startswith("_"))
        if isinstance(node, ast.Constant) and node.value == "_plasma_directory":
            yield "_plasma_directory"


class Recorded(TrainHere):
    """Writes down which of the overrides Ray Train calls, and where the training's controller runs."""

    calls: list[str]

    def _create_default_callbacks(self) -> list[Any]:
        self.calls.append("callbacks")
        every = super(TrainHere, self)._create_default_callbacks()  # type: ignore[misc]
        assert any(isinstance(callback, DatasetsCallback) for callback in every), "there is nothing to leave out"
        return super()._create_default_callbacks()

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        self.calls.append("controller")
        assert not any(isinstance(callback, DatasetsCallback) for callback in settings["callbacks"])
        return super()._initialize_and_run_controller(**settings)


@ray.remote(num_cpus=0)
class Process:
    """Trains as a trial's process does."""

    def train(self, folder: str) -> list[str]:
        def worker() -> None:
            Path(folder, "group").write_text(str(dist.is_initialized()))

        trainer = Recorded(
            worker,
            scaling_config=ScalingConfig(num_workers=1),
            torch_config=WorkersConfig(),
            run_config=RunConfig(storage_path=folder, name="run"),
        )
        trainer.calls = []
        trainer.fit()
        return trainer.calls


@pytest.mark.ray
@pytest.mark.slow
def test_ray_train_calls_what_the_trials_trainer_and_backend_override(ray_session: str, tmp_path: Path) -> None:
    calls = ray.get(Process.remote().train.remote(str(tmp_path)), timeout=120)  # type: ignore[attr-defined]
    assert sorted(calls) == ["callbacks", "controller"]
    assert (tmp_path / "group").read_text() == "True", "the workers of a trial meet before its function is called"


def test_workers_without_room_are_told_from_a_training_that_fails() -> None:
    no_room = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert not is_of_the_trial(no_room, [])
    assert is_of_the_trial(ControllerError(RuntimeError("of its own")), [])


@pytest.mark.ray
def test_what_pools_may_start_is_what_the_placer_sees_to_come(ray_session: str) -> None:
    told = pools_option([Pool(name="near", cpus=4, memory_gib=8, gpus=1, max_nodes=2, zone="eu-west-1a")])
    try:
        announce_node_groups(pools_of(told[1]))
        to_come = cluster_view().to_come
    finally:
        announce_node_groups([])
    assert list(to_come) == ["near/0", "near/1"]
    assert {(node.cpus, node.gpus, node.zone) for node in to_come.values()} == {(4, 1, "eu-west-1a")}
    assert cluster_view().to_come == {}


@pytest.mark.ray
def test_ray_tells_what_is_free_on_each_living_node_and_which_leave(ray_session: str) -> None:
    (node_id,) = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    state = cluster_view().nodes[node_id]
    assert (state.total.cpus, state.is_leaving) == (4, False)
    busy = Process.options(num_cpus=3).remote()  # type: ignore[attr-defined]
    ray.get(busy.__ray_ready__.remote())
    try:
        assert cluster_view().nodes[node_id].available.cpus <= 1
    finally:
        ray.kill(busy)


@pytest.mark.ray
def test_the_gcs_lists_its_nodes_to_who_has_the_token(ray_session: str) -> None:
    nodes = GcsClient(address=ray_session).get_all_node_info()
    assert {node.node_id.hex() for node in nodes.values()} == {node["NodeID"] for node in ray.nodes()}
    assert not wants_another_token(ray_session, 10)
