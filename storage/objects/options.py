"""Which schemes there are, and which of their filesystems' options a file may set.

A sweep file, a harvest file or a dictionary may be a stranger's. What these options could do otherwise: turn TLS off,
send requests through a proxy, read a key file, wrap another filesystem, make results public. So there is a list of what
is harmless, and what weakens TLS needs `LEXRAY_INSECURE_STORAGE=1` in the environment, which no file can set.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

from lexray.storage.errors import UserError

INSECURE = "LEXRAY_INSECURE_STORAGE"
"""Environment variable: 1 allows stores over plain http and certificates or host keys that are not verified."""

Allowed = dict[str, Any]
"""By name of an option: None for any plain value, a tuple of those it may have, a pattern, or options of an object."""
_LABEL = re.compile(r"[A-Za-z0-9-]{1,63}")
"""A part of a server's name, which could otherwise become another server."""

_S3: Allowed = {
    "requester_pays": None, "default_block_size": None, "default_fill_cache": None, "default_cache_type": None,
    "max_concurrency": None, "cache_regions": None, "fixed_upload_size": None, "client_kwargs": {},
    "s3_additional_kwargs": {
        "ServerSideEncryption": None, "SSEKMSKeyId": None, "SSEKMSEncryptionContext": None, "BucketKeyEnabled": None,
        "StorageClass": None, "RequestPayer": None, "ExpectedBucketOwner": None, "ChecksumAlgorithm": None,
        "ACL": ("private", "bucket-owner-full-control", "bucket-owner-read"),
    },
    "config_kwargs": {
        "read_timeout": None, "connect_timeout": None, "max_pool_connections": None, "tcp_keepalive": None,
        "signature_version": ("s3v4", "s3"), "user_agent_extra": None, "user_agent_appid": None,
        "use_dualstack_endpoint": None, "use_fips_endpoint": None, "s3_disable_express_session_auth": None,
        "request_checksum_calculation": None, "response_checksum_validation": None,
        "s3": {
            "addressing_style": None, "payload_signing_enabled": None, "use_accelerate_endpoint": None,
            "us_east_1_regional_endpoint": None, "use_arn_region": None,
        },
    },
}  # fmt: skip
_GCS: Allowed = {
    "project": None, "requester_pays": None, "default_location": None, "consistency": None, "timeout": None,
    "token": ("anon", "cloud", "google_default"),
}  # fmt: skip
_AZURE: Allowed = {
    "account_name": _LABEL, "anon": None, "max_concurrency": None, "connection_timeout": None, "read_timeout": None,
    "default_fill_cache": None, "blocksize": None,
}  # fmt: skip
SCHEMES: dict[str, Allowed] = {
    "file": {},
    "synthetic": {},
    "s3": _S3, "s3a": _S3,
    "gs": _GCS, "gcs": _GCS,
    "abfs": _AZURE, "abfss": _AZURE, "az": _AZURE, "adl": {"store_name": _LABEL},
    "oci": {"region": _LABEL}, "oss": {},
    "hf": {},
    "hdfs": {"host": None, "port": None, "user": None, "replication": None},
    "sftp": {"host": None, "port": None, "username": None},
    "http": {}, "https": {},
    "memory": {},
}  # fmt: skip
"""Schemes that lexray reads; packages for most of them must be installed. Wrappers of filesystems are none of them."""
_OWN_FIELDS = {
    "anon": "anonymous", "anonymous": "anonymous", "profile": "profile", "endpoint_url": "endpoint_url",
    "region_name": "region", "region": "region",
}  # fmt: skip
_UNVERIFIED: dict[str, Allowed] = {
    "s3": {"use_ssl": None, "client_kwargs": {"verify": (True, False), "use_ssl": None}},
}
"""What `INSECURE` allows in addition."""
_OF_TLS = {"verify", "use_ssl", "verify_ssl", "ssl", "insecure"}
_CLEAR = {"http": "is not encrypted", "sftp": "does not verify the host's key"}


def is_insecure_allowed() -> bool:
    """Whether this process's environment allows stores that are not protected by TLS."""
    return os.environ.get(INSECURE) == "1"


