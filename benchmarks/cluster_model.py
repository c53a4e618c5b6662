"""A cluster that trains dictionaries from one dataset, as events: store, network, window servers, PCIe, GPUs, sums.

A window server on each node reads, for the trials there, the rows that its workers need of every batch: from the store
over the node's network, checked and permuted by the server's cores, at most `ahead_steps` before the slowest trial.
Each worker takes its rows over its own PCIe link, one batch ahead, computes, and sums gradients with the other workers
of its trial: first those of a node over their link, then nodes over the network between them.
Workers of one trial on one node do the same at the same time, so they are one thing here.

Trials of one node read the same batches and share its server; they differ in nothing. A trial of several nodes reads
each row once for all of them, several trials on several nodes once a node: that is what lexray does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.event_loop import Action, Line, Loop

WARM_SHARE = 0.25
"""Of the steps, in which buffers fill and which do not count for speeds and idle time."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of the machines."""

    store_bytes_per_s: float
    """Of the whole object store."""
    store_latency_s: float
    """Until the first byte of a read."""
    inlet_bytes_per_s: float
    """That a node receives from the store."""
    fabric_bytes_per_s: float
    """That a node sends to others in a sum; another network, or another card."""
    server_bytes_per_s: float
    """That a node's window server checks and permutes."""
    pcie_bytes_per_s: float
    """Of one worker's link to its device."""
    link_bytes_per_s: float
    """That a worker sends to others of its node in a sum."""
    hop_latency_s: float
    """Of one hop of a sum."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Trials of a cluster and their sizes."""

    workers: int
    """Of all trials together; each has a device."""
    workers_per_node: int
    workers_per_trial: int
    batch_rows: int
    """Of one trial's global batch."""
    row_bytes: int
    step_s: float
    """That a worker computes for its part of a batch."""
    sum_bytes: int
    """That each worker gives to a sum over its trial's workers."""
    steps: int
    ahead_steps: int = 4
    """Batches that a server reads before the slowest trial of its node needs them."""

    def __post_init__(self) -> None:
        smaller, larger = sorted((self.workers_per_trial, self.workers_per_node))
        if larger % smaller or self.workers % larger or self.batch_rows % self.workers_per_trial:
            raise ValueError(
                f"workers {self.workers}, a node {self.workers_per_node}, a trial {self.workers_per_trial}: nodes have "
                f"whole trials or trials whole nodes, and {self.batch_rows} rows of a batch are dealt evenly"
            )

    @property
    def nodes(self) -> int:
        return self.workers // self.workers_per_node

    @property
    def trials(self) -> int:
        return self.workers // self.workers_per_trial

    @property
    def trials_per_node(self) -> int:
        return max(1, self.workers_per_node // self.workers_per_trial)

    @property
    def nodes_per_trial(self) -> int:
        return max(1, self.workers_per_trial // self.workers_per_node)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a simulation; shares are of the time after the warm-up, means over workers, nodes or links."""

    rows_per_s: float
    """Trained, of all trials together."""
    rows_trained: int
    """In all steps of all trials."""
    rows_read: int
    """From the store."""
    bytes_read: int
    seconds: float
    """Of all steps."""
    data_wait: float
    """Share of its time in which a device has no rows."""
    sum_wait: float
    """Share in which it waits for a sum, or for another worker that comes to it late."""
    busy: dict[str, float] = field(default_factory=dict)
    """Share of all its time in which each kind of thing works."""

    @property
    def idle(self) -> float:
        return self.data_wait + self.sum_wait

    @property
    def limit(self) -> str:
        """Part that works the largest share of its time."""
        return max(self.busy, key=lambda name: self.busy[name])


class _Node:
    """Its server, and the rows that are there."""

    def __init__(self, model: _Model) -> None:
        rates = model.rates
        self.model = model
        self.inlet = Line(model.loop, rates.inlet_bytes_per_s)
        self.fabric = Line(model.loop, rates.fabric_bytes_per_s)
        self.server = Line(model.loop, rates.server_bytes_per_s)
        self.asked = self.ready = 0
        """Batches."""
        self.parts: list[_Part] = []

    def read(self) -> None:
        """Ask for as many batches as may be asked for."""
        model, job = self.model, self.model.job
        rows = job.batch_rows // job.nodes_per_trial
        size = rows * job.row_bytes
        while self.asked < min(job.steps, min(part.loaded for part in self.parts) + job.ahead_steps):
            self.asked += 1
            model.rows_read += rows
            model.store.serve(size, lambda: self.inlet.serve(size, lambda: self.server.serve(size, self._arrived)))

    def _arrived(self) -> None:
        self.ready += 1
        for part in self.parts:
            part.load()


class _Part:
    """Workers of one trial on one node."""

    def __init__(self, node: _Node, trial: _Trial) -> None:
        model, job = node.model, node.model.job
        self.node, self.trial, self.job = node, trial, job
        self.workers = job.workers_per_trial // job.nodes_per_trial
        self.pcie = Line(model.loop, model.rates.pcie_bytes_per_s)
        self.device = Line(model.loop, 1.0)
        self.link = Line(model.loop, model.rates.link_bytes_per_s)
        self.loaded = self.arrived = self.begun = self.computed = 0
        """Batches: asked from the server, on the device, given to it, done."""
        self.data_wait_s = self.sum_wait_s = 0.0
        self._since_s = 0.0
        node.parts.append(self)

    def load(self) -> None:
        """Take the next batch, at most one before it is needed."""
        size = self.job.batch_rows // self.job.workers_per_trial * self.job.row_bytes
        while self.loaded < min(self.node.ready, self.trial.steps_done + 2):
            self.loaded += 1
            self.pcie.serve(size, self._loaded)
        self.node.read()

    def _loaded(self) -> None:
        self.arrived += 1
        self.step()

    def step(self) -> None:
        """Compute, if the step before is over and its rows are there."""
        if self.begun == self.trial.steps_done and self.begun < min(self.arrived, self.job.steps):
            self.begun += 1
            self.data_wait_s += self._counted(self.begun - 1)
            self.device.serve(self.job.step_s, self._computed)

    def _computed(self) -> None:
        self.computed += 1
        self._since_s = self.node.model.loop.now_s
        self.trial.computed()

    def summed(self) -> None:
        """The trial's step is over."""
        self.sum_wait_s += self._counted(self.computed - 1)
        self._since_s = self.node.model.loop.now_s
        self.load()
        self.step()

    def _counted(self, step: int) -> float:
        """Seconds that it has been waiting, if this step counts."""
        return self.node.model.loop.now_s - self._since_s if step >= self.node.model.warm_steps else 0.0


class _Trial:
    """One dictionary: its steps, each over when all of its workers have the sum."""

    def __init__(self, model: _Model) -> None:
        self.model, self.parts = model, list[_Part]()
        self.steps_done = 0
        self._waiting_for = 0

    def computed(self) -> None:
        if all(part.computed > self.steps_done for part in self.parts):
            self._sum_in_nodes()

    def _sum_in_nodes(self) -> None:
        sent, hops = ring(self.model.job.sum_bytes, self.parts[0].workers)
        self._on_all(sent, hops, [part.link for part in self.parts], self._sum_over_nodes)

    def _sum_over_nodes(self) -> None:
        sent, hops = ring(self.model.job.sum_bytes, len(self.parts))
        self._on_all(sent, hops, [part.node.fabric for part in self.parts], self._over)

    def _on_all(self, sent: float, hops: int, lines: list[Line], then: Action) -> None:
        if not hops:
            then()
            return
        latency_s = hops * self.model.rates.hop_latency_s
        self._waiting_for = len(lines)

        def one_is_through() -> None:
            self._waiting_for -= 1
            if not self._waiting_for:
                self.model.loop.at(self.model.loop.now_s + latency_s, then)

        for line in lines:
            line.serve(sent, one_is_through)

    def _over(self) -> None:
        self.steps_done += 1
        self.model.step_is_over(self)
        for part in self.parts:
            part.summed()


class _Model:
    """All of it."""

    def __init__(self, job: Job, rates: Rates) -> None:
        self.job, self.rates, self.loop = job, rates, Loop()
        self.store = Line(self.loop, rates.store_bytes_per_s, rates.store_latency_s)
        self.nodes = [_Node(self) for _ in range(job.nodes)]
        self.trials = [_Trial(self) for _ in range(job.trials)]
        for number, trial in enumerate(self.trials):
            first = number * job.workers_per_trial // job.workers_per_node
            trial.parts = [_Part(node, trial) for node in self.nodes[first : first + job.nodes_per_trial]]
        self.warm_steps = int(WARM_SHARE * job.steps)
        self.rows_read = 0
        self.warm_s: list[float] = []
        """When each trial was warm."""

    def run(self) -> Outcome:
        if not self.warm_steps:
            self.warm_s = [0.0] * self.job.trials
        for node in self.nodes:
            node.read()
        self.loop.run()
        assert all(trial.steps_done == self.job.steps for trial in self.trials)
        return self._outcome()

    def step_is_over(self, trial: _Trial) -> None:
        if trial.steps_done == self.warm_steps:
            self.warm_s.append(self.loop.now_s)

    def _outcome(self) -> Outcome:
        job, seconds = self.job, self.loop.now_s
        parts = [part for node in self.nodes for part in node.parts]
        counted_s = seconds - sum(self.warm_s) / len(self.warm_s)
        rows = job.trials * job.batch_rows
        lines = {
            "store": [self.store],
            "networks from the store": [node.inlet for node in self.nodes],
            "networks between nodes": [node.fabric for node in self.nodes],
            "window servers": [node.server for node in self.nodes],
            "PCIe": [part.pcie for part in parts],
            "devices": [part.device for part in parts],
            "links in a node": [part.link for part in parts],
        }
        return Outcome(
            rows_per_s=rows * (job.steps - self.warm_steps) / counted_s,
            rows_trained=rows * job.steps,
            rows_read=self.rows_read,
            bytes_read=self.rows_read * job.row_bytes,
            seconds=seconds,
            data_wait=sum(part.data_wait_s for part in parts) / len(parts) / counted_s,
            sum_wait=sum(part.sum_wait_s for part in parts) / len(parts) / counted_s,
            busy={name: sum(line.busy_s for line in group) / len(group) / seconds for name, group in lines.items()},
        )


def ring(size: float, ranks: int) -> tuple[float, int]:
    """Return the bytes that each of `ranks` ranks sends to sum `size` bytes, and the hops that it takes."""
    return 2 * (ranks - 1) / ranks * size, 2 * (ranks - 1)


def simulate(job: Job, rates: Rates) -> Outcome:
    """Run the model to the end of all steps."""
    return _Model(job, rates).run()
