"""The Grafana dashboard of infra/observability: its queries, and the metrics and labels that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser
from hcl_files import INFRA

FOLDER = INFRA / "observability"
VARIABLES = {"cluster": "lexray", "sweep": "small", "trial": ".*", "window": "1m"}
OF_THE_SCRAPE = {"ray_io_cluster"}
"""Labels that no process exports: prometheus.yml and the PodMonitor add them."""


class Query(NamedTuple):
    """A query of a panel, its variables filled in."""

    panel: str
    expr: str
    labels_shown: frozenset[str]
    """By the legend."""


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    """Every panel that shows something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    return [
        Query(panel["title"], filled(target["expr"]), frozenset(re.findall(r"{{(\w+)}}", target["legendFormat"])))
        for panel in panels()
        for target in panel["targets"]
    ]


def filled(expr: str) -> str:
    """A query with values in place of Grafana's variables; a KeyError names one that the dashboard lacks."""
    return re.sub(r"\$(\w+)", lambda found: VARIABLES[found[1]], expr)


def metrics_of(expr: str) -> dict[str, set[str]]:
    """The labels by which a query selects, by the name of each metric that it reads."""
    found: dict[str, set[str]] = {}
    for node in _nodes(expr):
        if isinstance(node, promql_parser.VectorSelector):
            found.setdefault(node.name, set()).update(matcher.name for matcher in node.matchers.matchers)
    return found


def groups_of(expr: str) -> set[str]:
    """The labels by which a query sums up."""
    modifiers = [node.modifier for node in _nodes(expr) if isinstance(node, promql_parser.AggregateExpr)]
    return {label for modifier in modifiers for label in modifier.labels}


def _nodes(expr: str) -> Iterator[Any]:
    """Every part of a query. Raises ValueError where it is not PromQL."""
    nodes: list[Any] = []
    promql_parser.walk(promql_parser.parse(expr), nodes.append)
    for node in nodes:
        yield node
        if isinstance(node, promql_parser.MatrixSelector):
            yield node.vector_selector
