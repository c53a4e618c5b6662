"""Validate that urls and paths name exactly one place: pure functions, called before anything is read or written.

Libraries interpret names: fsspec expands `*`, `?` and `[..]` and chains filesystems at `::`, HTTP clients resolve `..`,
s3fs cuts keys at `?versionId=`. Names that would not reach their literal place are refused.
"""

from __future__ import annotations

import re

from lexray.storage.errors import UserError
from lexray.storage.objects.options import SCHEMES
from lexray.storage.objects.settings import S3
from lexray.storage.synthetic_url import SCHEME, parse

FILE = "file"
VERSION_MARK = "?versionId="
"""Substring at which s3fs cuts a key."""
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!//)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]|[\ud800-\udfff]|[\u2028\u2029]")
# As in botocore: names of buckets, including older ones, and access points by ARN.
_BUCKET = re.compile(r"[a-zA-Z0-9.\-_]{1,255}")
_READ_INTO = ("*", "?", "[", "]", "#", "\\", "::", "://")
"""Substrings that filesystems other than S3 and the local one may expand, cut or chain at."""


def scheme_of(url: str) -> str:
    """Return the scheme of a path or url, `file` for a path. Raises UserError for an unknown scheme."""
    if "://" in url:
        scheme = url.split("://", 1)[0]
        if scheme in SCHEMES:
            return scheme
        if "::" in url and scheme.rpartition("::")[2] in SCHEMES:
            raise UserError(f"url {url!r}: chained urls (`::`) are not supported; give the url of the files themselves")
        if scheme.lower() in SCHEMES:
            raise UserError(f"url {url!r}: schemes are written in lower case; write {scheme.lower()}://")
        if "/" not in scheme:
            raise UserError(f"url {url!r}: no storage scheme is called {scheme!r}; use a path, file:// or s3://")
    short = _ONE_SLASH.match(url)
    if short and short[1].lower() in SCHEMES:
        scheme = short[1].lower()
        written = f"{scheme}:///" if scheme == FILE else f"{scheme}://"
        rest = url[short.end() :].lstrip("/")
        raise UserError(f"url {url!r}: two slashes must follow {short[0]!r}; write {written + rest!r}")
    return FILE


def check_url(url: str, scheme: str) -> None:
    """Raise UserError for a url (local paths absolute) that does not name exactly one folder or file."""
    odd, shown = _CONTROL.search(url), url.removeprefix("file://")
    if odd:
        raise UserError(f"url {shown!r}: holds the character {odd[0]!r}; choose another name")
    if scheme == SCHEME:
        parse(url)
        return
    place = url.split("://", 1)[1].rstrip("/")
    if scheme == FILE:
        if not place:
            raise UserError(f"url {shown!r}: is the root of the file system; name a folder in it")
        return
    if not place:
        raise UserError(f"url {url!r}: names no {'bucket' if scheme in S3 else 'place'}; write {scheme}://NAME/FOLDER")
    if scheme in S3 and not place.startswith("arn:"):
        bucket = place.split("/", 1)[0]
        if not _BUCKET.fullmatch(bucket):
            raise UserError(f"url {url!r}: {bucket!r} cannot be the name of a bucket; write {scheme}://BUCKET/FOLDER")
    if scheme in ("http", "https"):
        return
    trouble = _trouble(place, scheme)
    if trouble:
        raise UserError(f"url {url!r}: {trouble}; choose another name")


def check_path(path: str, scheme: str) -> None:
    """Raise UserError unless a path below a store, empty for the store itself, names one place below it."""
    trouble = _trouble(path, scheme) if path else ""
    if trouble:
        raise UserError(f"path {path!r}: {trouble}")


def is_name(name: str, scheme: str) -> bool:
    """Return whether a listed name is valid as a path below its folder."""
    return bool(name) and "/" not in name and not _trouble(name, scheme)


def _trouble(path: str, scheme: str) -> str:
    """Return what is wrong with the name, empty if nothing is."""
    parts = path.split("/")
    if "" in parts:
        return "holds an empty folder name (`//`, or a slash at an end)"
    for part in parts:
        if part in (".", ".."):
            return f"holds {part!r} as the name of a folder"
    odd = _CONTROL.search(path)
    if odd and (scheme != FILE or odd[0] == "\0"):
        return f"holds the character {odd[0]!r}"
    if scheme in S3:
        return f"holds {VERSION_MARK!r}, which would be cut off" if VERSION_MARK in path else ""
    if scheme == FILE:
        return ""
    found = [mark for mark in _READ_INTO if mark in path]
    return f"holds {found[0]!r}, which {scheme}:// may expand" if found else ""
