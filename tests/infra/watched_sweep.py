"""A sweep on a Ray cluster whose metrics are read: two machines in network namespaces, and a store that refuses calls.

Ray asks for a token, as on every cluster that lexray makes. The sweep has no end; it is killed with its machines.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from faulty_server import Refusal, faulty_server, unlucky
from namespaces import DASHBOARD_PORT, GCS_PORT, Machines, wait_until
from prometheus_client.parser import text_string_to_metric_families
from running_cluster import Relay
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

NEVER = 10**8
START_S = 400.0
"""How long a busy machine may take from the command to the first records."""


class Series(NamedTuple):
    """One line of what a process exports."""

    name: str
    labels: dict[str, str]
    value: float


class WatchedSweep:
    """Two trials on one worker node."""

    def __init__(self, machines: Machines, s3_url: str, place: Path) -> None:
        self.machines, self.out = machines, place / "out"
        settings = StorageSettings(endpoint_url=s3_url)
        boto3.client("s3", endpoint_url=s3_url).create_bucket(Bucket="watched")
        local = Path(write_dataset(place / "data"))
        for file in (file for file in local.rglob("*") if file.is_file()):
            Store.at("s3://watched/data", settings).write(str(file.relative_to(local)), file.read_bytes())
        self.head = machines.start_head()
        machines.start_worker("worker", cpus=2)
        changes: dict[str, Any] = {
            "storage": {"endpoint_url": s3_url},
            "training": {"rows": 128 * NEVER, "lr": 0.003},
            "every": {"log": 10, "evaluate": NEVER, "checkpoint": NEVER},
            "wandb": {"mode": "disabled"},
            "cache": {"dir": str(place / "cache"), "bytes": 10**8},
        }
        file = write_sweep(place / "sweep.yaml", sweep_content("s3://watched/data", str(self.out), **changes))
        command = [sys.executable, "-m", "lexray", "sweep", file, "--address", f"{self.head}:{GCS_PORT}"]
        self._driver = machines.run("head", command)
        wait_until(self._is_training, "the training", START_S)

    def close(self) -> None:
        self._driver.kill()
        self._driver.wait()

    def targets(self, *, token: str | None) -> list[str]:
        """HOST:PORT of every process that exports metrics, by the head. Raises HTTPError without the token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"http://{self.head}:{DASHBOARD_PORT}/api/prometheus/sd"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            (group,) = json.load(answer)
        return list(group["targets"])

    def exported(self) -> list[Series]:
        """Everything that is exported now, read without a token."""
        found = []
        for target in self.targets(token=self.machines.token):
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
                text = answer.read().decode()
            samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
            found += [Series(sample.name, sample.labels, sample.value) for sample in samples]
        return found

    def logged(self, trial: str) -> list[dict[str, Any]]:
        """The records of a trial so far."""
        return [json.loads(line) for line in (self.out / "trials" / trial / "metrics.jsonl").read_text().splitlines()]

    def _is_training(self) -> bool:
        assert self._driver.poll() is None, (self.machines.place / "head.log").read_text(errors="replace")[-3000:]
        return len(list(self.out.glob("trials/*/metrics.jsonl"))) == 2


@contextmanager
def watched_sweep(machines: Machines, place: Path) -> Iterator[WatchedSweep]:
    """The sweep while it trains. Every tenth request for an object is refused twice."""
    with faulty_server(machines.start_s3(), unlucky(Refusal(503, "SlowDown"), share=0.1)) as faulty:
        relay = Relay(f"10.83.{machines.number}.1", int(faulty.url.rpartition(":")[2]))
        with closing(relay), closing(WatchedSweep(machines, relay.url, place)) as started:
            yield started
