"""What the doctor found, as plain values: the checks judge these and touch nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lexray.storage.objects.settings import StorageSettings


@dataclass(frozen=True)
class Unknown:
    """Stands where a finding should be."""

    reason: str
    """Why there is none, for people."""
    is_asked: bool = True
    """False: nobody wanted to know."""


NOT_ASKED = Unknown("not asked for", is_asked=False)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A folder and the file system that holds it."""

    path: str
    total_bytes: int
    free_bytes: int
    """What users other than root may still write."""
    held_bytes: int = 0
    """What lies in the folder itself; counted for the cache alone."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU as its driver names it."""

    name: str
    driver: str


@dataclass(frozen=True, kw_only=True)
class Efa:
    """EFA cards of a node, and what NCCL needs to use them."""

    cards: int
    """That the kernel lists."""
    openable: int
    """Of these, the ones whose device files this process may open."""
    plugin_fault: str = ""
    """Why the library by which NCCL uses them does not load; empty where it does."""


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """What a node says of itself."""

    versions: Mapping[str, str]
    """Of python, ray, torch, deepspeed, and `lexray`: the hash of its packages' files."""
    devices: tuple[Device, ...] | Unknown
    fabrics: tuple[str, ...] = ()
    """Names of its InfiniBand or EFA devices."""
    efa: Efa | None = None
    """None: it has no EFA card."""
    shared: Disk | Unknown
    """`/dev/shm`."""
    plasma_dir: str | None
    """Where Ray keeps its object store; None where its command line cannot be read."""
    temp: Disk | Unknown
    """Ray's folder of sessions, which takes logs and spilled objects."""
    cache: Disk | Unknown = NOT_ASKED
    """Folder of the sweep's chunk cache."""
    memory_bytes: int
    """Of the machine, or of the container."""
    used_bytes: int
    """Of it, without what the system could drop at once."""
    liveness: Mapping[str, str] | Unknown
    """Settings of lost nodes that its raylet runs with, by Ray's names (`RAY_...`)."""
    gcs_liveness: Mapping[str, str] | Unknown = NOT_ASKED
    """The same of the GCS; asked on the head alone."""

    @property
    def has_devices(self) -> bool:
        return not isinstance(self.devices, Unknown) and bool(self.devices)


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the head's two doors are open: addresses, `0.0.0.0` and `::` for all of the machine's."""

    dashboard: tuple[str, ...]
    gcs: tuple[str, ...]
    public: tuple[str, ...]
    """Addresses of the head's interfaces that the internet can route to."""


@dataclass(frozen=True, kw_only=True)
class DashboardFacts:
    """The dashboard, asked on the head."""

    url: str
    with_token: int | Unknown
    """HTTP status of a request as Ray's own clients make it."""
    without_token: int | Unknown
    """The same without any token."""
    listening: Listening | Unknown


@dataclass(frozen=True, kw_only=True)
class ClockReading:
    """A node's clock beside that of whoever asked."""

    ahead_s: float
    """How far it is ahead; half of the round trip is taken off."""
    error_s: float
    """How wrong that may be: half of the round trip."""


@dataclass(frozen=True, kw_only=True)
class StoreFault:
    """A step that a store refused."""

    step: str
    """`manifest`, `read`, `write`, `read back`, `delete`, `share`."""
    reason: str
    code: str | None = None
    """What S3 calls it."""


@dataclass(frozen=True, kw_only=True)
class StoreSpeed:
    """What went well: bytes moved, and in how long."""

    bytes: int
    seconds: float


StoreFinding = StoreSpeed | StoreFault | Unknown


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """A living node of the cluster, whether it answers or not."""

    name: str
    """Its address, with the start of its id where two nodes share one."""
    is_head: bool = False
    gpus: float = 0.0
    """That Ray counts there."""
    object_store_bytes: int = 0
    machine: MachineFacts | Unknown
    clock: ClockReading | Unknown = NOT_ASKED
    dashboard: int | Unknown = NOT_ASKED
    """HTTP status of the dashboard as asked from this node."""
    data: StoreFinding = NOT_ASKED
    output: StoreFinding = NOT_ASKED
    identity: str | Unknown = NOT_ASKED
    """Who the provider takes the node for."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """Nodes that it could not connect to, and why."""


@dataclass(frozen=True, kw_only=True)
class DeadNode:
    """A node that died without having been told to."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """One sum over all nodes."""

    backend: str
    nodes: int
    bytes: int
    """Of the tensor."""
    seconds: float
    transport: str | None = None
    """What NCCL says that it uses between nodes."""

    @property
    def gb_s(self) -> float:
        """Bytes that each node sends in a ring, per second, in GB."""
        return 2 * (self.nodes - 1) / self.nodes * self.bytes / self.seconds / 1e9


@dataclass(frozen=True, kw_only=True)
class BucketRegion:
    """Where a bucket lies, and where lexray and its nodes think they are."""

    url: str
    bucket: str | Unknown
    asked: str | None
    """`storage.region`, or else what the nodes' environment says."""
    nodes: str | None
    """Where the nodes run, if anything tells."""


@dataclass(frozen=True, kw_only=True)
class WandbFacts:
    """W&B as the driver of a sweep sees it."""

    mode: str
    """Of the sweep file: auto, online, offline, disabled."""
    has_key: bool
    host: str
    status: int | Unknown
    """HTTP status of a request with the key; 401 and 403 refuse it."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything about a cluster."""

    client_versions: Mapping[str, str]
    nodes: tuple[NodeReport, ...]
    dead: tuple[DeadNode, ...] = ()
    dashboard: DashboardFacts | Unknown = NOT_ASKED
    regions: tuple[BucketRegion, ...] = ()
    data_url: str | None = None
    output_url: str | None = None
    storage: StorageSettings = field(default_factory=StorageSettings)
    cache_bytes: int = 0
    """That the sweep's chunk cache may take on each node."""
    gloo: AllReduce | Unknown = NOT_ASKED
    nccl: AllReduce | Unknown = NOT_ASKED
    wandb: WandbFacts | Unknown = NOT_ASKED
    launch_failures: tuple[str, ...] | Unknown = ()
    """Why the autoscaler launches no nodes, one line for each pool."""
    start_notes: tuple[str, ...] | None = None
    """What this machine lacked when Ray was started here; None for a Ray that ran before."""

    @property
    def answering(self) -> list[tuple[NodeReport, MachineFacts]]:
        """Nodes that told about themselves."""
        return [(node, node.machine) for node in self.nodes if isinstance(node.machine, MachineFacts)]

    @property
    def head(self) -> NodeReport | None:
        return next((node for node in self.nodes if node.is_head), None)
