"""A cluster of several raylets on this machine, with faults planted, and the doctor run on it; a process of its own.

Called with the folder that holds `spec.json`; writes `diagnoses.json` there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from lexray.cluster.doctor.collect import Request, gather
from lexray.cluster.doctor.nodes import Deadline
from lexray.cluster.doctor.run import TOTAL_S, examine
from lexray.cluster.doctor.verdict import Limits, as_document
from lexray.cluster.ray_backend.connect import connected
from lexray.storage.objects.settings import StorageSettings

STORE_BYTES = 100 * 2**20


def ahead(seconds: float) -> float:
    """A clock that is wrong."""
    return time.time() + seconds


class Patient:
    """The cluster, and what is done to it before a visit."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        head = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self._node(), **head})
        self.workers = [self.cluster.add_node(**self._node())]

    def _node(self, **changes: Any) -> dict[str, Any]:
        return {"num_cpus": 1, "object_store_memory": STORE_BYTES, **changes}

    def prepare(self, visit: dict[str, Any]) -> None:
        """Plant what cannot be asked for in the request."""
        if "other_libraries" in visit:
            env_vars = {"PYTHONPATH": visit["other_libraries"]}
            self.workers.append(self.cluster.add_node(**self._node(env_vars=env_vars)))
        if visit.get("freezes_a_node"):
            os.kill(self._raylet_of(self.workers[0]), signal.SIGSTOP)

    def _raylet_of(self, node: Any) -> int:
        pid: int = node.all_processes["raylet"][0].process.pid
        return pid

    def examine(self, visit: dict[str, Any]) -> dict[str, Any]:
        """The doctor's document."""
        skew_s, wrong = visit.get("skew_s", 0.0), self.workers[0].node_id[:6]

        def clock_of(name: str) -> Any:
            return partial(ahead, skew_s) if wrong in name else time.time

        given = visit["request"]
        request = Request(**{**given, "storage": StorageSettings(**given["storage"])})
        with connected(self.cluster.address):
            began = time.monotonic()
            found = gather(request, Deadline.after(TOTAL_S), clock_of)
            took_s = time.monotonic() - began
        return as_document(examine(found, Limits(**visit.get("limits", {}))), wrong, took_s)

    def leave(self) -> None:
        os.kill(self._raylet_of(self.workers[0]), signal.SIGCONT)
        self.cluster.shutdown()


def main(folder: Path) -> None:
    patient = Patient()
    documents = []
    try:
        for visit in json.loads((folder / "spec.json").read_text()):
            patient.prepare(visit)
            documents.append(patient.examine(visit))
    finally:
        patient.leave()
    (folder / "diagnoses.json").write_text(json.dumps(documents))


if __name__ == "__main__":
    import ray

    sys.path.insert(0, str(Path(__file__).parent))
    import doctor_patient  # by a name that can be shipped by value

    ray.cloudpickle.register_pickle_by_value(doctor_patient)
    doctor_patient.main(Path(sys.argv[1]))
