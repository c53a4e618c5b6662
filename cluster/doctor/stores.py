"""Probes of the sweep's data and output stores from one node."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from lexray.cluster.doctor.findings import NOT_ASKED, BucketRegion, StoreFault, StoreFinding, StoreSpeed, Unknown
from lexray.storage.errors import CorruptDataError, UserError, one_line
from lexray.storage.manifest import load_manifest
from lexray.storage.objects.retries import s3_answer
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.reader import open_dataset
from lexray.storage.store import Store

RETRY_BUDGET_S = 2.0
"""Retry budget in seconds: brief throttling passes, lasting throttling fails."""
_CONTENT = b"written by lexray doctor; may be deleted"
STS_TIMEOUT_S = 3


def settings_for_probes(settings: StorageSettings) -> StorageSettings:
    """Return the same settings with a smaller retry budget."""
    return replace(settings, retry_budget_s=min(RETRY_BUDGET_S, settings.policy.budget_s))


def read_one_chunk(url: str, settings: StorageSettings, number: int) -> StoreFinding:
    """Read one chunk of the dataset's first site, chosen by the node's `number`, and verify its checksum."""
    began, step = time.monotonic(), "manifest"
    try:
        store = Store.at(url, settings_for_probes(settings))
        reader = open_dataset(store, load_manifest(store))
        step = "read"
        rows = reader.read_chunk(number % len(reader.chunks), next(iter(reader.manifest.sites)))
    except Exception as error:
        return _fault(step, error)
    return StoreSpeed(bytes=rows.nbytes, seconds=time.monotonic() - began)


def write_one_key(url: str, settings: StorageSettings, name: str) -> StoreFinding:
    """Write a key below the output, read it back, delete it."""
    began, step = time.monotonic(), "write"
    try:
        store = Store.at(url, settings_for_probes(settings))
        store.write(name, _CONTENT)
        step = "read back"
        found = store.read(name)
        if found != _CONTENT:
            raise CorruptDataError(f"{len(found)} bytes came back that are not those written")
        step = "delete"
        store.delete(name)
        if store.exists(name):
            raise CorruptDataError("the key is still there")
    except Exception as error:
        return _fault(step, error)
    return StoreSpeed(bytes=len(_CONTENT), seconds=time.monotonic() - began)


def leave_marker(url: str, settings: StorageSettings, name: str) -> None:
    """Write a marker for the other nodes to find."""
    Store.at(url, settings_for_probes(settings)).write(name, _CONTENT)


def sees_marker(url: str, settings: StorageSettings, name: str) -> StoreFault | None:
    """Return a fault unless another node's marker is visible here: a path may be local to each machine."""
    if Store.at(url, settings_for_probes(settings)).exists(name):
        return None
    return StoreFault(step="share", reason="what the head wrote there is not seen here")


def remove_marker(url: str, settings: StorageSettings, name: str) -> None:
    Store.at(url, settings_for_probes(settings)).delete(name)


def missing_folders(url: str) -> list[str]:
    """Return the folders that a first write at a path would create, deepest first; empty for an object store."""
    path, missing = Store.at(url).local_path, []
    while path and not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def remove_empty(folders: list[str]) -> None:
    """Remove the folders that the probes created, where empty."""
    for folder in folders:
        if os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)


def region_of(url: str, settings: StorageSettings, nodes: str | None) -> BucketRegion:
    """Return the region of an S3 url's bucket; `nodes` is the region of the cluster's description."""
    environment = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return BucketRegion(
        url=url, bucket=_bucket_region(url, settings), asked=settings.region or environment, nodes=nodes or environment
    )


def _bucket_region(url: str, settings: StorageSettings) -> str | Unknown:
    store = Store.at(url, settings_for_probes(settings))
    bucket = url.split("://", 1)[1].split("/", 1)[0]
    try:
        headers = _headers_of_bucket(store, bucket)
    except Exception as error:
        told = _headers_of_refusal(error)
        if told is None:
            return Unknown(one_line(error))
        headers = told
    region = headers.get("x-amz-bucket-region")
    return str(region) if region else Unknown("this server does not tell where its buckets lie")


def _headers_of_bucket(store: Store, bucket: str) -> dict[str, Any]:
    answer = store.filesystem.call_s3("head_bucket", Bucket=bucket)
    headers: dict[str, Any] = answer["ResponseMetadata"]["HTTPHeaders"]
    return headers


def _headers_of_refusal(error: BaseException | None) -> dict[str, Any] | None:
    """Return the response headers of an S3 error: they name the bucket's region even if access is denied."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            headers: dict[str, Any] = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            return headers
        error = error.__cause__
    return None


def who_am_i(settings: StorageSettings) -> str | Unknown:
    """Return the AWS identity (ARN) of this node's credentials."""
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    own = os.environ.get("AWS_ENDPOINT_URL_STS")
    if settings.anonymous or (settings.endpoint_url is not None and own is None):
        return NOT_ASKED
    try:
        session = botocore.session.Session(profile=settings.profile)
        if session.get_credentials() is None:
            return Unknown("has no credentials")
        config = Config(connect_timeout=STS_TIMEOUT_S, read_timeout=STS_TIMEOUT_S, retries={"total_max_attempts": 1})
        region = settings.region or session.get_config_variable("region") or "us-east-1"
        answer = session.create_client("sts", config=config, region_name=region).get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        return Unknown(f"STS does not tell ({one_line(error)})")
    return str(answer["Arn"])


def _fault(step: str, error: Exception) -> StoreFault:
    text = str(error) if isinstance(error, UserError | CorruptDataError) else one_line(error)
    return StoreFault(step=step, reason=" ".join(text.split()), code=s3_answer(error)[0])
