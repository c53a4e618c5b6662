"""Names of Ray that are not its interface, as far as commands need them; tests hold each to what is relied on here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
import ray
from ray._private import ray_constants
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled
from ray.core.generated import autoscaler_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from lexray.cluster.provisioned.description import Pool
from lexray.tuning.placement.memory_split import memory_split
from lexray.tuning.ray_backend.cluster_view import zone_resource


def announce_node_groups(pools: Iterable[Pool]) -> None:
    """Tell the connected cluster what it may become, where Ray itself looks: its autoscalers leave it empty."""
    config = autoscaler_pb2.ClusterConfig()  # type: ignore[attr-defined]  # protobuf makes it when imported
    for pool in pools:
        added = config.node_group_configs.add(name=pool.name, min_count=pool.min_nodes, max_count=pool.max_nodes)
        memory = memory_split(pool.memory_gib).heap
        zone = {zone_resource(pool.zone): 1} if pool.zone is not None else {}
        added.resources.update({"CPU": int(pool.cpus), "GPU": pool.gpus, "memory": memory, **zone})
    _internal_kv_put(
        ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY,  # type: ignore[attr-defined]  # compiled
        config.SerializeToString(),
        overwrite=True,
        namespace=ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),  # type: ignore[attr-defined]
    )


def dashboard_address() -> str | None:
    """Return where the dashboard of the connected cluster says it is; None where it runs without one."""
    found = _internal_kv_get(ray_constants.DASHBOARD_ADDRESS, namespace=ray_constants.KV_NAMESPACE_DASHBOARD)
    return found.decode() if found else None


def auth_headers() -> dict[str, str]:
    """Return the headers by which Ray's own clients prove that they have the token; empty without one."""
    return dict(get_auth_headers_if_auth_enabled({}))


def wants_another_token(address: str, timeout_s: float) -> bool:
    """Return whether the cluster at `HOST:PORT` refuses this process's token; False also where it does not answer."""
    channel: AbstractContextManager[Any] = init_grpc_channel(address)
    with channel as opened:
        try:
            question = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]  # protobuf makes it when imported
            gcs_service_pb2_grpc.NodeInfoGcsServiceStub(opened).CheckAlive(question, timeout=timeout_s)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


@contextmanager
def on_loopback() -> Iterator[None]:
    """Have Ray take 127.0.0.1 for this node's address, as it does on macOS; else it listens on every interface."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def reread_token_settings() -> None:
    """Have Ray read its variables again: it did when it was imported, and keeps the token that it once found."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
