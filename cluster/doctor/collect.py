"""Gathers the findings from the connected cluster: one probe a node, concurrent calls, one deadline."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ray

from lexray.cluster.doctor.collectives import STORE_S, read_clocks, shared_by_all, sum_over, unreached
from lexray.cluster.doctor.dashboard import ask_dashboard, look_at_dashboard
from lexray.cluster.doctor.findings import (
    NOT_ASKED,
    AllReduce,
    BucketRegion,
    DashboardFacts,
    Findings,
    MachineFacts,
    NodeReport,
    Unknown,
)
from lexray.cluster.doctor.machine import look_at_machine, versions
from lexray.cluster.doctor.nodes import SHORT_ID, Clock, Deadline, Living, PendingCalls, Scene, nodes_of, probed
from lexray.cluster.doctor.store_checks import is_s3
from lexray.cluster.doctor.stores import read_one_chunk, region_of, who_am_i
from lexray.cluster.doctor.wandb_host import look_at_wandb
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store
from lexray.tuning.ray_backend.launch_failures import launch_failures

LAUNCHES_S = 600.0
"""Age limit in seconds of the failed node launches that are reported."""
LOOK_S, DASHBOARD_S = 6.0, 13.0
"""Time limits in seconds of a node's own checks, and of two dashboard requests, since it may still be starting."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Stores and settings to check in addition to the cluster itself."""

    data_url: str | None = None
    output_url: str | None = None
    storage: StorageSettings = field(default_factory=StorageSettings)
    cache_dir: str | None = None
    cache_bytes: int = 0
    wandb_mode: str = "auto"
    region: str | None = None
    """Region of the nodes, from the cluster's description."""


def gather(request: Request, deadline: Deadline, clock_of: Callable[[str], Clock] = lambda name: time.time) -> Findings:
    """Collect all findings about the connected cluster before the deadline. `clock_of` returns a node's clock by its
    name.
    """

    def look(node: Living, probe: Any) -> Any:
        return probe.call.remote(look_at_machine, is_head=node.is_head, cache_dir=request.cache_dir)

    mine = versions()  # first: this must hash the code that was uploaded, before it can change
    living, dead = nodes_of(ray.nodes())
    with ThreadPoolExecutor(2) as here, probed(living, deadline, clock_of) as scene:
        wandb = here.submit(look_at_wandb, request.wandb_mode)
        failures = here.submit(_launch_failures)
        stores = _Stores(scene=scene, request=request)
        asked = stores.ask()
        machines = scene.answers(scene.ask(LOOK_S, look))
        dashboard = scene.of_head(DASHBOARD_S, look_at_dashboard)
        told: dict[str, dict[str, Any]] = {
            "dashboard": _reach_dashboard(scene, dashboard),
            "clock": read_clocks(scene),
            "unreached": unreached(scene),
        }
        gloo, nccl = _sums(scene, machines, is_cut=bool(told["unreached"]))
        told |= stores.answers(asked)
        return Findings(
            client_versions=mine,
            nodes=tuple(_report(node, machines.get(node.name) or scene.silent[node.name], told) for node in living),
            dead=tuple(dead),
            dashboard=dashboard,
            regions=stores.regions(),
            data_url=request.data_url,
            output_url=request.output_url,
            storage=request.storage,
            cache_bytes=request.cache_bytes,
            gloo=gloo,
            nccl=nccl,
            wandb=wandb.result(),
            launch_failures=failures.result(),
        )


def _launch_failures() -> tuple[str, ...] | Unknown:
    try:
        return tuple(launch_failures(LAUNCHES_S))
    except Exception as error:
        return Unknown(f"the GCS does not report launches ({' '.join(str(error).split())})")


def _report(node: Living, machine: MachineFacts | Unknown, told: Mapping[str, Mapping[str, Any]]) -> NodeReport:
    """Build the report of a node from the answers to the questions that were asked."""
    return NodeReport(
        name=node.name,
        is_head=node.is_head,
        gpus=node.resources.get("GPU", 0.0),
        object_store_bytes=int(node.resources.get("object_store_memory", 0)),
        machine=machine,
        **{field_: answers[node.name] for field_, answers in told.items() if node.name in answers},
    )


def _reach_dashboard(scene: Scene, dashboard: DashboardFacts | Unknown) -> dict[str, int | Unknown]:
    if isinstance(dashboard, Unknown):
        return {}
    return scene.answers(scene.ask(LOOK_S, lambda node, probe: probe.call.remote(ask_dashboard, dashboard.url)))


def _sums(
    scene: Scene, machines: Mapping[str, Any], *, is_cut: bool
) -> tuple[AllReduce | Unknown, AllReduce | Unknown]:
    """Time all-reduces over all nodes and over those with GPUs; skipped if nodes cannot reach each other."""
    if is_cut:
        return NOT_ASKED, NOT_ASKED
    with_gpus = [name for name, found in machines.items() if isinstance(found, MachineFacts) and found.has_devices]
    return sum_over(scene, "gloo", list(machines)), sum_over(scene, "nccl", with_gpus)


@dataclass(frozen=True, kw_only=True)
class _Stores:
    """Checks of the data and output stores from every node; started first, since a store may be slow."""

    scene: Scene
    request: Request

    def ask(self) -> dict[str, PendingCalls]:
        """Start the store checks; return the pending calls by the field of `NodeReport` that they fill."""
        request, settings = self.request, self.request.storage
        numbers = {node.name: number for number, node in enumerate(self.scene.nodes)}
        asked = {}
        if request.data_url is not None:
            asked["data"] = self._each(
                lambda n, p: p.call.remote(read_one_chunk, request.data_url, settings, numbers[n.name])
            )
        if request.output_url is not None:
            asked["output"] = self._each(lambda n, p: p.output.remote(request.output_url, settings, _key(n.id)))
        if is_s3(request.data_url) or is_s3(request.output_url):
            asked["identity"] = self._each(lambda n, p: p.call.remote(who_am_i, settings))
        return asked

    def answers(self, asked: Mapping[str, PendingCalls]) -> dict[str, dict[str, Any]]:
        """Return the answers by field and node name, then delete everything that the probes wrote."""
        told = {field_: self.scene.answers(question) for field_, question in asked.items()}
        url = self.request.output_url
        if url is not None:
            if len(self.scene.nodes) > 1 and Store.at(url).local_path is not None:
                told["output"] |= shared_by_all(self.scene, url, self.request.storage, _key("shared"))
            self.scene.answers(self._each(lambda node, probe: probe.tidy.remote()))
        return told

    def regions(self) -> tuple[BucketRegion, ...]:
        """Return the regions of the data and output buckets, as seen from the head."""
        urls = [url for url in (self.request.data_url, self.request.output_url) if url is not None and is_s3(url)]
        of_buckets = {url.split("://", 1)[1].split("/", 1)[0]: url for url in reversed(urls)}
        told = []
        for url in of_buckets.values():
            answer = self.scene.of_head(STORE_S, region_of, url, self.request.storage, self.request.region)
            is_told = isinstance(answer, BucketRegion)
            told.append(answer if is_told else BucketRegion(url=url, bucket=answer, asked=None, nodes=None))
        return tuple(told)

    def _each(self, question: Callable[[Living, Any], Any]) -> PendingCalls:
        return self.scene.ask(STORE_S, question)


def _key(name: str) -> str:
    """Return an object key that no other run of the doctor uses."""
    return f".lexray-doctor-{name[:SHORT_ID]}-{uuid.uuid4().hex[:8]}"
