"""Which nodes the workers of a trial get: whole trials or nothing, feature groups on one node, others left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from sweeps import fixed_allocator

from lexray.training.mesh.settings import MeshConfig
from lexray.tuning.placement.allocator import Allocator, MeshOption, MeshOptions, NodeState, View
from lexray.tuning.placement.nodes import ZONE, Node, most_in_one_zone, place
from lexray.tuning.ray_backend.attempts import Attempts, NoNodesError
from lexray.tuning.ray_backend.cluster_view import RECENT_S, RecentView
from lexray.tuning.ray_backend.launch_failures import failure_lines
from lexray.tuning.ray_backend.placer import Placement, Placer, wanted_bundles
from lexray.tuning.sweep_folder import DONE, MOVING
from lexray.tuning.trials import Footprint


def footprint(workers: int, gpus: float = 0) -> Footprint:
    return Footprint(workers=workers, cpus_per_worker=1, gpus_per_worker=gpus)


def option(data: int, feature: int = 1) -> MeshOption:
    return MeshOption(mesh=MeshConfig(data=data, feature=feature), footprint=footprint(data * feature))


def mesh_options(*data: int, preferred: int = 0, feature: int = 1, **settings: float) -> MeshOptions:
    return MeshOptions(all=tuple(option(d, feature) for d in data), preferred=preferred, **settings)


def view(leaving: tuple[str, ...] = (), used: dict[str, float] | None = None, **cpus: float) -> View:
    """Nodes by name with so many CPUs, of which others or this sweep use some."""
    return View(
        nodes={
            name: NodeState(
                total=Node(total, 0), available=Node(total - (used or {}).get(name, 0), 0), is_leaving=name in leaving
            )
            for name, total in cpus.items()
        }
    )


# Places ------------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 9), max_size=6),
    groups=st.integers(1, 5),
    group=st.sampled_from([1, 2, 4]),
)
def test_a_trial_is_placed_whole_within_the_nodes_and_its_groups_are_together(
    sizes: list[int], groups: int, group: int
) -> None:
    free = {str(number): Node(size, 0) for number, size in enumerate(sizes)}
    places = place(footprint(groups * group), group, free)
    if places is None:
        assert sum(size // group for size in sizes) < groups
        return
    assert len(places) == groups * group
    assert all(places.count(node) <= free[node].cpus for node in places)
    assert all(len(set(places[i : i + group])) == 1 for i in range(0, len(places), group))


def test_as_few_nodes_as_possible_and_of_these_the_tightest() -> None:
    free = {"a": Node(8, 0), "b": Node(4, 0), "c": Node(2, 0)}
    assert place(footprint(2), 1, free) == ("c",) * 2
    assert place(footprint(3), 1, free) == ("b",) * 3
    assert place(footprint(10), 1, free) == ("a",) * 8 + ("c",) * 2


def test_zones_are_told_by_the_label_that_ray_itself_gives() -> None:
    assert ray._raylet.RAY_NODE_ZONE_KEY == ZONE
    assert ray._raylet.NODE_ZONE_ENV == "RAY_NODE_ZONE"


def test_the_ranks_of_a_trial_never_lie_in_two_zones() -> None:
    free = {
        "a1": Node(4, 0, zone="a"),
        "a2": Node(2, 0, zone="a"),
        "b1": Node(4, 0, zone="b"),
        "b2": Node(3, 0, zone="b"),
    }
    assert place(footprint(7), 1, free) == ("b1",) * 4 + ("b2",) * 3
    assert place(footprint(8), 1, free) is None
    assert place(footprint(2), 1, free) == ("a2",) * 2
    # Nobody knows where this one is; it is no reason to refuse.
    assert place(footprint(8), 1, {**free, "c": Node(1, 0)}) == ("b1",) * 4 + ("b2",) * 3 + ("c",)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", None])), max_size=6),
    groups=st.integers(1, 5),
    group=st.sampled_from([1, 2]),
)
def test_a_trial_is_placed_exactly_where_one_zone_has_the_room(
    sizes: list[tuple[int, str | None]], groups: int, group: int
) -> None:
    free = {str(number): Node(size, 0, zone=zone) for number, (size, zone) in enumerate(sizes)}
    places = place(footprint(groups * group), group, free)
    most = most_in_one_zone((zone, size // group) for size, zone in sizes)
    assert (places is not None) == (most >= groups)
    assert len({free[node].zone for node in places or ()} - {None}) <= 1


def test_the_autoscaler_is_asked_for_the_nodes_of_a_trial_in_one_zone() -> None:
    nodes = {"here": NodeState(total=Node(2, 0, zone="a"), available=Node(0, 0))}
    to_come = {"a/0": Node(2, 0, zone="a"), "b/0": Node(4, 0, zone="b"), "b/1": Node(4, 0, zone="b")}
    both = View(nodes=nodes, to_come=to_come)
    allocator = Allocator()
    assert allocator.claim(
        "one", "one", mesh_options(2), View(nodes={"here": replace(nodes["here"], available=Node(2, 0))}), 0.0
    )
    assert allocator.claim("two", "two", mesh_options(8), both, 0.0) is None
    assert Counter(bundle.zone for bundle in wanted_bundles(allocator, both)) == {"a": 2, "b": 8}
    # A third would need more than there can ever be: it is not asked for, since nothing would come for the second then.
    assert allocator.claim("three", "three", mesh_options(6), both, 0.0) is None
    assert len(wanted_bundles(allocator, both)) == 10
    # Where all nodes are in one zone, or nobody knows, nothing is said of zones.
    for zone in ("a", None):
        alike = View(nodes=nodes, to_come={name: replace(node, zone=zone) for name, node in to_come.items()})
        assert {bundle.zone for bundle in wanted_bundles(allocator, alike)} == {None}


def test_gpus_decide_where_there_are_any() -> None:
    free = {"cpu": Node(64, 0), "gpu": Node(8, 2)}
    assert place(footprint(2, gpus=1), 1, free) == ("gpu", "gpu")
    assert place(footprint(3, gpus=1), 1, free) is None
    assert place(footprint(4, gpus=0.5), 1, free) == ("gpu",) * 4


# Claims ------------------------------------------------------------------------------------------------------------


def test_what_one_trial_has_no_other_gets_until_it_is_released() -> None:
    allocator, nodes = Allocator(), view(a=4)
    assert allocator.claim("one", "one", mesh_options(3), nodes, 0.0) is not None
    assert allocator.claim("two", "two", mesh_options(2), nodes, 0.0) is None
    assert allocator.lines(120.0) == ["two waits for 2 workers of 1 CPU, 2 min"]
    allocator.release("one")
    claim = allocator.claim("two", "two", mesh_options(2), nodes, 5.0)
    assert claim is not None
    assert (claim.nodes, allocator.lines(9.0)) == (("a", "a"), [])


def test_what_others_use_is_not_given_and_what_the_sweep_itself_uses_is_not_counted_twice() -> None:
    allocator = Allocator()
    assert allocator.claim("one", "one", mesh_options(2), view(a=4), 0.0) is not None
    running = view(a=4, used={"a": 2})  # its own workers have started
    assert allocator.free(running)["a"].cpus == 2
    assert allocator.free(view(a=4, used={"a": 3}))["a"].cpus == 1


def test_nodes_that_are_about_to_leave_get_nothing_new() -> None:
    allocator = Allocator()
    claim = allocator.claim("one", "one", mesh_options(1), view(a=4, b=1, leaving=("a",)), 0.0)
    assert claim is not None
    assert claim.nodes == ("b",)


def test_a_trial_takes_a_smaller_mesh_only_where_its_own_cannot_be_had_any_more() -> None:
    allocator = Allocator()
    assert allocator.claim("other", "other", mesh_options(1), view(a=2, b=2), 0.0) is not None
    busy = view(a=2, b=2, used={"a": 1})
    assert (
        allocator.claim("wide", "wide", mesh_options(4, 3, 2, 1), busy, 0.0) is None
    )  # it fits once the other has ended
    claim = allocator.claim("wide", "wide", mesh_options(4, 3, 2, 1), view(a=3, used={"a": 1}), 1.0)
    assert claim is not None
    assert claim.option.mesh.data == 2, "what is free now; it grows when there is more"


def test_nodes_that_may_still_come_are_waited_for_but_not_for_ever() -> None:
    allocator, nodes = Allocator(), replace(view(a=2), to_come={"pool/0": Node(4, 0)})
    asked = mesh_options(4, 2, 1, shrink_after_s=60.0)
    assert allocator.claim("wide", "wide", asked, nodes, 0.0) is None
    assert allocator.claim("wide", "wide", asked, nodes, 59.0) is None
    claim = allocator.claim("wide", "wide", asked, nodes, 60.0)
    assert claim is not None
    assert claim.option.mesh.data == 2


def test_feature_groups_need_a_node_each() -> None:
    allocator = Allocator()
    assert allocator.claim("split", "split", mesh_options(2, feature=2), view(a=3, b=1), 0.0) is None
    claim = allocator.claim("split", "split", mesh_options(2, feature=2), view(a=3, b=2), 0.0)
    assert claim is not None
    assert sorted(claim.nodes) == ["a", "a", "b", "b"]


# Nodes that do not arrive --------------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def waiting_placer(nodes: list[View], clock: Clock, **settings: Any) -> Placer:
    """Nobody asks Ray; `nodes[0]` is the cluster."""
    placer = Placer(None, lambda: nodes[0], clock, failures=lambda: ["pool gpu: quota 0"], **settings)
    placer._ask_for = lambda bundles: None  # type: ignore[method-assign]
    return placer


def test_missing_nodes_are_waited_for_as_long_as_the_file_says_and_by_all_trials_together() -> None:
    clock, nodes = Clock(), [view(head=0)]
    placer = waiting_placer(nodes, clock, wait_at_most_s=100.0)
    for clock.now_s in range(0, 100, 10):
        assert not placer.claim("one", "one", mesh_options(2))
        assert placer.overdue("one") == ""
    clock.now_s = 100.0
    expected = "no nodes for 2 workers of 1 CPU in 100 s (resources.wait_at_most_s is 100): pool gpu: quota 0"
    assert placer.overdue("one") == expected
    placer.release("one")
    clock.now_s = 101.0
    assert not placer.claim("two", "two", mesh_options(2))
    assert placer.overdue("two"), "the second trial does not wait for the same nodes all over again"
    assert not placer.claim("other", "other", mesh_options(3))
    assert placer.overdue("other") == "", "other nodes may arrive"
    nodes[0] = view(head=0, pool=2)
    clock.now_s = 110.0
    assert placer.claim("two", "two", mesh_options(2))
    assert placer.overdue("two") == ""


def test_missing_nodes_that_nobody_asked_for_meanwhile_are_counted_anew() -> None:
    clock = Clock()
    placer = waiting_placer([view(head=0)], clock, wait_at_most_s=100.0)
    assert not placer.claim("one", "one", mesh_options(2))
    placer.release("one")
    clock.now_s = 1000.0
    assert not placer.claim("two", "two", mesh_options(2))
    assert placer.overdue("two") == ""


def test_a_trial_that_waits_for_its_turn_waits_as_long_as_it_takes() -> None:
    clock = Clock()
    placer = waiting_placer([view(a=2)], clock, wait_at_most_s=100.0)
    assert placer.claim("one", "one", mesh_options(2))
    for clock.now_s in (0.0, 50.0, 5000.0):
        assert not placer.claim("two", "two", mesh_options(2))
        assert placer.overdue("two") == ""


@pytest.mark.parametrize("to_come", [{}, {"pool/0": Node(4, 0)}])
def test_by_default_waiting_is_bounded_where_an_autoscaler_launches_nodes_alone(to_come: dict[str, Node]) -> None:
    clock = Clock()
    placer = waiting_placer([replace(view(head=0), to_come=to_come)], clock)
    for clock.now_s in range(0, 4000, 50):
        assert not placer.claim("one", "one", mesh_options(2))
    assert bool(placer.overdue("one")) == bool(to_come)


def test_why_nodes_are_not_launched_is_read_while_somebody_waits_alone() -> None:
    placer = waiting_placer([view(a=1)], Clock())
    assert placer.launch_failures() == []
    assert not placer.claim("one", "one", mesh_options(2))
    assert placer.launch_failures() == ["pool gpu: quota 0"]


@dataclass
class Launch:
    ray_node_type_name: str
    failed_ts_s: int | None
    details: str | None


def test_each_pool_has_the_line_of_its_newest_failure_with_what_to_change() -> None:
    wrapped = "launch failed with Failed to launch 2 nodes of type a with request id 1-2: "
    launches = [
        Launch(
            "a", 100, "launch failed with g5.xlarge on spot: MaxSpotInstanceCountExceeded: Max spot\ncount exceeded"
        ),
        Launch("a", 90, "launch failed with g5.xlarge on spot: InsufficientInstanceCapacity: none"),
        Launch("b", 95, wrapped),
        Launch("c", 1, "launch failed with long ago"),
    ]
    first, second = failure_lines(launches, 150.0, recent_s=60.0)
    assert first.startswith(
        "pool a: no node can be launched: g5.xlarge on spot: MaxSpotInstanceCountExceeded: Max spot count exceeded; "
        "ask AWS for a larger Spot quota"
    )
    assert second == "pool b: no node can be launched: Ray does not say why; see monitor.log on the head"
    assert failure_lines(launches, 1000.0) == []


# Moves -------------------------------------------------------------------------------------------------------------


def test_a_trial_moves_when_a_node_of_it_is_about_to_leave() -> None:
    allocator = Allocator()
    allocator.claim("one", "one", mesh_options(2), view(a=2, b=2), 0.0)
    (node,) = set(allocator.allocations["one"].nodes)
    other = "b" if node == "a" else "a"
    assert not allocator.should_move("one", mesh_options(2), view(a=2, b=2, leaving=(other,)), 1.0)
    assert allocator.should_move("one", mesh_options(2), view(a=2, b=2, leaving=(node,)), 1.0)


def test_a_trial_grows_when_there_was_room_for_a_while_and_nobody_waits() -> None:
    allocator, asked = Allocator(), mesh_options(4, 2, grow_after_s=30.0)
    assert allocator.claim("one", "one", asked, view(a=2), 0.0) is not None
    assert allocator.allocations["one"].option.mesh.data == 2
    grown = view(a=2, b=2, used={"a": 2})
    assert not allocator.should_move("one", asked, view(a=2, used={"a": 2}), 1.0)
    assert not allocator.should_move("one", asked, grown, 10.0)
    assert not allocator.should_move("one", asked, grown, 39.0)
    assert allocator.should_move("one", asked, grown, 40.0)
    allocator.claim("two", "two", mesh_options(3), grown, 41.0)  # waits
    assert not allocator.should_move("one", asked, grown, 90.0)


def test_growth_beyond_what_was_asked_for_needs_leave() -> None:
    allocator = Allocator()
    asked = mesh_options(4, 2, 1, preferred=1, grow_after_s=0.0)
    assert allocator.claim("one", "one", asked, view(a=8), 0.0) is not None
    assert allocator.allocations["one"].option.mesh.data == 2, "a trial starts as it was asked for"
    assert not allocator.should_move("one", mesh_options(2, 1), view(a=8, used={"a": 2}), 1.0)
    assert allocator.should_move("one", asked, view(a=8, used={"a": 2}), 1.0)
    grown = allocator.claim("one", "one", asked, view(a=8), 2.0)
    assert grown is not None
    assert grown.option.mesh.data == 4, "it moved to grow"
    assert not allocator.should_move("one", asked, view(a=8, used={"a": 4}), 90.0)


# Attempts ----------------------------------------------------------------------------------------------------------


class AllocatorClient:
    """A placer; each attempt's nodes are lost as a test says."""

    def __init__(self, *takes: Placement | None, lost: Sequence[str] = ()) -> None:
        self.takes, self.lost_nodes, self.released = list(takes), list(lost), list[str]()
        self.reason = ""

    def take(self, trial: str, name: str, asked: MeshOptions) -> Placement | None:
        return self.takes.pop(0)

    def release(self, trial: str) -> None:
        self.released.append(trial)

    def lost(self, trial: str) -> list[str]:
        return [self.lost_nodes.pop(0)] if self.lost_nodes else []

    def overdue(self, trial: str) -> str:
        return self.reason


