"""The driver's record (`driver.json`) in the sweep's folder.

It tells readers of the folder whether and where the sweep runs and its last state, even after the machine is gone. It
is also the claim on the folder: a second driver is refused while the first is alive, and one that was presumed dead
ends itself when it finds that another has taken over.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from lexray.storage.documents import Finite
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.folder_documents import read_if_there

log = logging.getLogger("lexray")

DRIVER_FILE = "driver.json"
RUNNING, ENDED, FAILED, INTERRUPTED = "running", "ended", "failed", "interrupted"
BEAT_S = 10.0
"""Seconds between heartbeats."""
STALE_S = 90.0
"""Seconds without a heartbeat after which a driver is presumed dead.

Its record has the time of its own clock. One that is behind by up to `STALE_S` less two beats (70 s) makes no living
driver look dead; one that is ahead makes a dead driver look alive for as much longer, and keeps a new one waiting no
longer than `WATCH_S` (see `check_free`).
"""
MARK_CHARS, SHORT_MARK = 32, 8
"""Hexadecimal digits of a machine's mark, and the number of them shown to users."""
WATCH_S = 2.5 * BEAT_S
"""Seconds that a new driver watches a record that may be of a dead one: two machines' clocks may differ."""


UnixTime = Annotated[Finite, Field(ge=0, lt=1e11)]
"""Unix time in seconds, limited to those that can be shown as a date."""


@dataclass(frozen=True, kw_only=True)
class DriverRecord:
    """Contents of `driver.json`. Times are Unix times of the driver's machine."""

    claim: str
    """Random token of the driver."""
    machine: str = ""
    """Hash of the claim and the machine: recognizable on that machine only, so that its name stays private."""
    process: str = ""
    """Pid and start time of the process; empty if unknown."""
    cluster: str = ""
    """Name or address of the Ray cluster; empty for a Ray that the driver started itself."""
    job: str = ""
    """Id of the job that runs the driver; empty if none."""
    started_s: UnixTime
    seen_s: UnixTime
    """Time of the last heartbeat."""
    state: str = RUNNING
    reason: str = ""
    """Reason of a failure or interruption."""
    waiting: list[str] = field(default_factory=list)
    """Resources that trials wait for, one line each."""
    links: dict[str, str] = field(default_factory=dict)
    """W&B pages by trial id."""

    @property
    def where(self) -> str:
        """Location of the driver for messages: this machine or the hash of another one, job and cluster."""
        here = this_place()
        host = "this machine" if self.machine == here.mark(self.claim) else f"machine {self.machine[:SHORT_MARK]}"
        if not self.machine:
            host = "a machine"
        parts = [host, f"job {self.job}" if self.job else "", f"cluster {self.cluster}" if self.cluster else ""]
        return ", ".join(part for part in parts if part)


_DRIVER = TypeAdapter(DriverRecord)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Location of a driver. `machine` stays in this process; records hold its `mark`."""

    machine: str
    """Identifies the machine or container, even where host names are equal."""
    process: str
    cluster: str = ""
    job: str = ""

    def mark(self, claim: str) -> str:
        """Return the hash of the machine for records, different for each claim; empty if unknown."""
        if not self.machine:
            return ""
        return hmac.digest(self.machine.encode(), claim.encode(), hashlib.sha256).hex()[:MARK_CHARS]


def this_place(cluster: str = "", job: str = "") -> Place:
    """Return the location of this process."""
    return Place(machine=_machine(), process=process_of(os.getpid()), cluster=cluster, job=job)


def read_driver(store: Store) -> DriverRecord | None:
    """Read the record in a sweep's folder; None if there is none. Raises CorruptDataError."""
    return read_if_there(store, DRIVER_FILE, _DRIVER, remedy="remove it if nobody runs the sweep")


def write_driver(store: Store, record: DriverRecord) -> None:
    store.write(DRIVER_FILE, json.dumps(asdict(record), indent=1).encode())


def is_alive(record: DriverRecord | None, now_s: float) -> bool:
    """Return whether the driver runs according to its record; for differing clocks see `STALE_S`."""
    return record is not None and record.state == RUNNING and now_s - record.seen_s < STALE_S


def is_dead_here(record: DriverRecord, place: Place) -> bool:
    """Return whether the driver ran on this machine and its process is gone."""
    if not record.machine or record.machine != place.mark(record.claim) or not record.process:
        return False
    return process_of(int(record.process.split(":")[0])) != record.process


def check_free(
    store: Store,
    place: Place,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Raise UserError while another driver runs the sweep in this folder. It may take `WATCH_S` to know."""
    other = read_driver(store)
    if other is not None and other.state == RUNNING and not is_dead_here(other, place):
        _refuse_if_alive(store, other, clock, sleep)


def claim(store: Store, place: Place, token: str, now_s: float) -> DriverRecord:
    """Write the record of a new driver with claim `token`; see `check_free`."""
    where = asdict(replace(place, machine=place.mark(token)))
    record = DriverRecord(claim=token, started_s=now_s, seen_s=now_s, **where)
    write_driver(store, record)
    return record


def _refuse_if_alive(
    store: Store, other: DriverRecord, clock: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    """Raise UserError if the driver is alive: its record is recent and changes while it is watched."""
    if clock() - other.seen_s >= STALE_S:
        return
    log.info("%s: a driver was seen here %.0f s ago; looking whether it lives", store.url, clock() - other.seen_s)
    until_s = clock() + WATCH_S
    while clock() < until_s:
        sleep(1.0)
        now = read_driver(store)
        if now is None or now.state != RUNNING:
            return
        if (now.seen_s, now.claim) != (other.seen_s, other.claim):
            raise UserError(
                f"output: {store.url} is being run by {now.where}; follow it by `lexray status {store.url}`, "
                f"end it by `lexray stop {store.url}`, or give this sweep another output"
            )


def beat(store: Store, record: DriverRecord, now_s: float, **changes: object) -> DriverRecord | None:
    """Update the record; write nothing and return None if another driver has claimed the folder."""
    found = read_driver(store)
    if found is not None and found.claim != record.claim:
        return None
    record = replace(record, seen_s=now_s, **changes)  # type: ignore[arg-type]
    write_driver(store, record)
    return record


def process_of(pid: int) -> str:
    """Return `PID:START` of a live process, since pids are reused; empty for one that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rsplit(")", 1)[1].split()
    return "" if state in "ZX" else f"{pid}:{fields[18]}"


def _machine() -> str:
    """Return an identifier of the machine or container; empty if the system has none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return ""