def insecure_env() -> dict[str, str]:
    """Return what processes on other nodes need in their environment to be allowed what this one is."""
    return {INSECURE: "1"} if is_insecure_allowed() else {}


def insecure_prefix() -> list[str]:
    """Return the words before a job's command that give it `insecure_env`, none where it is empty."""
    leave = [f"{name}={value}" for name, value in insecure_env().items()]
    return ["env", *leave] if leave else []


def check_options(options: dict[str, Any], scheme: str, *, insecure: bool = False) -> None:
    """Raise UserError for an option that a file may not set for the scheme's filesystem."""
    allowed = SCHEMES.get(scheme, {})
    if insecure:
        allowed = allowed | _UNVERIFIED.get("s3" if scheme == "s3a" else scheme, {})
    _check(options, allowed, scheme, "storage.options", is_s3=scheme in ("s3", "s3a"))


def _check(options: dict[str, Any], allowed: Allowed, scheme: str, place: str, *, is_s3: bool) -> None:
    for name, value in options.items():
        field = f"{place}.{name}"
        if name not in allowed or not _may_be(value, allowed[name]):
            raise UserError(f"{field}: {_why_not(name, value, allowed, scheme, is_s3)}")
        if isinstance(allowed[name], dict):
            _check(value, allowed[name], scheme, field, is_s3=is_s3)


def _may_be(value: Any, known: Any) -> bool:
    """Whether an option may have this value; of an object only whether it is one."""
    if isinstance(known, dict):
        return isinstance(value, dict)
    if isinstance(known, tuple):
        return value in known
    if isinstance(known, re.Pattern):
        return isinstance(value, str) and known.fullmatch(value) is not None
    return isinstance(value, str | int | float | bool | None)


def _why_not(name: str, value: Any, allowed: Allowed, scheme: str, is_s3: bool) -> str:
    if name in _OF_TLS:
        return (
            f"TLS cannot be weakened by a file; for a certificate authority of your own set AWS_CA_BUNDLE to its file, "
            f"to go without verification set {INSECURE}=1 in the environment"
        )
    if isinstance(allowed.get(name), tuple):
        return f"got {value!r}, must be one of {', '.join(map(repr, allowed[name]))}"
    if name in allowed:
        wanted = "an object of options" if isinstance(allowed[name], dict) else "a plain value"
        wanted = "letters, digits and `-`" if isinstance(allowed[name], re.Pattern) else wanted
        return f"got {value!r}, must be {wanted}"
    if is_s3 and name in _OWN_FIELDS:
        return f"set storage.{_OWN_FIELDS[name]} instead"
    close = difflib.get_close_matches(name, list(allowed), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(allowed)) or 'none'}"
    return f"not an option that a file may set for {scheme}://; {hint}"


def check_transport(scheme: str, url: str, endpoint_url: str | None, *, insecure: bool) -> None:
    """Raise UserError where data would travel unprotected to another machine without leave from the environment."""
    if endpoint_url is not None and scheme in ("s3", "s3a"):
        _check_endpoint(endpoint_url, insecure=insecure)
    is_here = scheme == "http" and is_loopback(_host(url))
    if scheme in _CLEAR and not insecure and not is_here:
        raise UserError(f"url {url!r}: {scheme}:// {_CLEAR[scheme]}; set {INSECURE}=1 in the environment to allow it")


def _check_endpoint(endpoint_url: str, *, insecure: bool) -> None:
    field = f"storage.endpoint_url: {endpoint_url!r}"
    try:
        parts = urlsplit(endpoint_url)
        is_known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_known = False
    if not is_known or any(ord(character) <= 32 for character in endpoint_url):
        raise UserError(f"{field} is not the address of a server; write https://HOST or https://HOST:PORT")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(f"{field} holds more than an address; write https://HOST:PORT, credentials come from elsewhere")
    if parts.scheme == "http" and not insecure and not is_loopback(parts.hostname or ""):
        raise UserError(
            f"{field} is not encrypted; use https, or set {INSECURE}=1 in the environment to allow plain http"
        )


def is_loopback(host: str) -> bool:
    """Whether the host of a url is this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