@pytest.fixture
def attempts_with(tmp_path):  # type: ignore[no-untyped-def]
    from ray.train import WorkerGroupError

    class Trial:
        id, name = "t", "topk"

    def run(outcomes: list[str | None], allocator: AllocatorClient, retries: int = 1, over: bool = False) -> bool:
        """`None` among the outcomes is an attempt whose worker dies."""

        def attempt(placement: Placement) -> str:
            outcome = outcomes.pop(0)
            if outcome is None:
                raise WorkerGroupError("a worker died", {0: RuntimeError("died")})
            return outcome

        made = Attempts(
            trial=Trial(),  # type: ignore[arg-type]
            mesh_options=mesh_options(1),
            allocator=allocator,  # type: ignore[arg-type]
            retries=retries,
            is_over=lambda: over,
            sleep=lambda seconds: None,
        )
        return made.run(attempt)

    return run


PLACED = Placement(option=option(1), nodes=("a",))


def test_a_trial_that_moves_goes_on_until_it_ends(attempts_with) -> None:  # type: ignore[no-untyped-def]
    assert attempts_with([MOVING, MOVING, DONE], AllocatorClient(PLACED, None, PLACED, PLACED))


def test_failures_of_its_own_are_counted_and_those_of_nodes_are_not(attempts_with) -> None:  # type: ignore[no-untyped-def]
    from ray.train import WorkerGroupError

    with pytest.raises(WorkerGroupError):
        attempts_with([None, None], AllocatorClient(PLACED, PLACED), retries=1)
    assert attempts_with([None] * 5 + [DONE], AllocatorClient(*[PLACED] * 6, lost="abcde"), retries=1)


