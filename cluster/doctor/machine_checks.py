"""Checks of each node: versions, GPUs, memory, disks, clock, health-check settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from lexray.cluster.doctor.findings import Disk, Findings, MachineFacts, NodeReport, Unknown
from lexray.cluster.doctor.verdict import Check, Limits, fail, listed, of_nodes, ok, skipped, warn
from lexray.cluster.provisioned.description import Liveness
from lexray.storage.units import gib

CODE = "lexray"
"""Key of the hash of lexray's files among the versions."""
NOBODY = "no node answered"


def check_versions(found: Findings, limits: Limits) -> Check:
    """Check that Python, Ray, torch and DeepSpeed have the client's versions on every node."""
    wanted = {name: version for name, version in found.client_versions.items() if name != CODE}
    skew = _differences(found, wanted)
    if skew:
        here = ", ".join(f"{name} {version}" for name, version in wanted.items())
        advice = "use one image, or one constraints file, on every node and for whoever starts the sweep"
        return fail(f"{listed(skew)}; here {here}", advice)
    return _if_any(found, ", ".join(f"{name} {version}" for name, version in wanted.items()))


def check_code(found: Findings, limits: Limits) -> Check:
    """Check that lexray's files are the same on every node as on the client."""
    wanted = found.client_versions[CODE]
    skew = _differences(found, {CODE: wanted})
    if skew:
        advice = "install this version of lexray in the image, or submit from a checkout, which sends its code along"
        return fail(f"{listed(skew)}; here {wanted}", advice)
    return _if_any(found, f"{CODE} {wanted}")


def check_devices(found: Findings, limits: Limits) -> Check:
    """Check that the GPUs that Ray counts exist."""
    wrong = _problems(found, _lacks_devices)
    if wrong:
        return fail(listed(wrong), "make nvidia-smi work there, or start Ray with the GPUs that it lists")
    kinds: Counter[str] = Counter()
    for _, machine in found.answering:
        devices = machine.devices if not isinstance(machine.devices, Unknown) else ()
        kinds.update(f"{device.name} (driver {device.driver})" for device in devices)
    shown = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "no GPUs"
    return _if_any(found, f"{shown} on {of_nodes(len(found.answering))}")


def check_efa(found: Findings, limits: Limits) -> Check:
    """Check that NCCL can use the nodes' EFA cards."""
    unused = _problems(found, lambda node, machine: _lacks_efa(machine))
    if unused:
        advice = (
            "build the image with --target efa, and give the container its cards: vpc.amazonaws.com/efa of the pod, or "
        )
        return warn(listed(unused), advice + "--device /dev/infiniband")
    cards = sum(machine.efa.cards for _, machine in found.answering if machine.efa is not None)
    if not cards:
        return skipped("no node has an EFA card" if found.answering else NOBODY)
    return ok(f"{cards} cards, and NCCL's plugin for them")


def check_shm(found: Findings, limits: Limits) -> Check:
    """Check that Ray's object store fits in `/dev/shm`."""
    small = _problems(found, _lacks_shared_memory)
    if small:
        advice = (
            "give the container a larger /dev/shm (an emptyDir of medium Memory, or --shm-size), or start Ray with a "
        )
        return fail(listed(small), advice + "smaller --object-store-memory")
    sizes = [(m.shared.total_bytes, n.object_store_bytes) for n, m in found.answering if isinstance(m.shared, Disk)]
    if not sizes:
        return skipped("no node has /dev/shm" if found.answering else NOBODY)
    total, store = min(sizes, key=lambda pair: pair[0] - pair[1])
    return ok(f"/dev/shm of {gib(total)} holds the object store of {gib(store)} on {of_nodes(len(sizes))}")


def check_disk(found: Findings, limits: Limits) -> Check:
    """Check the free disk space for Ray's sessions and the sweep's chunk cache."""
    full = _problems(found, lambda node, machine: _lacks_disk(machine, limits, found.cache_bytes))
    if full:
        return fail(listed(full), "free some space, use a larger disk, or start Ray with another --temp-dir")
    disks = [machine.temp for _, machine in found.answering if isinstance(machine.temp, Disk)]
    if not disks:
        return skipped("no folder of Ray's could be looked at" if found.answering else NOBODY)
    least = min(disks, key=lambda disk: disk.free_bytes)
    return ok(
        f"{gib(least.free_bytes)} free at {least.path} or more on {of_nodes(len(disks))} "
        f"({gib(limits.free_disk_bytes)} wanted)"
    )


def check_memory(found: Findings, limits: Limits) -> Check:
    """Check that other processes leave enough memory."""
    full = [
        f"{node.name}: {gib(machine.used_bytes)} of {gib(machine.memory_bytes)} in use"
        for node, machine in found.answering
        if machine.used_bytes > limits.used_memory * machine.memory_bytes
    ]
    if full:
        return warn(listed(full), "end what else runs there; Ray kills workers when 95 % is in use")
    least = min((machine.memory_bytes - machine.used_bytes for _, machine in found.answering), default=0)
    return _if_any(found, f"{gib(least)} free or more on {of_nodes(len(found.answering))}")


