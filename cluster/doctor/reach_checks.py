"""Whether the nodes and the dashboard answer, and who besides us may ask."""

from __future__ import annotations

from lexray.cluster.doctor.findings import DashboardFacts, Findings, Listening, Unknown
from lexray.cluster.doctor.verdict import Check, Limits, fail, listed, of_nodes, ok, skipped, warn

REFUSED = (401, 403)
_TOKEN_ADVICE = "set RAY_AUTH_MODE=token and one token on every node, driver and client, and start Ray anew"


def check_start(found: Findings, limits: Limits) -> Check:
    """A Ray that was started here found its folders as it wants them."""
    if found.start_notes is None:
        return skipped("this Ray ran before")
    if found.start_notes:
        return warn("; ".join(found.start_notes), "Ray runs all the same; set what the line names")
    return ok("Ray starts here, with a token, in a private folder")


def check_nodes(found: Findings, limits: Limits) -> Check:
    """Every living node answers, and none died unasked."""
    silent = [f"{node.name}: {node.machine.reason}" for node in found.nodes if isinstance(node.machine, Unknown)]
    if silent:
        advice = "look at its raylet.out, or take the node away; trials that are placed there would wait for it"
        return fail(f"{len(silent)} of {of_nodes(len(found.nodes))} did not answer: {listed(silent)}", advice)
    if found.dead:
        lost = listed(f"{node.name}: {node.reason}" for node in found.dead)
        return warn(
            f"{of_nodes(len(found.nodes))} answer, {len(found.dead)} died unasked: {lost}",
            "look at why they died; a node that returns gets another id",
        )
    return ok(f"{of_nodes(len(found.nodes))}: {listed(node.name for node in found.nodes)}")


def check_launches(found: Findings, limits: Limits) -> Check:
    """The autoscaler could launch the nodes that were wanted."""
    failures = found.launch_failures
    if isinstance(failures, Unknown):
        return skipped(failures.reason)
    if failures:
        return fail(listed(failures), "mend what the line names; trials wait for these nodes")
    return ok("no launch of a node failed in the last 10 minutes")


def check_dashboard(found: Findings, limits: Limits) -> Check:
    """The dashboard answers on every node: Ray Train frees the workers of stopped trials through it."""
    dashboard = found.dashboard
    advice = "start the head with its dashboard (ray[default], --include-dashboard=true); Ray Train frees the workers "
    advice += "of stopped trials through it"
    if isinstance(dashboard, Unknown):
        return fail(dashboard.reason, advice)
    if isinstance(dashboard.with_token, Unknown):
        return fail(f"{dashboard.url}: {dashboard.with_token.reason}", advice)
    if dashboard.with_token in REFUSED:
        return fail(
            f"{dashboard.url} refuses our token (HTTP {dashboard.with_token})",
            "give the cluster's own token: --token-file, or RAY_AUTH_TOKEN_PATH on every node",
        )
    if dashboard.with_token >= 400:
        return fail(f"{dashboard.url} answers HTTP {dashboard.with_token}", "look at dashboard.log")
    cut_off = [
        f"{node.name}: {node.dashboard.reason if isinstance(node.dashboard, Unknown) else f'HTTP {node.dashboard}'}"
        for node, _ in found.answering
        if (node.dashboard.is_asked if isinstance(node.dashboard, Unknown) else node.dashboard >= 400)
    ]
    if cut_off:
        return fail(
            f"{dashboard.url} answers on the head, not on {listed(cut_off)}",
            "start the head with --dashboard-host at its private address; open that port to the nodes",
        )
    return ok(f"{dashboard.url} answers on {of_nodes(len(found.answering))}")


def check_token(found: Findings, limits: Limits) -> Check:
    """A request without a token is refused, or only this machine can make one."""
    dashboard = found.dashboard
    if isinstance(dashboard, Unknown):
        return skipped(f"no dashboard to ask: {dashboard.reason}")
    if isinstance(dashboard.without_token, Unknown):
        return skipped(f"the dashboard did not answer: {dashboard.without_token.reason}")
    if dashboard.without_token in REFUSED:
        return ok(f"in force: without it HTTP {dashboard.without_token}")
    open_ = f"{dashboard.url} answers HTTP {dashboard.without_token} to a request without a token"
    if isinstance(dashboard.listening, Listening) and _is_loopback_only(dashboard.listening.dashboard):
        return warn(f"{open_}; it listens on loopback alone", _TOKEN_ADVICE)
    return fail(f"{open_}: whoever reaches it can run code on every node", _TOKEN_ADVICE)


def check_exposure(found: Findings, limits: Limits) -> Check:
    """No door of the head is open to the internet."""
    if isinstance(found.dashboard, Unknown):
        return skipped(f"no dashboard to ask: {found.dashboard.reason}")
    listening = found.dashboard.listening
    if isinstance(listening, Unknown):
        return skipped(listening.reason)
    doors = f"dashboard listens on {_shown(listening.dashboard)}, GCS on {_shown(listening.gcs)}"
    exposed = _open_to_the_world(listening)
    if not exposed:
        private = "; no interface of the head has a public address" if not listening.public else ""
        return ok(doors + private)
    where = f"{doors}; {' and '.join(exposed)} can be reached at the public {listed(listening.public)}"
    advice = "give the head no public address, or --dashboard-host 127.0.0.1 and a firewall; reach it by a tunnel"
    if _has_token(found.dashboard):
        return warn(f"{where}, and only the token keeps strangers out", advice)
    return fail(f"{where}, and no token is asked for", advice)


def _has_token(dashboard: DashboardFacts) -> bool:
    return dashboard.without_token in REFUSED


def _open_to_the_world(listening: Listening) -> list[str]:
    """Doors that are open on a public address."""
    doors = {"the dashboard": listening.dashboard, "the GCS": listening.gcs}
    anywhere = {"0.0.0.0", "::", *listening.public}
    return [door for door, addresses in doors.items() if listening.public and anywhere & set(addresses)]


def _is_loopback_only(addresses: tuple[str, ...]) -> bool:
    return bool(addresses) and all(address == "::1" or address.startswith("127.") for address in addresses)


def _shown(addresses: tuple[str, ...]) -> str:
    return " and ".join("all addresses" if a in ("0.0.0.0", "::") else a for a in addresses) or "no port here"