def test_a_node_that_leaves_and_stays_excuses_one_failure(attempts_with) -> None:  # type: ignore[no-untyped-def]
    from ray.train import WorkerGroupError

    assert attempts_with([None, None, DONE], AllocatorClient(*[PLACED] * 3, lost="aa"), retries=1)
    with pytest.raises(WorkerGroupError):
        attempts_with([None, None, None], AllocatorClient(*[PLACED] * 3, lost="aaa"), retries=1)


def test_a_trial_that_waits_when_the_sweep_ends_is_over(attempts_with) -> None:  # type: ignore[no-untyped-def]
    allocator = AllocatorClient(None)
    assert not attempts_with([], allocator, over=True)
    assert allocator.released == ["t"]


def test_a_trial_whose_nodes_are_missing_for_too_long_fails_with_the_cause(attempts_with) -> None:  # type: ignore[no-untyped-def]
    allocator = AllocatorClient(PLACED, None)
    allocator.reason = "no nodes in 60 s: quota 0"
    with pytest.raises(NoNodesError, match="quota 0"):
        attempts_with([MOVING], allocator)


def test_a_placer_hands_out_what_it_claimed_and_claims_anew_for_the_next_attempt() -> None:
    allocator = fixed_allocator({"a": Node(2, 0), "b": Node(1, 0)})
    assert allocator.claim("t", "t", mesh_options(1))
    first = allocator.take("t", "t", mesh_options(1))
    assert first is not None
    assert first.nodes == ("b",)
    assert allocator.take("t", "t", mesh_options(1)) == first, "the same place is free again for it"
    assert allocator.has_room(footprint(2))
    assert not allocator.has_room(footprint(3))
    assert allocator.lost("t") == []
    allocator.release("t")
    assert allocator.has_room(footprint(3))


