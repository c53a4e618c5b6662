"""Checks of the network between nodes, and of W&B."""

from __future__ import annotations

from lexray.cluster.doctor.findings import NOT_ASKED, AllReduce, Findings, Unknown
from lexray.cluster.doctor.verdict import Check, Limits, fail, listed, of_nodes, ok, skipped, warn

_PORTS = "open all TCP ports between the nodes (a security group that allows itself, a NetworkPolicy among the pods)"


def check_network(found: Findings, limits: Limits) -> Check:
    """Check that every node reaches every other, and that an all-reduce over them is fast enough."""
    if len(found.nodes) < 2:
        return skipped("one node: nothing to cross")
    cut = [f"{node.name} cannot reach {peer} ({why})" for node in found.nodes for peer, why in node.unreached.items()]
    if cut:
        return fail(listed(cut), _PORTS)
    done = [sum_ for sum_ in (found.nccl, found.gloo) if isinstance(sum_, AllReduce)]
    broken = [
        f"{backend}: {sum_.reason}"
        for backend, sum_ in (("nccl", found.nccl), ("gloo", found.gloo))
        if isinstance(sum_, Unknown) and sum_.is_asked
    ]
    if broken:
        advice = (
            "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface between the nodes, and make each host's "
        )
        advice += f"name resolve to its address there; {_PORTS}"
        return fail(listed([f"all-reduce with {line}" for line in broken] + [_told(s) for s in done]), advice)
    if not done:
        few = len(found.answering) < 2 or found.gloo is NOT_ASKED
        return skipped("fewer than two nodes answered" if few else _reason(found.gloo))
    return _fast_enough(found, done, limits)


def _reason(sum_: AllReduce | Unknown) -> str:
    return sum_.reason if isinstance(sum_, Unknown) else ""


def _fast_enough(found: Findings, done: list[AllReduce], limits: Limits) -> Check:
    told, best = ", ".join(map(_told, done)), max(sum_.gb_s for sum_ in done)
    if best < limits.all_reduce_gb_s:
        return fail(
            f"{told}; {limits.all_reduce_gb_s:g} GB/s wanted",
            "use nodes of one placement group, and their fast network (EFA, InfiniBand)",
        )
    fabrics = sorted({name for _, machine in found.answering for name in machine.fabrics})
    if fabrics and any(sum_.transport is not None and sum_.transport.startswith("Socket") for sum_ in done):
        return warn(
            f"{told}; the nodes have {listed(fabrics)}, and NCCL uses TCP",
            "install NCCL's plugin for it (aws-ofi-nccl for EFA), and give the containers its devices",
        )
    return ok(told)


def _told(sum_: AllReduce) -> str:
    transport = f" over {sum_.transport}" if sum_.transport is not None else ""
    return f"{sum_.backend}{transport} {sum_.gb_s:.2f} GB/s ({of_nodes(sum_.nodes)}, {sum_.bytes / 1e6:.0f} MB)"


def check_wandb(found: Findings, limits: Limits) -> Check:
    """Check that W&B accepts the API key, as far as the sweep's `wandb.mode` needs it."""
    wandb = found.wandb
    if isinstance(wandb, Unknown):
        return skipped(wandb.reason) if not wandb.is_asked else warn(wandb.reason, "run it again")
    if wandb.mode in ("offline", "disabled"):
        return skipped(f"wandb.mode is {wandb.mode}")
    if not wandb.has_key:
        if wandb.mode == "online":
            return fail(
                "wandb.mode is online, and there is no API key",
                "set WANDB_API_KEY where the sweep's driver runs, or wandb.mode: offline",
            )
        return skipped("no API key: runs are written offline; `lexray wandb sync` sends them")
    judged = fail if wandb.mode == "online" else warn
    if isinstance(wandb.status, Unknown):
        return judged(
            f"{wandb.host}: {wandb.status.reason}",
            "open the way to that host, set WANDB_BASE_URL, or set wandb.mode: offline and sync later",
        )
    if wandb.status in (401, 403):
        return judged(f"{wandb.host} refuses the API key (HTTP {wandb.status})", "set another WANDB_API_KEY")
    if wandb.status >= 400:
        return judged(f"{wandb.host} answers HTTP {wandb.status}", "try again later; a sweep falls to offline")
    return ok(f"{wandb.host} takes the API key")
