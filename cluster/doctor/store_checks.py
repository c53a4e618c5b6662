"""Checks that every node can read the data and write the output, and compares regions and identities."""

from __future__ import annotations

from collections.abc import Callable

from lexray.cluster.doctor.findings import (
    BucketRegion,
    Findings,
    NodeReport,
    StoreFault,
    StoreFinding,
    StoreSpeed,
    Unknown,
)
from lexray.cluster.doctor.verdict import Check, Limits, fail, listed, of_nodes, ok, skipped, warn
from lexray.storage.objects.settings import S3

_WRONG_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "307",
}
_REFUSED = {"AccessDenied", "403", "AllAccessDisabled", "Forbidden"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"}
_ALLOWED = {
    "manifest": "s3:GetObject",
    "read": "s3:GetObject",
    "write": "s3:PutObject",
    "read back": "s3:GetObject",
    "delete": "s3:DeleteObject",
    "share": "s3:GetObject",
}


def check_data(found: Findings, limits: Limits) -> Check:
    """Check that each node can read a chunk of the dataset with a correct checksum."""
    return _check_store(found, "data", found.data_url, lambda node: node.data, "read a chunk, checksum right")


def check_output(found: Findings, limits: Limits) -> Check:
    """Check that each node can write a key, read it back and delete it."""
    return _check_store(found, "output", found.output_url, lambda node: node.output, "wrote, read and deleted a key")


def check_region(found: Findings, limits: Limits) -> Check:
    """Check that buckets are in the configured region and the nodes' own: traffic between regions is slow and billed by
    the GB.
    """
    if not found.regions:
        return skipped("neither the data nor the output lies in S3")
    wrong = [line for line in map(_region_problem, found.regions) if line]
    if wrong:
        advice = "set storage.region to the bucket's, and use nodes and buckets of one region; traffic between regions "
        return fail(listed(wrong), advice + "is billed by the GB")
    known = [f"{region.url} lies in {region.bucket}" for region in found.regions if isinstance(region.bucket, str)]
    if not known:
        reasons = [f"{r.url}: {r.bucket.reason}" for r in found.regions if isinstance(r.bucket, Unknown)]
        return skipped(listed(reasons))
    return ok(listed(known))


def check_identity(found: Findings, limits: Limits) -> Check:
    """Check that all nodes have one cloud identity: a pod without its own role silently takes the node's."""
    asked = [
        node for node, _ in found.answering if not (isinstance(node.identity, Unknown) and not node.identity.is_asked)
    ]
    if not asked:
        return skipped("no store that knows identities is used")
    unknown = [f"{node.name}: {node.identity.reason}" for node in asked if isinstance(node.identity, Unknown)]
    if unknown:
        return warn(listed(unknown), "give every node the cluster's role (service account, instance profile)")
    roles = {role_of(node.identity): node.name for node in asked if isinstance(node.identity, str)}
    if len(roles) > 1:
        shown = listed(f"{name} is {role}" for role, name in roles.items())
        return warn(shown, "use one role everywhere; a pod without its own takes the node's")
    return ok(f"{next(iter(roles))} on {of_nodes(len(asked))}")


def role_of(arn: str) -> str:
    """Return an ARN without its session name, which differs between nodes."""
    return arn.rsplit("/", 1)[0] if ":assumed-role/" in arn else arn


def _check_store(
    found: Findings, name: str, url: str | None, of: Callable[[NodeReport], StoreFinding], well: str
) -> Check:
    if url is None:
        return skipped(f"no --{name} and no sweep file given")
    findings = [(node.name, of(node)) for node, _ in found.answering]
    silent = [f"{node}: {finding.reason}" for node, finding in findings if isinstance(finding, Unknown)]
    faults = [(node, finding) for node, finding in findings if isinstance(finding, StoreFault)]
    if faults:
        told = listed([f"{node}: {fault.step} failed ({fault.reason})" for node, fault in faults] + silent)
        return fail(f"{url}: {told}", store_advice(found, url, faults[0][1]))
    if silent:
        return fail(f"{url}: {listed(silent)}", _silence_advice(found, url))
    speeds = [finding for _, finding in findings if isinstance(finding, StoreSpeed)]
    if not speeds:
        return skipped("no node answered")
    slowest = max(speeds, key=lambda speed: speed.seconds)
    return ok(f"{url}: {of_nodes(len(speeds))} {well}, in {slowest.seconds:.2f} s or less")


def store_advice(found: Findings, url: str, fault: StoreFault) -> str:
    """Return the advice for a store's error."""
    bucket = url.split("://", 1)[-1].split("/", 1)[0]
    if url.startswith("file://"):
        return "a path must be on a file system that all nodes share, and writable there; or use s3://"
    if fault.code in _WRONG_REGION:
        return f"set storage.region to the region of bucket {bucket}"
    if fault.code in _UNKNOWN_KEY:
        return "the credentials are not this store's, or expired: look at the nodes' role, and at their clocks"
    if fault.code == "NoSuchBucket":
        return f"no bucket {bucket} at {_endpoint(found)}: fix the url, storage.endpoint_url or storage.region"
    if fault.code in _REFUSED or "denied" in fault.reason.lower() or "forbidden" in fault.reason.lower():
        return f"allow the nodes' role {_ALLOWED[fault.step]} on {url}/*"
    if "redentials" in fault.reason:
        return "give the nodes a role (service account, instance profile), or set storage.anonymous for public data"
    if fault.step == "manifest" and "no manifest" in fault.reason:
        return "fix data.url, or write the dataset first with `lexray harvest`"
    return _silence_advice(found, url)


def _silence_advice(found: Findings, url: str) -> str:
    return f"nodes must reach {_endpoint(found)}: look at storage.endpoint_url, routes and security groups"


def _endpoint(found: Findings) -> str:
    return found.storage.endpoint_url or "S3 of AWS"


def _region_problem(region: BucketRegion) -> str:
    if isinstance(region.bucket, Unknown):
        return ""
    if region.asked is not None and region.asked != region.bucket:
        return f"{region.url} lies in {region.bucket}, storage.region or the environment says {region.asked}"
    if region.nodes is not None and region.nodes != region.bucket:
        return f"{region.url} lies in {region.bucket}, the nodes run in {region.nodes}"
    return ""


def is_s3(url: str | None) -> bool:
    """Return whether the url is one of S3."""
    return url is not None and url.split("://", 1)[0] in S3
