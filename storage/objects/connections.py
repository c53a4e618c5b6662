"""Connections of a process to stores, shared by its threads, and the limit on calls in flight.

Everything is keyed by pid: clients must not be used after a fork, and a lock that another thread held when a process
forked is never released in the child.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import fsspec
from fsspec.asyn import sync

from lexray.storage.errors import as_user_error
from lexray.storage.objects.settings import REQUESTS_IN_FLIGHT, S3, StorageSettings

FILESYSTEM, CLIENT = "filesystem", "client"
"""Kinds of connections: fsspec's filesystem; botocore's client for ranged reads from S3."""

_CONNECTIONS: dict[tuple[int, str, str, StorageSettings], Any] = {}
_BUILDING: dict[int, threading.Lock] = {}
_SLOTS: dict[int, threading.BoundedSemaphore] = {}


def call_slots() -> threading.BoundedSemaphore:
    """Return the semaphore that limits this process's calls in flight."""
    return _SLOTS.setdefault(os.getpid(), threading.BoundedSemaphore(REQUESTS_IN_FLIGHT))


def connection(kind: str, scheme: str, settings: StorageSettings) -> Any:
    """Return this process's connection, built on first use. Raises UserError for unusable options."""
    key = (os.getpid(), kind, scheme, settings)
    found = _CONNECTIONS.get(key)
    if found is not None:
        return found
    with _BUILDING.setdefault(os.getpid(), threading.Lock()):
        if key not in _CONNECTIONS:
            _CONNECTIONS[key] = _client(settings) if kind == CLIENT else _filesystem(scheme, settings)
        return _CONNECTIONS[key]


def forget(kind: str, scheme: str, settings: StorageSettings, used: list[Any]) -> None:
    """Drop the connection, so that a new one requests fresh credentials; nothing if `used` is already replaced."""
    key = (os.getpid(), kind, scheme, settings)
    if used and _CONNECTIONS.get(key) is used[0]:
        _CONNECTIONS.pop(key, None)


def _client(settings: StorageSettings) -> Any:
    # botocore is not needed, and slow to import, where files are local
    from lexray.storage.objects.s3_client import S3Client

    return S3Client(settings)


def _filesystem(scheme: str, settings: StorageSettings) -> Any:
    refusal = f"storage.options: {scheme}:// cannot be used with {settings.options}"
    with as_user_error(lambda error: f"{refusal} ({error})", TypeError, ValueError):
        filesystem = fsspec.filesystem(scheme, skip_instance_cache=True, **settings.arguments(scheme))
    if scheme in S3:
        filesystem.retries = 1  # attempts, not repetitions
        if not settings.anonymous:
            from lexray.storage.objects.s3_client import of_session

            filesystem.connect()
            sync(filesystem.loop, of_session, filesystem.session)
    return filesystem