# The cluster at a glance -------------------------------------------------------------------------------------------


class Cluster:
    """Counts how often it is looked at; its time stands still until a test moves it."""

    def __init__(self, now: View) -> None:
        self.now, self.looks, self.time_s = now, 0, 100.0

    def look(self) -> View:
        self.looks += 1
        return self.now

    def clock(self) -> float:
        return self.time_s


def test_all_trials_that_ask_within_a_second_are_answered_by_one_look_at_the_cluster() -> None:
    cluster = Cluster(view(a=64))
    placer = Placer(None, cluster.look, cluster.clock)
    for number in range(32):
        assert placer.claim(str(number), "t", mesh_options(1))
        assert placer.take(str(number), "t", mesh_options(1)) is not None
        assert not placer.should_move(str(number), mesh_options(1))
    assert cluster.looks == 1
    cluster.time_s += RECENT_S
    cluster.now = view(a=64, leaving=("a",))
    assert all(placer.should_move(str(number), mesh_options(1)) for number in range(32))
    assert cluster.looks == 2


def test_what_trials_have_is_known_at_once_however_old_the_view() -> None:
    cluster = Cluster(view(a=3))
    placer = Placer(None, cluster.look, cluster.clock)
    assert placer.claim("one", "one", mesh_options(2))
    assert not placer.claim("two", "two", mesh_options(2))
    placer.release("one")
    assert placer.claim("two", "two", mesh_options(2))
    assert cluster.looks == 1


def test_a_trial_that_is_placed_anew_is_not_in_its_own_way() -> None:
    cluster = Cluster(view(a=2))
    placer = Placer(None, cluster.look, cluster.clock)
    for used in (2, 0):
        assert placer.take("one", "t", mesh_options(2)) is not None
        cluster.now, cluster.time_s = view(a=2, used={"a": used}), cluster.time_s + 2 * RECENT_S
        assert not placer.should_move("one", mesh_options(2))
        cluster.now = view(a=2)  # its workers are gone by now


def test_whether_a_node_was_lost_is_not_answered_from_memory() -> None:
    cluster = Cluster(view(a=1))
    placer = Placer(None, cluster.look, cluster.clock)
    assert placer.claim("one", "one", mesh_options(1))
    cluster.now = view(b=1)
    assert placer.lost("one") == ["a"]


def test_a_clock_that_is_set_back_keeps_no_view_for_ever() -> None:
    cluster = Cluster(view(a=1))
    recent = RecentView(cluster.look, cluster.clock)
    recent()
    cluster.time_s -= 3600.0
    cluster.now = view(b=1)
    assert set(recent().nodes) == {"b"}
