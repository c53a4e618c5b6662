"""The Ray that lexray starts is this user's alone, and starts on machines whose folders are unusual."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray._private import ray_constants

from lexray.cluster.doctor.dashboard import dashboard_url
from lexray.cluster.home import CACHES, ensure_home
from lexray.cluster.ray_backend import connect
from lexray.cluster.ray_backend.connect import PROCESS_ENV, connected
from lexray.cluster.ray_backend.local_ray import (
    LONGEST_SOCKET,
    RAY_FOLDER,
    SOCKET_BYTES,
    RayStartError,
    local_folder,
    make_private_folder,
    store_options,
)

ROOT = Path(__file__).parents[2]
GIB = 2**30
NOBODY = 54321
"""A user id without an entry in the password file."""


@ray.remote(num_cpus=0)
class Worker:
    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        pass


def processes_of_ray() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def test_no_process_of_a_local_ray_listens_beyond_loopback(ray_session):
    worker = Worker.remote()
    worker_pid = ray.get(worker.pid.remote())
    found = processes_of_ray()
    assert worker_pid in {process.pid for process in found}
    listening = [
        (process.name(), connection.laddr.ip)
        for process in found
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    names = {name for name, _ in listening}
    assert {"gcs_server", "raylet"} <= names, "the ports of Ray itself were looked at"
    others = socket.getaddrinfo("127.0.0.1", 0)[0][4][0]
    assert {address.removeprefix("::ffff:") for _, address in listening} == {others}
    ray.kill(worker)


SERVICES = {
    "gcs_server": ("NodeInfoGcsService/CheckAlive", "JobInfoGcsService/GetAllJobInfo"),
    "raylet": ("NodeManagerService/GetNodeStats",),
    "python": ("CoreWorkerService/GetCoreWorkerStats",),
    "ray::Worker": ("CoreWorkerService/GetCoreWorkerStats",),
}
"""Methods that take an empty request, by the process that has them."""


@pytest.mark.parametrize("name", SERVICES)
def test_each_process_of_a_local_ray_refuses_requests_without_the_token(ray_session, name):
    worker = Worker.remote()
    pid = ray.get(worker.pid.remote())
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    if name in ("python", "ray::Worker"):
        processes = [psutil.Process(pid if name == "ray::Worker" else None)]
    else:
        processes = [process for process in processes_of_ray() if process.name() == name]
    ports = listening_ports(processes)
    for method in SERVICES[name]:
        # The process of the tests has many ports that are none of Ray's, and say nothing.
        with ThreadPoolExecutor(len(ports)) as pool:
            codes = pool.map(lambda port, method=method: grpc_code(port, method, token), ports)
        served = [port for port, code in zip(ports, codes, strict=True) if code == "OK"]
        assert served, method
        for shown in (None, "0" * 64):
            assert {grpc_code(port, method, shown) for port in served} == {"UNAUTHENTICATED"}, f"{method} with {shown}"
    ray.kill(worker)


def listening_ports(processes: list[psutil.Process]) -> list[int]:
    found = [one for process in processes for one in process.net_connections("inet")]
    return [one.laddr.port for one in found if one.status == psutil.CONN_LISTEN]


def grpc_code(port: int, method: str, token: str | None) -> str:
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_a_user_joins_a_ray_on_loopback_by_its_address_and_token_alone(ray_session, tmp_path):
    (tmp_path / "wrong").write_text("0" * 64)
    script = (
        "import sys\nfrom lexray.cluster.ray_backend.connect import connected\nimport ray\n"
        "with connected(sys.argv[1]): print('joined', ray.cluster_resources()['CPU'])\n"
    )
    for variable, said in (
        (os.environ["RAY_AUTH_TOKEN_PATH"], "joined 4.0"),
        (str(tmp_path / "wrong"), "wants another token"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, ray_session], env={**os.environ, "RAY_AUTH_TOKEN_PATH": variable}, cwd=ROOT,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert said in done.stdout + done.stderr


def test_the_dashboard_answers_nobody_without_the_token(ray_session):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = dashboard_url()
    assert isinstance(url, str)
    agents = [one for one in processes_of_ray() if one.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
    assert len(agents) == 2
    assert not any(answers_http(opener, port) for port in listening_ports(agents)), "metrics would be told to everybody"
    for path in ("/api/version", "/api/jobs/", "/api/v0/nodes", "/nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError) as error:
            opener.open(url + path, timeout=10)
        assert error.value.code == 401
        error.value.close()


def answers_http(opener: urllib.request.OpenerDirector, port: int) -> bool:
    try:
        opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except (OSError, http.client.HTTPException):
        return False
    return True


def test_no_other_user_enters_the_folder_of_a_local_ray(ray_session):
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert ray._private.worker._global_node is not None
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert session.parent.parent == token.parent


def test_ray_still_names_its_sockets_as_short_as_we_think(ray_session):
    assert ray._private.worker._global_node is not None
    node = ray._private.worker._global_node
    made = [node.plasma_store_socket_name, node.raylet_socket_name]
    assert all(len(Path(name).relative_to(node._temp_dir if hasattr(node, "_temp_dir") else node.temp_dir).as_posix())
               <= len(LONGEST_SOCKET) for name in made)  # fmt: skip
    assert ray_constants.ENABLE_RAY_CLUSTER, "only while Ray starts it takes loopback for its address"


def test_folders_and_variables_of_a_ray_that_does_not_start_are_gone(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path) if len(str(tmp_path)) < 25 else "/tmp")
    before = dict(os.environ)
    with local_folder() as folder:
        kept = folder.path
        assert kept.is_dir()
    assert not kept.exists()
    assert dict(os.environ) == before


@pytest.fixture
def short():
    """A folder with a path that is short enough for Ray."""
    folder = Path("/tmp") / f"lx{os.getpid() % 10_000}"
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_that_will_not_do_is_named_and_replaced(variable, short, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    shared = short / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    file = short / "file"
    file.write_text("")
    for place, reason in (
        (long, "Ray's sockets allow 25"),
        (short / "none", "No such file"),
        (file, "Not a directory"),
        (shared, "every user may replace"),
        (Path("/proc/self"), ""),
    ):
        made, notes = make_private_folder({variable: str(place)})
        assert made.parent == Path("/tmp")
        (note,) = notes
        assert note.startswith(f"{variable} {place}: ")
        assert reason in note
        assert note.endswith("Ray's files go to /tmp")
        shutil.rmtree(made)
    assert list(long.iterdir()) == list(shared.iterdir()) == [], "what did not do is left as it was"
    made, notes = make_private_folder({variable: str(short)})
    assert (made.parent, notes) == (short, ())


def test_the_longest_place_that_is_taken_holds_a_socket_and_no_longer_one(short):
    room = SOCKET_BYTES - len(f"/lexray-abcdefgh/{RAY_FOLDER}/{LONGEST_SOCKET}")
    for length in (room, room + 1):
        place = short / ("x" * (length - len(str(short)) - 1))
        place.mkdir()
        made, notes = make_private_folder({"RAY_TMPDIR": str(place)})
        assert (made.parent == place) == (length == room) == (not notes)
        shutil.rmtree(made)


def test_a_machine_without_any_place_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "lexray.cluster.ray_backend.local_ray._candidates",
        lambda environ: [("TMPDIR", str(tmp_path / "no")), ("", "/proc")],
    )
    with pytest.raises(RayStartError, match=r"TMPDIR .*/no: No such file.*the folder /proc: .*set RAY_TMPDIR"):
        make_private_folder({})


@given(st.integers(2**28, 2**44), st.none() | st.integers(0, 2**44))
def test_the_object_store_leaves_shared_memory_only_where_there_is_not_enough(memory, shared):
    options, notes = store_options(memory, shared, Path("/tmp/lexray-x"))
    assert bool(options) == (shared is None)
    assert bool(notes) == (shared is None or shared < min(10**10, int(0.3 * memory)))


def test_a_user_without_home_and_name_gets_both(monkeypatch, short):
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", *CACHES):
        monkeypatch.delenv(name, raising=False)
    script = (
        "import getpass, os, pathlib, tempfile\nfrom lexray.cluster.home import ensure_home\nos.setuid(54321)\n"
        f"tempfile.tempdir = {str(short)!r}\n"
        "print(ensure_home())\n"
        "print(getpass.getuser(), pathlib.Path.home(), oct(pathlib.Path.home().stat().st_mode), ensure_home() == '')\n"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    short.chmod(0o777)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    note, found = done.stdout.splitlines()
    assert "set HOME to a folder of yours" in note
    assert found == f"uid{NOBODY} {short}/lexray-home-{NOBODY} 0o40700 True"


def test_a_home_that_cannot_be_written_stays_and_caches_go_elsewhere(monkeypatch, short):
    monkeypatch.setattr("tempfile.tempdir", str(short))
    for name in CACHES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert ensure_home() == ""
    monkeypatch.setenv("HOME", "/proc")
    assert "HOME (/proc) cannot be written" in ensure_home()
    assert os.environ["HOME"] == "/proc"
    assert all(os.environ[name].startswith(str(short)) for name in CACHES)


def test_a_home_that_another_user_laid_out_is_not_taken(monkeypatch, short):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    monkeypatch.setattr("tempfile.tempdir", str(short))
    theirs = short / f"lexray-home-{os.geteuid()}"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    ensure_home()
    assert not os.environ["TRITON_CACHE_DIR"].startswith(f"{theirs}/")


DOCTOR = [sys.executable, "-m", "lexray", "doctor", "--min-free-gib", "0", "--json"]


def doctor(environment: dict[str, str], before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", *PROCESS_ENV))}
    return subprocess.run(
        [*(before or []), *DOCTOR], env={**kept, **environment}, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_doctor_starts_ray_beside_a_long_path_and_says_so(tmp_path, variable):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    done = doctor({variable: str(long)})
    assert done.returncode == 0, done.stderr
    assert f"{variable} {long}: the path has" in " ".join(done.stdout.split())
    assert list(long.iterdir()) == []


@pytest.mark.slow
def test_the_doctor_runs_for_a_user_without_home_and_name():
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user, by setpriv")
    able = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # to read the code, wherever it lies
    other = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *able]
    done = doctor({}, [*other, "env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"])
    assert done.returncode == 0, done.stderr
    assert "HOME is not set" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["size=8m", "ro"])
def test_the_doctor_runs_where_shared_memory_is_tiny_or_closed(how):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can mount")
    done = doctor({}, ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {how} none /dev/shm && exec "$@"', "sh"])
    assert "Ray's object store wants" in " ".join(done.stdout.split()), done.stderr
    assert '"name": "nodes",\n   "status": "ok"' in done.stdout


@pytest.mark.slow
def test_the_doctor_says_why_ray_cannot_start():
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can mount")
    closed = " && ".join(f"mount -t tmpfs -o ro none {place}" for place in ("/tmp", "/var/tmp", "/dev/shm"))
    done = doctor({"TMPDIR": "/tmp"}, ["unshare", "-m", "sh", "-c", f'{closed} && exec "$@"', "sh"])
    assert done.returncode == 1, done.stderr
    assert "set RAY_TMPDIR to a short, writable path" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_sweep_on_this_machine_takes_its_token_with_it():
    with connected(None):
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.is_file()
    assert not token.parent.exists()
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.9:6379"),  # of the job
        ("127.0.0.1:6379", None),  # another place on each node
        ("localhost:6379", None),
        ("http://10.0.0.1:8265", None),
    ],
)
def test_workers_are_told_an_address_that_means_the_same_on_each_node(monkeypatch, address, told):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    assert connect._known(address).get("RAY_ADDRESS") == told


@pytest.mark.slow
def test_workers_ask_their_own_ray_where_another_runs_on_the_machine(tmp_path):
    """Ray Train's cleaner looks for a Ray among the machine's processes; ours and another's lie side by side."""
    script = """
import sys
import ray
from ray.dashboard.utils import get_address_for_submission_client
from lexray.cluster.ray_backend.connect import local_ray
from lexray.cluster.doctor.dashboard import dashboard_url
with local_ray():
    print(ray.get(ray.remote(get_address_for_submission_client).remote(None)) == dashboard_url(), flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        assert [first.stdout.readline(), second.stdout.readline()] == ["True\n"] * 2
        for process in (first, second):
            process.communicate("\n", timeout=60)
