"""Upload a large object to S3 in parts: side by side, each retried alone, nothing visible before the last step.

A part that fails costs one part and not the whole upload. An upload that cannot go on is aborted; one whose process is
killed stays invisible, and the bucket's lifecycle rule for incomplete uploads removes it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

log = logging.getLogger("lexray")

PART_BYTES = 32 * 2**20
MAX_PARTS = 10_000
"""S3's own limit."""
PARALLEL_PARTS = 8

CallS3 = Callable[..., Any]
"""Takes a method of the S3 API and its arguments, retries, and returns the answer."""


def upload_parts(
    call_s3: CallS3, give_up: CallS3, bucket: str, key: str, data: bytes, *, part_bytes: int = PART_BYTES
) -> None:
    """Write `data` as the object `key`. Raises an OSError worth another upload when the store forgot this one.

    `give_up` is `call_s3` with less patience, for the abort of an upload that failed.
    """
    part_bytes = max(part_bytes, -(-len(data) // MAX_PARTS))
    target = {"Bucket": bucket, "Key": key}
    target["UploadId"] = call_s3("create_multipart_upload", **target)["UploadId"]

    def put(number: int) -> dict[str, Any]:
        start = (number - 1) * part_bytes
        body = data[start : start + part_bytes]
        return {"PartNumber": number, "ETag": call_s3("upload_part", PartNumber=number, Body=body, **target)["ETag"]}

    try:
        pool = ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="parts")
        try:
            parts = list(pool.map(put, range(1, -(-len(data) // part_bytes) + 1)))
        finally:
            pool.shutdown(cancel_futures=True)
        call_s3("complete_multipart_upload", MultipartUpload={"Parts": parts}, **target)
    except FileNotFoundError as error:
        # The bucket was there when the upload began. The answer to an earlier `complete` may have been lost.
        raise OSError(errno.ESTALE, f"the store has forgotten the upload of {key}") from error
    except BaseException:
        _abort(give_up, target)
        raise


def _abort(give_up: CallS3, target: dict[str, Any]) -> None:
    try:
        give_up("abort_multipart_upload", **target)
    except Exception as error:
        log.warning("s3://%s/%s: an upload in parts could not be aborted: %s", target["Bucket"], target["Key"], error)
