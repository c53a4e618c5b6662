"""Objects of S3 by their exact keys, through s3fs's `call_s3`: each function is one try of one operation.

s3fs itself expands globs when it deletes, and reads folders into keys that end with slashes. Keys are deleted by name
in the body of a request: as a part of its url an HTTP client would resolve `..` in them, and reach another object.

Large objects are uploaded in parts: side by side, each retried alone, nothing visible before the last step. A part that
fails costs one part and not the whole upload. An upload that cannot go on is aborted; one whose process is killed stays
invisible, and the bucket's lifecycle rule for incomplete uploads removes it.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lexray.storage.objects.retries import s3_answer

log = logging.getLogger("lexray")

PART_BYTES = 32 * 2**20
MAX_PARTS = 10_000
"""Parts of an upload: S3's own limit."""
PARALLEL_PARTS = 8
DELETED_AT_ONCE = 1000
"""Keys in one request: S3's own limit."""
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML has no way to write."""
CallS3 = Callable[..., Any]
"""Takes a method of the S3 API and its arguments, retries, and returns the answer."""


def info(filesystem: Any, full: str) -> dict[str, Any] | None:
    """Return type and size of an object, or of a folder: a prefix of others. None when there is neither."""
    bucket, key, _ = filesystem.split_path(full)
    try:
        if not key:
            filesystem.call_s3("head_bucket", Bucket=bucket)
            return {"type": "directory", "size": 0}
        answer = filesystem.call_s3("head_object", Bucket=bucket, Key=key)
        return {"type": "file", "size": int(answer["ContentLength"])}
    except FileNotFoundError:
        if not key:
            return None
    page = _list(filesystem, Bucket=bucket, Prefix=f"{key}/", MaxKeys=1)
    return {"type": "directory", "size": 0} if page.get("KeyCount", len(page.get("Contents", []))) else None


def entries(filesystem: Any, full: str) -> list[tuple[str, str]]:
    """Return names and kinds (`file`, `directory`) of what lies directly below a prefix; empty names are left out."""
    bucket, key, _ = filesystem.split_path(full)
    prefix, found = f"{key}/" if key else "", []
    for page in _pages(filesystem, Bucket=bucket, Prefix=prefix, Delimiter="/"):
        found += [(folder["Prefix"][len(prefix) : -1], "directory") for folder in page.get("CommonPrefixes", [])]
        found += [(entry["Key"][len(prefix) :], "file") for entry in page.get("Contents", [])]
    return [(name, kind) for name, kind in found if name]


def remove(filesystem: Any, full: str) -> None:
    """Delete the object of this key and all whose keys begin with it and a slash."""
    bucket, key, _ = filesystem.split_path(full)
    if not key:
        raise OSError(errno.EPERM, "is a whole bucket, which lexray does not delete")
    keys = [key]
    for page in _pages(filesystem, Bucket=bucket, Prefix=f"{key}/"):
        keys += [entry["Key"] for entry in page.get("Contents", [])]
    for start in range(0, len(keys), DELETED_AT_ONCE):
        _delete(filesystem, bucket, keys[start : start + DELETED_AT_ONCE])


def _delete(filesystem: Any, bucket: str, keys: list[str]) -> None:
    named = [key for key in keys if not _UNWRITABLE.search(key)]
    for key in set(keys) - set(named):
        if {".", ".."} & set(key.split("/")):
            raise OSError(errno.EINVAL, f"{key!r} cannot be deleted by its exact name")
        filesystem.call_s3("delete_object", Bucket=bucket, Key=key)
    if not named:
        return
    objects = [{"Key": key} for key in named]
    answer = filesystem.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    refused = [one for one in answer.get("Errors", []) if one.get("Code") != "NoSuchKey"]
    if refused:
        first = refused[0]
        line = f"{first.get('Key')!r} could not be deleted: {first.get('Message') or first.get('Code')}"
        raise PermissionError(errno.EACCES, line) if first.get("Code") == "AccessDenied" else OSError(errno.EBUSY, line)


def _pages(filesystem: Any, **arguments: Any) -> Iterator[dict[str, Any]]:
    while True:
        page = _list(filesystem, **arguments)
        yield page
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def _list(filesystem: Any, **arguments: Any) -> dict[str, Any]:
    try:
        return filesystem.call_s3("list_objects_v2", **arguments)
    except FileNotFoundError as error:
        if s3_answer(error)[0] == "NoSuchBucket":
            raise
        return {}


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
