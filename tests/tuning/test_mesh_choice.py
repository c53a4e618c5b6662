"""`mesh: auto`: the smallest mesh whose workers fit the nodes, as a function of what they need and what there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import sweep_content, write_dataset

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.training.config import DataConfig, TrainingConfig
from lexray.training.cost.memory import Needs, needs
from lexray.training.dictionaries import dictionary_config
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.mesh.settings import MeshConfig
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.mesh_choice import USABLE, WorkerCapacity, capacities_of, choose_mesh, meshes
from lexray.tuning.ray_backend.cluster_view import living_nodes
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep, with_meshes
from lexray.tuning.trials import Footprint

GIB = 2**30
SITES = Sites.same(SiteStatistics(mean=(0.0,) * 4096, mean_squared_norm=1.0))
H100S = [WorkerCapacity(workers=8, host_bytes=200 * GIB, gpu_bytes=80 * GIB)] * 4


def config(width: int, name: str = "topk", mesh: MeshConfig | None = None, **options: Any) -> TrainingConfig:
    dictionary = dictionary_config({"architecture": name, "width": width, "target_l0": 64, **options})
    data = DataConfig(url="nowhere", dataset_id="", inputs=("site",))
    return TrainingConfig(dictionary=dictionary, data=data, rows=1, mesh=mesh or MeshConfig())


def chosen(training: TrainingConfig, capacities: list[WorkerCapacity]) -> MeshConfig:
    return choose_mesh(training, capacities, estimate_of(training, capacities), "trial")


def estimate_of(training: TrainingConfig, capacities: list[WorkerCapacity]) -> Any:
    on_gpu = capacities[0].gpu_bytes is not None
    return lambda mesh: needs(replace(training, mesh=mesh), SITES, on_gpu=on_gpu)


def of_size(*fitting: tuple[int, int]) -> Any:
    """An estimate by which only these meshes (data, feature) fit, and others just do not."""

    def estimate(mesh: MeshConfig) -> Needs:
        return Needs(0, int(USABLE * GIB) + ((mesh.data, mesh.feature) not in fitting))

    return estimate


def choice(*fitting: tuple[int, int], nodes: tuple[int, ...] = (4, 4)) -> tuple[int, int]:
    capacities = [WorkerCapacity(workers=workers, host_bytes=GIB) for workers in nodes]
    mesh = choose_mesh(config(2**14), capacities, of_size(*fitting), "trial")
    return mesh.data, mesh.feature


def test_a_mesh_of_fewer_workers_comes_first_then_one_that_splits_the_latents() -> None:
    assert choice((1, 1), (1, 2)) == (1, 1)
    assert choice((1, 2), (2, 1), (1, 4)) == (1, 2)
    assert choice((2, 1), (1, 4)) == (2, 1)
    assert choice((4, 1), (2, 2)) == (2, 2)


def test_the_feature_axis_stays_inside_a_node() -> None:
    assert choice((2, 4), (1, 8)) == (2, 4)
    with pytest.raises(UserError, match="leanest"):
        choice((1, 8))
    with pytest.raises(UserError, match="leanest"):
        choice((2, 3), nodes=(3, 2, 2))  # seven workers, but of one node alone three
    assert choice((1, 8), nodes=(8,)) == (1, 8)


@pytest.mark.parametrize("width", [2**14, 2**17, 2**18, 2**19, 2**20])
def test_no_mesh_of_fewer_workers_would_fit(width: int) -> None:
    training = config(width)
    estimate, mesh = estimate_of(training, H100S), chosen(training, H100S)
    assert estimate(mesh).device <= USABLE * 80 * GIB
    for smaller in meshes(training, H100S):
        if smaller.data * smaller.feature < mesh.data * mesh.feature:
            assert estimate(smaller).device > USABLE * 80 * GIB, smaller


def test_wider_dictionaries_get_more_workers_and_the_latents_are_split_first() -> None:
    found = [chosen(config(width), H100S) for width in (2**14, 2**18, 2**19)]
    workers = [mesh.data * mesh.feature for mesh in found]
    assert workers == sorted(workers)
    assert workers[0] == 1 < workers[-1]
    assert all(mesh.data == 1 for mesh in found)


def test_what_fits_nowhere_is_refused_in_one_line_with_both_numbers_and_what_helps() -> None:
    with pytest.raises(UserError) as refused:
        chosen(config(2**22), [WorkerCapacity(workers=2, host_bytes=400 * GIB, gpu_bytes=80 * GIB)])
    line = str(refused.value)
    assert line.startswith("resources.mesh: auto, but trial trial needs ")
    assert "GiB of GPU memory for each of 1 x 2 workers (data x feature, ZeRO 0)" in line
    assert "a worker has 72.0 GiB of it (90% of 80.0 GiB)" in line
    assert "resources.micro_batches" in line
    assert "\n" not in line


def test_the_poorest_node_decides_since_any_node_may_get_a_worker() -> None:
    rich, poor = WorkerCapacity(workers=4, host_bytes=GIB), WorkerCapacity(workers=4, host_bytes=GIB // 2)
    with pytest.raises(UserError, match=r"has 0\.4 GiB|has 0\.5 GiB"):
        choose_mesh(config(2**14), [rich, poor], of_size((1, 1)), "trial")


def test_the_width_the_groups_and_the_lanes_bound_what_is_tried() -> None:
    capacities = [WorkerCapacity(workers=8, host_bytes=GIB)] * 4
    assert {mesh.feature for mesh in meshes(config(2**14 - 1), capacities)} == {1, 3}  # 3 x 43 x 127
    assert {mesh.feature for mesh in meshes(config(12 * 2**10, "group_max", target_l0=6), capacities)} == {1, 2, 3, 6}
    assert max(mesh.data for mesh in meshes(config(2**14), capacities)) == 16
    baseline = list(meshes(config(64, "kmeans", target_l0=1), capacities))
    assert max(mesh.data * mesh.feature for mesh in baseline) <= 16, "baselines split their rows alone"


def test_a_stage_that_is_given_is_kept_and_so_are_the_other_settings_of_workers() -> None:
    given = MeshConfig(zero_stage=2, micro_batches=4, offload_optimizer=True)
    for mesh in meshes(config(2**14, mesh=given), [WorkerCapacity(workers=4, host_bytes=GIB)]):
        assert mesh == replace(given, data=mesh.data, feature=mesh.feature)


def test_a_mesh_is_as_wide_as_one_zone_allows() -> None:
    capacities = [WorkerCapacity(workers=4, host_bytes=GIB, zone=zone) for zone in ("a", "a", "b")]
    anywhere = [replace(capacity, zone=None) for capacity in capacities]
    widest, all_of_them = (max(m.data * m.feature for m in meshes(config(2**14), r)) for r in (capacities, anywhere))
    assert (widest, 8 < all_of_them <= 12) == (8, True)


def test_nodes_share_their_memory_among_all_the_workers_that_they_can_have() -> None:
    footprint = Footprint(workers=1, cpus_per_worker=2, gpus_per_worker=0)
    nodes = [Node(8, 0, 64 * GIB), Node(3, 0, 6 * GIB), Node(1, 0, GIB)]
    assert capacities_of(nodes, footprint, None) == [
        WorkerCapacity(workers=4, host_bytes=16 * GIB),
        WorkerCapacity(workers=1, host_bytes=6 * GIB),
    ]
    half = replace(footprint, gpus_per_worker=0.5)
    (room,) = capacities_of([Node(8, 2, 64 * GIB), Node(8, 0, 64 * GIB)], half, 80 * GIB)
    assert room == WorkerCapacity(workers=4, host_bytes=16 * GIB, gpu_bytes=40 * GIB)
    with pytest.raises(UserError, match=r"give resources\.gpu_memory_gib"):
        capacities_of([Node(8, 2, 64 * GIB)], half, None)


# In a sweep ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


def plan(data: str, folder: Path, **changes: Any) -> SweepPlan:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_content(data, str(folder / "out"), **changes)))
    return plan_sweep(read_config_file(str(file), SweepFile), file.read_text())


def test_a_sweep_leaves_meshes_open_until_the_nodes_are_known_and_ids_do_not_change(data: str, tmp_path: Path) -> None:
    fixed = plan(data, tmp_path)
    rules = [{"when": {"architecture": "relu"}, "set": {"mesh": {"data": 2}}}]
    made = plan(data, tmp_path, resources={"mesh": "auto"}, rules=rules)
    assert [trial.auto_mesh for trial in made.trials] == [True, False]
    decided = with_meshes(made, [Node(4, 0, 64 * GIB)])
    assert [(trial.footprint.workers, trial.auto_mesh) for trial in decided.unfinished] == [(1, False), (2, False)]
    assert [trial.id for trial in decided.unfinished] == [trial.id for trial in fixed.trials]
    assert len(decided.shapes) == 2


def test_a_sweep_that_fits_no_worker_says_so_before_anything_starts(data: str, tmp_path: Path) -> None:
    made = plan(data, tmp_path, resources={"mesh": "auto"})
    with pytest.raises(UserError, match=r"resources.mesh: auto, but trial topk-w64-l4 needs .* of memory"):
        with_meshes(made, [Node(4, 0, 1 * GIB)])
    with pytest.raises(UserError, match="no node has the CPUs and GPUs of one worker of trial topk-w64-l4"):
        with_meshes(made, [Node(0.5, 0, 64 * GIB)])
    on_gpus = plan(data, tmp_path, resources={"mesh": "auto", "gpus_per_worker": 1, "gpu_memory_gib": 0.0001})
    with pytest.raises(UserError, match="of GPU memory for each of"):
        with_meshes(on_gpus, [Node(4, 1, 64 * GIB)])


@pytest.mark.ray
def test_ray_says_what_its_nodes_have(data: str, tmp_path: Path, ray_session: str) -> None:
    nodes = list(living_nodes().values())
    assert all(node.memory_bytes > 0 for node in nodes)
    decided = with_meshes(plan(data, tmp_path, resources={"mesh": "auto"}), nodes)
    assert [trial.footprint.workers for trial in decided.unfinished] == [1, 1]
