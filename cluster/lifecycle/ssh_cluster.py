"""`lexray up` and `lexray down` for a list of hosts: start Ray where it does not run, stop what was started."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.jobs.job_client import JobClient
from lexray.cluster.lifecycle.running_jobs import drain, refuse_running, unasked
from lexray.cluster.lifecycle.ssh_hosts import Host, HostList, check_hosts, described, read_hosts
from lexray.cluster.lifecycle.up import CLUSTER_FILE
from lexray.cluster.node.agent_call import call_agent
from lexray.cluster.output import FAILED, OK, print_json
from lexray.cluster.provisioned.connection import Target, connect, ended_by_signals
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.cluster.provisioned.errors import RefusedError
from lexray.cluster.provisioned.trust import remember, token_use
from lexray.storage.errors import UserError
from lexray.storage.polling import poll

AT_ONCE = 32
"""Maximum number of concurrent calls to hosts."""
JOIN_S = 60.0
"""Seconds that nodes may take to appear in the head's list."""
Found = dict[str, Any]
"""A host's answer, as JSON."""


def run_up(folder: Path, messages: Console, as_json: bool) -> int:
    """Start the cluster. Returns exit code 0 once every host is a node."""
    hosts = read_hosts(folder)
    with ended_by_signals():
        found = _looked_at(hosts)
        check_hosts(hosts, found)
        started = _start(hosts, found, messages)
        file = folder / CLUSTER_FILE
        content = _described(hosts, found[hosts.head_host.host])
        file.write_text(json.dumps(content, indent=1) + "\n")
        _await_nodes(file, {one["address"] for one in found.values()}, messages)
    new = [name for name, one in found.items() if one["head"] != started[name]["head"]]
    if as_json:
        print_json({"file": str(file), "cluster": content, "started": new})
        return OK
    print(file)
    say(messages, f"{len(found)} host(s), {len(new)} of them started now; next:")
    say(messages, f"  lexray submit SWEEP.yaml --cluster {file}")
    say(messages, f"  lexray down {folder}  when you are done")
    return OK


def run_down(folder: Path, force: bool, messages: Console, as_json: bool) -> int:
    """Stop the cluster. Returns exit code 0 if nothing that `up` started still runs, 1 if a host was unreachable.

    Raises UserError while a job runs or nobody can tell, unless `force`.
    """
    hosts = read_hosts(folder)
    with ended_by_signals(), tempfile.TemporaryDirectory() as scratch:
        _leave_jobs(hosts, Path(scratch) / CLUSTER_FILE, messages, force=force)
        head, *others = sorted(hosts.hosts, key=lambda one: one != hosts.head_host)
        say(messages, f"ending Ray on {len(hosts.hosts)} host(s)")
        answers: dict[str, Any] = {}
        for group in (others, [head]):  # workers log errors when their head is lost
            answers |= _each(group, lambda one: _call(hosts, one, "stop", address=one.address))
    wrong = {name: str(answer) for name, answer in answers.items() if isinstance(answer, UserError)}
    ended = [name for name, answer in answers.items() if not isinstance(answer, UserError) and answer["stopped"]]
    if not wrong:
        (folder / CLUSTER_FILE).unlink(missing_ok=True)
    if as_json:
        print_json({"name": hosts.name, "ended": ended, "not_ended": wrong})
    elif not wrong:
        print(f"nothing of {hosts.name} runs any more: ended on {len(ended)} of {len(answers)} host(s)")
    else:
        print("\n".join(f"not ended: {line}" for line in wrong.values()))
    return FAILED if wrong else OK


def _looked_at(hosts: HostList) -> dict[str, Found]:
    """Return the state of each host by name. Raises UserError naming those that cannot be reached."""

    def look(one: Host) -> Found:
        ports = [hosts.port, hosts.dashboard_port] if one == hosts.head_host else []
        return _call(hosts, one, "look", address=one.address, ports=ports)

    return _all_well(_each(hosts.hosts, look))


def _start(hosts: HostList, found: dict[str, Found], messages: Console) -> dict[str, Found]:
    """Start the head, then all others concurrently; return their answers by host name."""
    from lexray.cluster.node.ray_start import host_port, node_environment, start_arguments

    head = hosts.head_host
    head_address = found[head.host]["address"]
    gcs = host_port(head_address, hosts.port)

    def start(one: Host, known: Found | None) -> Found:
        address = found[one.host]["address"]
        if found[one.host]["head"] is None:
            say(messages, f"{one.host}: starting {'the head' if known is None else 'a worker'} at {address}")
        arguments = start_arguments(
            address, head=None if known is None else head_address, port=hosts.port,
            dashboard_port=hosts.dashboard_port, cpus=one.cpus, gpus=one.gpus,
        )  # fmt: skip
        return _call(
            hosts, one, "start", address=address, arguments=arguments, temp_dir=hosts.temp_dir,
            env=node_environment(hosts.liveness, hosts.env, head=gcs), **known or {"head": None, "token": None},
        )  # fmt: skip

    made = start(head, None)
    known = {"head": made["head"], "token": made["token"]}
    others = [one for one in hosts.hosts if one != head]
    return {head.host: made, **_all_well(_each(others, lambda one: start(one, known)))}


def _described(hosts: HostList, head: Found) -> Found:
    """Return the cluster's description, and remember that its maker trusts its head with its token."""
    content = described(hosts, head["address"], head["token_file"], head["ray"])
    if (use := token_use(ClusterDescription.model_validate(content), None, None)) is not None:
        remember(use)
    return content


def _await_nodes(file: Path, addresses: set[str], messages: Console) -> None:
    """Raise RefusedError unless all addresses join the head in time."""
    say(messages, "waiting for the hosts to join")
    with connect(Target(cluster=str(file), is_trusted=True)) as connection:
        client = JobClient(connection.dashboard)
        missing = poll(
            lambda: addresses - {node["node_ip"] for node in client.nodes()},
            until=lambda missing: not missing,
            every_s=0.5,
            at_most_s=JOIN_S,
        )
    if missing:
        raise RefusedError(
            f"{len(missing)} of {len(addresses)} hosts have not joined in {JOIN_S:.0f} s: "
            f"{', '.join(sorted(missing))}; can they reach the head, and it them, at every port?"
        )


def _leave_jobs(hosts: HostList, file: Path, messages: Console, *, force: bool) -> None:
    """Raise UserError while a job runs, or when the head cannot be asked; with `force`, have sweeps save and end."""
    head = hosts.head_host
    try:
        found = _call(hosts, head, "look", address=head.address, ports=[])
        if found["head"] is None:
            return
        file.write_text(json.dumps(described(hosts, found["address"], found["token_file"], found["ray"])))
    except UserError as error:
        if not force:
            raise unasked(error) from error
        return
    if force:
        drain(file, messages)
    else:
        refuse_running(file)


def _call(hosts: HostList, one: Host, do: str, **request: Any) -> Found:
    return call_agent(hosts.access(one), hosts.python, {"do": do, "cluster": hosts.name, **request})


def _each(hosts: Sequence[Host], call: Callable[[Host], Any]) -> dict[str, Any]:
    """Return a call's result for each host by name, or the UserError that it raised."""

    def caught(one: Host) -> Any:
        try:
            return call(one)
        except UserError as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip([one.host for one in hosts], pool.map(caught, hosts), strict=True))


def _all_well(answers: dict[str, Any]) -> dict[str, Found]:
    wrong = [answer for answer in answers.values() if isinstance(answer, UserError)]
    if wrong:
        more = f" (and {len(wrong) - 1} more host(s))" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}")
    return answers
