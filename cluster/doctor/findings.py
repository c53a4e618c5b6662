"""Findings of the doctor, as plain values; the checks are pure functions of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lexray.storage.objects.settings import StorageSettings


@dataclass(frozen=True)
class Unknown:
    """Placeholder for a finding that could not be made."""

    reason: str
    """Reason, as shown to the user."""
    is_asked: bool = True
    """False if the check was not requested."""


NOT_ASKED = Unknown("not asked for", is_asked=False)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A folder and the file system that holds it."""

    path: str
    total_bytes: int
    free_bytes: int
    """Free space for users other than root."""
    held_bytes: int = 0
    """Size of the folder's files; measured for the chunk cache only."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU as its driver names it."""

    name: str
    driver: str


@dataclass(frozen=True, kw_only=True)
class Efa:
    """EFA cards of a node, and whether NCCL can use them."""

    cards: int
    """Cards that the kernel lists."""
    openable: int
    """Cards whose device files this process may open."""
    plugin_fault: str = ""
    """Why NCCL's EFA plugin does not load; empty if it does."""


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """Facts that a node reports about itself."""

    versions: Mapping[str, str]
    """Versions of python, ray, torch and deepspeed; `lexray` is the hash of its package's files."""
    devices: tuple[Device, ...] | Unknown
    fabrics: tuple[str, ...] = ()
    """Names of its InfiniBand or EFA devices."""
    efa: Efa | None = None
    """None if it has no EFA card."""
    shared: Disk | Unknown
    """`/dev/shm`."""
    plasma_dir: str | None
    """Folder of Ray's object store; None if the raylet's command line cannot be read."""
    temp: Disk | Unknown
    """Ray's session folder, which holds logs and spilled objects."""
    cache: Disk | Unknown = NOT_ASKED
    """Folder of the sweep's chunk cache."""
    memory_bytes: int
    """Memory of the machine, or the container's limit if that is lower."""
    used_bytes: int
    """Memory in use, without file cache that the kernel can drop."""
    liveness: Mapping[str, str] | Unknown
    """Health-check and keep-alive settings of its raylet, by Ray's names (`RAY_...`)."""
    gcs_liveness: Mapping[str, str] | Unknown = NOT_ASKED
    """The same settings of the GCS; read on the head only."""

    @property
    def has_devices(self) -> bool:
        return not isinstance(self.devices, Unknown) and bool(self.devices)


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Addresses on which the head's dashboard and GCS listen; `0.0.0.0` and `::` mean all of the machine's."""

    dashboard: tuple[str, ...]
    gcs: tuple[str, ...]
    public: tuple[str, ...]
    """Addresses of the head's interfaces that the internet can route to."""


@dataclass(frozen=True, kw_only=True)
class DashboardFacts:
    """The dashboard, as queried from the head."""

    url: str
    with_token: int | Unknown
    """HTTP status of a request as Ray's own clients make it."""
    without_token: int | Unknown
    """HTTP status of the same request without a token."""
    listening: Listening | Unknown


@dataclass(frozen=True, kw_only=True)
class ClockReading:
    """A node's clock compared with the caller's."""

    ahead_s: float
    """Seconds by which the node's clock is ahead, corrected by half the round trip."""
    error_s: float
    """Uncertainty of `ahead_s`: half the round trip, in seconds."""


@dataclass(frozen=True, kw_only=True)
class StoreFault:
    """A step that a store refused."""

    step: str
    """`manifest`, `read`, `write`, `read back`, `delete`, `share`."""
    reason: str
    code: str | None = None
    """S3's error code."""


@dataclass(frozen=True, kw_only=True)
class StoreSpeed:
    """A successful transfer: bytes moved and seconds taken."""

    bytes: int
    seconds: float


StoreFinding = StoreSpeed | StoreFault | Unknown


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """A node that Ray counts as alive, whether it answers or not."""

    name: str
    """Its address, with a prefix of its id where two nodes share one."""
    is_head: bool = False
    gpus: float = 0.0
    """GPUs that Ray counts on the node."""
    object_store_bytes: int = 0
    machine: MachineFacts | Unknown
    clock: ClockReading | Unknown = NOT_ASKED
    dashboard: int | Unknown = NOT_ASKED
    """HTTP status of the dashboard, as queried from this node."""
    data: StoreFinding = NOT_ASKED
    output: StoreFinding = NOT_ASKED
    identity: str | Unknown = NOT_ASKED
    """The cloud identity of the node's credentials."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """Reasons of failed connections, by name of the other node."""


@dataclass(frozen=True, kw_only=True)
class DeadNode:
    """A node that died unexpectedly."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """A timed all-reduce over all nodes."""

    backend: str
    nodes: int
    bytes: int
    """Size of the tensor."""
    seconds: float
    transport: str | None = None
    """Transport between nodes, from NCCL's log."""

    @property
    def gb_s(self) -> float:
        """Bandwidth in GB/s: bytes that each node sends in a ring all-reduce, per second."""
        return 2 * (self.nodes - 1) / self.nodes * self.bytes / self.seconds / 1e9


@dataclass(frozen=True, kw_only=True)
class BucketRegion:
    """Region of a bucket, the region that lexray uses, and the region of the nodes."""

    url: str
    bucket: str | Unknown
    asked: str | None
    """`storage.region`, or else the region of the nodes' environment."""
    nodes: str | None
    """Region of the nodes; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class WandbFacts:
    """W&B as the driver of a sweep sees it."""

    mode: str
    """Mode of the sweep file: auto, online, offline or disabled."""
    has_key: bool
    host: str
    status: int | Unknown
    """HTTP status of a request with the key; 401 and 403 refuse it."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All findings about a cluster."""

    client_versions: Mapping[str, str]
    nodes: tuple[NodeReport, ...]
    dead: tuple[DeadNode, ...] = ()
    dashboard: DashboardFacts | Unknown = NOT_ASKED
    regions: tuple[BucketRegion, ...] = ()
    data_url: str | None = None
    output_url: str | None = None
    storage: StorageSettings = field(default_factory=StorageSettings)
    cache_bytes: int = 0
    """Size limit of the sweep's chunk cache on each node."""
    gloo: AllReduce | Unknown = NOT_ASKED
    nccl: AllReduce | Unknown = NOT_ASKED
    wandb: WandbFacts | Unknown = NOT_ASKED
    launch_failures: tuple[str, ...] | Unknown = ()
    """Why the autoscaler launches no nodes, one line for each pool."""
    start_notes: tuple[str, ...] | None = None
    """Shortages of this machine found when Ray was started here; None for a Ray that already ran."""

    @property
    def answering(self) -> list[tuple[NodeReport, MachineFacts]]:
        """Nodes that reported their facts."""
        return [(node, node.machine) for node in self.nodes if isinstance(node.machine, MachineFacts)]

    @property
    def head(self) -> NodeReport | None:
        return next((node for node in self.nodes if node.is_head), None)
