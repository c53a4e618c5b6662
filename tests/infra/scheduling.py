"""Where Kubernetes would schedule a pod: node selectors, required node affinity, and taints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Labels = Mapping[str, str]
Json = Mapping[str, Any]


def why_not(pod: Json, labels: Labels, taints: Sequence[Json]) -> list[str]:
    """Return what keeps a pod of this spec off a node; nothing where it may run."""
    reasons = [
        f"{key} is {labels.get(key)!r}, not {value!r}"
        for key, value in (pod.get("nodeSelector") or {}).items()
        if labels.get(key) != value
    ]
    node_affinity = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if node_affinity and not any(_matches(term, labels) for term in node_affinity["nodeSelectorTerms"]):
        reasons.append("no term of the node affinity matches")
    tolerations = pod.get("tolerations") or []
    reasons += [
        f"taint {taint['key']} is not tolerated"
        for taint in taints
        if not any(_tolerates(toleration, taint) for toleration in tolerations)
    ]
    return reasons


def _matches(term: Json, labels: Labels) -> bool:
    """All expressions of a term hold; a term without any matches nothing."""
    expressions = term.get("matchExpressions") or []
    return bool(expressions) and all(_holds(expression, labels) for expression in expressions)


def _holds(expression: Json, labels: Labels) -> bool:
    value = labels.get(expression["key"])
    operator = expression["operator"]
    if operator == "In":
        return value in expression["values"]
    if operator == "NotIn":
        return value not in expression["values"]
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    raise ValueError(f"operator {operator} is not known here")


def _tolerates(toleration: Json, taint: Json) -> bool:
    """An empty key with Exists tolerates every taint, and a toleration without an effect every effect."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")
