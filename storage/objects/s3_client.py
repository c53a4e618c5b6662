"""Ranged reads from S3 by botocore's own client, the hot path of every stream.

s3fs moves each byte through one event loop in Python. Eight threads that read 4 MiB ranges from a server on the same
machine spent 0.9 to 1.0 s of CPU for a GiB through s3fs and 0.4 s through this client, at 2 to 4 times its throughput.

Credentials that live for minutes are fetched shortly before they end, not with every request. botocore fetches new ones
from 15 minutes before the end of the old on, and lets requests wait for them from 10 minutes on. Credentials with a
shorter life would be fetched anew for each request: with 60-second ones of a `credential_process`, 8 small reads a
second were seen, and 99 with the shares below.
"""

from __future__ import annotations

import datetime
import errno
from contextlib import closing
from typing import Any

import botocore
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from lexray.storage.objects.settings import StorageSettings

PIECE_BYTES = 2**20
"""Bytes read from a connection at once, few enough to be in the CPU cache when they are copied."""
ADVISORY_SHARE, MANDATORY_SHARE = 1 / 4, 1 / 8
"""Parts of a life before whose end new credentials are fetched, and waited for."""


class S3Client:
    """S3 client for the threads of one process. Raises botocore's errors for profiles and credentials."""

    def __init__(self, settings: StorageSettings) -> None:
        arguments = settings.s3_options()
        session = botocore.session.Session(profile=settings.profile)
        if settings.anonymous:
            arguments["config_kwargs"]["signature_version"] = botocore.UNSIGNED
        else:
            credentials = session.get_credentials()
            if credentials is not None:
                credentials.get_frozen_credentials()  # an assumed role's have no expiry before their first use
                fetch_late(credentials)
        config = Config(**arguments["config_kwargs"])
        self._client = session.create_client("s3", config=config, **arguments["client_kwargs"])

    def get_range(self, url: str, start: int, length: int) -> bytes:
        """Read bytes of the object at a url.

        Raises FileNotFoundError, PermissionError, OSError, botocore's transport errors.
        """
        with closing(self._body(url, start, length)) as body:
            return body.read()

    def get_range_into(self, url: str, start: int, out: memoryview) -> int:
        """Read `len(out)` bytes into `out`; return the number received, which may exceed the number requested."""
        end = 0
        with closing(self._body(url, start, len(out))) as body:
            while piece := body.read(PIECE_BYTES):  # up to the empty one, at which botocore checks the total length
                end += len(piece)
                if end > len(out):
                    break
                out[end - len(piece) : end] = piece
        return end

    def _body(self, url: str, start: int, length: int) -> StreamingBody:
        bucket, _, key = url.split("://", 1)[-1].partition("/")
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")
        except ClientError as error:
            raise _as_os_error(error) from error
        return answer["Body"]


def _as_os_error(error: ClientError) -> OSError:
    """Map the error to an OSError; the server's error stays its cause."""
    message = error.response["Error"].get("Message") or str(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 404:
        return FileNotFoundError(errno.ENOENT, message)
    if status == 403:
        return PermissionError(errno.EACCES, message)
    return OSError(errno.EIO, message)


async def of_session(session: Any) -> None:
    """Make an asynchronous session's credentials, if it has any, wait for the last quarter of their life."""
    credentials = await session.get_credentials()
    if credentials is not None:
        await credentials.get_frozen_credentials()  # those of an assumed role have no end before their first use
        fetch_late(credentials)


def fetch_late(credentials: Any) -> None:
    """Make refreshable credentials that were just fetched wait for the last quarter of their life; others stay."""
    expires = getattr(credentials, "_expiry_time", None)
    if expires is None:
        return
    life_s = max(0.0, (expires - datetime.datetime.now(datetime.UTC)).total_seconds())
    for name, share in (("_advisory_refresh_timeout", ADVISORY_SHARE), ("_mandatory_refresh_timeout", MANDATORY_SHARE)):
        setattr(credentials, name, min(getattr(credentials, name), life_s * share))
