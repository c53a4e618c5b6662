"""Read W&B's offline files, which W&B itself offers no reader for.

They are LevelDB logs: a header of 7 bytes, then blocks of 32,768 bytes with records (crc 4, length 2, type 1: full,
first, middle, last) whose joined payload is a protobuf `Record`.
"""

import json
import struct
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, LAST_PARTS = 7, 32_768, (1, 4)
PATIENCE_S = 3.0


def read_offline(folder: Path) -> tuple[dict, list[dict]]:
    """Attributes of the run (id, group, project, config) and its logged history."""
    run: dict = {}
    history: list[dict] = []
    for record in _records(folder):
        if record.HasField("run"):
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            run = {"id": record.run.run_id, "group": record.run.run_group, "project": record.run.project} | config
        if record.HasField("history"):
            history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
    return run, history


def read_summary(folder: Path) -> tuple[str, dict]:
    """Id of the run, and the values that its summary ends with."""
    run, summary = "", {}
    for record in _records(folder):
        if record.HasField("run"):
            run = record.run.run_id
        if record.HasField("summary"):
            summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
    return run, summary


def axes_of(folder: Path) -> dict[str, str]:
    """Over which metric the metrics of a run are drawn, by name or pattern of names."""
    metrics = [record.metric for record in _records(folder) if record.HasField("metric")]
    return {metric.name or metric.glob_name: metric.step_metric for metric in metrics}


def _records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """All records of a run; W&B's own process may write the last ones a moment after the run has finished."""
    (file,) = folder.glob("*.wandb")
    deadline = time.monotonic() + PATIENCE_S
    while True:
        records = [wandb_internal_pb2.Record.FromString(payload) for payload in _payloads(file.read_bytes())]
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)


def _key(item) -> str:
    return item.key or ".".join(item.nested_key)


def _payloads(data: bytes):
    position, joined = HEADER, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        joined += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in LAST_PARTS:
            yield joined
            joined = b""