def check_clock(found: Findings, limits: Limits) -> Check:
    """Check that the nodes' clocks agree with the head's."""
    head = found.head
    if head is None or isinstance(head.clock, Unknown):
        return skipped("the head's clock could not be read")
    known = [(node, node.clock) for node in found.nodes if not isinstance(node.clock, Unknown)]
    offsets = {
        node.name: (clock.ahead_s - head.clock.ahead_s, clock.error_s + head.clock.error_s) for node, clock in known
    }
    worst = max((abs(skew_s) - error_s for skew_s, error_s in offsets.values()), default=0.0)
    wrong = [
        f"{name}: {skew_s:+.1f} s"
        for name, (skew_s, error_s) in offsets.items()
        if abs(skew_s) - error_s > limits.skew_warn_s
    ]
    if wrong:
        judged = fail if worst > limits.skew_fail_s else warn
        advice = "run chrony or another NTP client there; object stores refuse requests of a wrong time"
        return judged(f"{listed(wrong)} against the head ({limits.skew_warn_s:g} s allowed)", advice)
    return ok(f"within {max(0.0, worst):.1f} s of the head's on {of_nodes(len(known))}")


def check_liveness(found: Findings, limits: Limits) -> Check:
    """Check that Ray's settings detect a lost node within about a minute."""
    unset = _problems(found, lambda node, machine: _lacks_liveness(machine))
    if unset:
        settings = " ".join(f"{name}={value}" for name, value in Liveness().ray_env.items())
        return warn(listed(unset), f"start Ray on every node with {settings}")
    unread = [machine.liveness for _, machine in found.answering if isinstance(machine.liveness, Unknown)]
    if unread:
        return skipped(unread[0].reason)
    return _if_any(found, f"keep-alive and health checks are set on {of_nodes(len(found.answering))}")


def _problems(found: Findings, problem: Callable[[NodeReport, MachineFacts], str]) -> list[str]:
    """Return `node: problem` for each node with a problem."""
    told = [(node.name, problem(node, machine)) for node, machine in found.answering]
    return [f"{name}: {what}" for name, what in told if what]


def _differences(found: Findings, wanted: Mapping[str, str]) -> list[str]:
    def problem(node: NodeReport, machine: MachineFacts) -> str:
        return ", ".join(
            f"{name} {machine.versions.get(name, 'missing')}"
            for name, version in wanted.items()
            if machine.versions.get(name) != version
        )

    return _problems(found, problem)


def _lacks_devices(node: NodeReport, machine: MachineFacts) -> str:
    if isinstance(machine.devices, Unknown):
        return f"Ray counts {node.gpus:g} GPUs, {machine.devices.reason}" if node.gpus else ""
    if node.gpus > len(machine.devices):
        return f"Ray counts {node.gpus:g} GPUs, nvidia-smi lists {len(machine.devices)}"
    return ""


def _lacks_efa(machine: MachineFacts) -> str:
    efa = machine.efa
    if efa is None:
        return ""
    wrong = [f"{efa.openable} of {efa.cards} cards can be opened"] if efa.openable < efa.cards else []
    if efa.plugin_fault:
        wrong.append(f"NCCL's plugin does not load ({efa.plugin_fault})")
    return ", ".join(wrong)


def _lacks_shared_memory(node: NodeReport, machine: MachineFacts) -> str:
    if isinstance(machine.shared, Unknown):
        return ""
    if machine.shared.total_bytes < node.object_store_bytes:
        return f"/dev/shm of {gib(machine.shared.total_bytes)} for an object store of {gib(node.object_store_bytes)}"
    if machine.plasma_dir is not None and not machine.plasma_dir.startswith("/dev/shm"):
        return f"the object store lies on a disk, at {machine.plasma_dir}"
    return ""


def _lacks_disk(machine: MachineFacts, limits: Limits, cache_bytes: int) -> str:
    told = []
    if isinstance(machine.temp, Disk):
        disk, used = machine.temp, 1 - machine.temp.free_bytes / machine.temp.total_bytes
        if disk.free_bytes < limits.free_disk_bytes:
            told.append(f"{gib(disk.free_bytes)} free at {disk.path}, {gib(limits.free_disk_bytes)} wanted")
        elif used > limits.full_disk:
            told.append(f"{disk.path} is {used:.0%} full; Ray spills nothing from {limits.full_disk:.0%} on")
    if isinstance(machine.cache, Unknown) and machine.cache.is_asked:
        told.append(f"cache.dir: {machine.cache.reason}")
    elif isinstance(machine.cache, Disk) and machine.cache.free_bytes + machine.cache.held_bytes < cache_bytes:
        room = machine.cache.free_bytes + machine.cache.held_bytes
        told.append(f"{gib(room)} of room for the cache at {machine.cache.path}, cache.bytes is {gib(cache_bytes)}")
    return ", ".join(told)


def _lacks_liveness(machine: MachineFacts) -> str:
    told = []
    for process, settings in (("its raylet", machine.liveness), ("its GCS", machine.gcs_liveness)):
        if not isinstance(settings, Unknown):
            missing = [name for name in Liveness().ray_env if name not in settings]
            if missing:
                told.append(f"{process} lacks {_all_or(missing)}")
    return ", ".join(told)


def _all_or(missing: list[str]) -> str:
    return f"all {len(missing)} of them" if len(missing) == len(Liveness().ray_env) else " ".join(missing)


def _if_any(found: Findings, text: str) -> Check:
    return ok(text) if found.answering else skipped(NOBODY)
