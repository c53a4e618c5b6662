"""A token goes to a cluster that the user agreed to, over a connection that nobody reads, and nowhere else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from fake_programs import ADashboard, Programs, on_path
from hypothesis import given
from hypothesis import strategies as st

from lexray.cluster.doctor.dashboard import http_status
from lexray.cluster.provisioned.connection import Target, connect
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.cluster.provisioned.http import Dashboard, is_loopback
from lexray.cluster.provisioned.tokens import Secret, token_of_file
from lexray.cluster.provisioned.trust import TokenUse, check_trust, remember, token_use, trust_file, trusted_uses
from lexray.storage.config_file import checked_content
from lexray.storage.errors import UserError

TOKEN = "t0ken-that-nobody-may-see"
KUBECTL = {"kind": "kubectl", "namespace": "sae", "service": "sae-head-svc"}
USE = TokenUse(cluster="https://ray.example.org", token="token file /home/me/token")


@pytest.fixture
def dashboard():
    made = ADashboard()
    yield made
    made.close()


@pytest.fixture
def described(tmp_path):
    """Writes a cluster's file and gives its path."""

    def write(access: dict[str, Any], **changes: Any) -> str:
        (tmp_path / "token").write_text(TOKEN)
        token = {"kind": "file", "path": str(tmp_path / "token")}
        content = {"schema": 1, "name": "sae", "provider": "ray", "access": access, "token": token, **changes}
        (tmp_path / "cluster.json").write_text(json.dumps(content))
        return str(tmp_path / "cluster.json")

    return write


def refused(target: Target, ask: Any = None) -> str:
    with pytest.raises(UserError) as error, connect(target, ask):
        pass
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)
    return str(error.value)


def test_the_first_use_of_a_token_is_asked_with_both_names_and_remembered(dashboard, described, tmp_path):
    asked: list[str] = []

    def agree(question: str) -> bool:
        asked.append(question)
        return True

    target = Target(cluster=described({"kind": "direct", "address": dashboard.url}))
    for _ in range(2):
        with connect(target, agree):
            pass
    (question,) = asked
    assert dashboard.url in question
    assert str(tmp_path / "token") in question
    with connect(target):
        pass


def test_without_agreement_nothing_is_read_sent_or_started(dashboard, described, tmp_path, monkeypatch):
    programs = Programs(tmp_path, dashboard.port)
    monkeypatch.setenv("PATH", on_path(programs))
    for access in ({"kind": "direct", "address": dashboard.url}, KUBECTL):
        file = described(access)
        (tmp_path / "token").unlink()  # reading it would be another error
        assert "give --trust" in refused(Target(cluster=file))
        assert "not agreed to" in refused(Target(cluster=file), lambda _: False)
    assert dashboard.seen == []
    assert not (tmp_path / "calls.jsonl").exists()
    assert trusted_uses() == frozenset()


def test_another_server_another_token_and_another_tunnel_are_asked_anew(dashboard, described, tmp_path, monkeypatch):
    programs = Programs(tmp_path, dashboard.port)
    monkeypatch.setenv("PATH", on_path(programs))
    with connect(Target(cluster=described(KUBECTL), is_trusted=True)):
        pass
    (tmp_path / "mine").write_text(TOKEN)
    others = [
        {"access": {**KUBECTL, "namespace": "theirs"}},
        {"access": {**KUBECTL, "context": "theirs"}},
        {"access": {**KUBECTL, "service": "theirs"}},
        {"access": {**KUBECTL, "port": 1}},
        {"access": {**KUBECTL, "eks_cluster": "theirs"}},
        {"access": {"kind": "direct", "address": dashboard.url}},
        {"access": {"kind": "ssm", "autoscaling_group": "theirs"}},
        {"access": KUBECTL, "token": {"kind": "secrets_manager", "arn": "arn:theirs"}},
        {"access": KUBECTL, "token": {"kind": "file", "path": str(tmp_path / "mine")}},
    ]
    for changes in others:
        access = changes.pop("access")
        assert "give --trust" in refused(Target(cluster=described(access, **changes))), changes
    mine = Target(cluster=described(KUBECTL), token_file=str(tmp_path / "mine"))
    assert "give --trust" in refused(mine), "the token of RAY_AUTH_TOKEN_PATH, for a file of anybody"


@pytest.mark.parametrize("address", ["http://10.0.0.5:8265", "http://ray.example.org", "http://127.0.0.1.evil.org"])
@pytest.mark.parametrize("is_described", [True, False])
def test_no_token_crosses_a_network_unencrypted(described, tmp_path, address, is_described):
    file = described({"kind": "direct", "address": address})
    if is_described:
        target = Target(cluster=file, is_trusted=True)
    else:
        target = Target(address=address, token_file=str(tmp_path / "token"))
    line = refused(target)
    assert "unencrypted" in line
    assert "--insecure" in line
    with pytest.raises(UserError, match="unencrypted"):
        Dashboard(url=address, what="c", token=Secret(TOKEN))
    Dashboard(url=address, what="c", token=Secret(TOKEN), is_insecure=True)
    Dashboard(url=address.replace("http:", "https:"), what="c", token=Secret(TOKEN))
    Dashboard(url=address, what="c")


@given(
    st.sampled_from(["2130706433", "127.1", "0x7f.1", "localhost.evil.org", "127.0.0.1.nip.io", "0", "[::]", "[::2]"])
)
def test_what_only_looks_like_this_machine_is_another(host):
    assert not is_loopback(f"http://{host}:8265")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "[::1]"])
def test_loopback_is_this_machine(host):
    assert is_loopback(f"http://{host}:8265")


@pytest.mark.parametrize("address", ["http://127.0.0.1\\@evil.org", "http://127.0.0.1 .evil.org", "http://\u0435vil.org",
                                     "http://a\x1b]0;x\x07", "http://me:secret@evil.org"])  # fmt: skip
def test_addresses_that_read_as_another_are_refused(described, address):
    line = refused(Target(cluster=described({"kind": "direct", "address": address}), is_trusted=True))
    assert line.startswith("access.address")
    assert line.isprintable()
    assert "secret" not in line


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_carries_no_token_to_another_host(dashboard, status):
    other = ADashboard()
    for path in ("/api/version", "/x"):
        dashboard.routes[path] = lambda: (status, f"{other.url}/api/version")
    with pytest.raises(UserError, match="no dashboard of Ray"):
        Dashboard(url=dashboard.url, what="c", token=Secret(TOKEN)).check()
    assert http_status(f"{dashboard.url}/x", {"Authorization": f"Bearer {TOKEN}"}) == status
    other.close()
    assert other.seen == []


def test_agreements_lie_in_a_file_of_the_user_alone(state_home):
    remember(USE)
    remember(TokenUse(cluster="b", token="c"))
    file = trust_file()
    assert file is not None
    assert file == state_home / "lexray" / "trusted_clusters.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert USE in trusted_uses()
    assert len(trusted_uses()) == 2
    file.chmod(0o666)  # anybody may have written it
    assert trusted_uses() == frozenset()
    file.unlink()
    (state_home / "theirs").write_text(json.dumps([{"cluster": USE.cluster, "token": USE.token}]))
    file.symlink_to(state_home / "theirs")
    assert trusted_uses() == frozenset()


@pytest.mark.parametrize("content", ["", "{", "null", "[1]", '[{"cluster": "a"}]', "[" * 100_000, '{"a": 1}'])
def test_a_damaged_file_of_agreements_is_agreement_to_nothing(content):
    remember(USE)
    file = trust_file()
    assert file is not None
    file.write_text(content)
    with pytest.raises(UserError, match="give --trust"):
        check_trust(USE, is_given=False, ask=None)
    check_trust(USE, is_given=True, ask=None)
    check_trust(USE, is_given=False, ask=None)


def test_who_has_no_place_for_agreements_is_asked_each_time(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    for _ in range(2):
        with pytest.raises(UserError, match="give --trust"):
            check_trust(USE, is_given=False, ask=None)
        check_trust(USE, is_given=True, ask=None)


def test_a_cluster_without_a_token_asks_for_nothing(dashboard, described):
    with connect(Target(cluster=described({"kind": "direct", "address": dashboard.url}, token=None))):
        pass
    assert not any("Authorization" in headers for _, _, headers in dashboard.seen)


@pytest.mark.parametrize("path", ["fifo", "folder", "/dev/zero", "/dev/stdin", "long", "binary", "nul\0name"])
def test_a_token_file_is_a_small_regular_file(tmp_path, path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "long").write_text("x" * 5000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="token file ") as error:
        token_of_file(str(tmp_path / path))
    assert "\n" not in str(error.value)


def test_a_token_file_may_be_a_link_as_secrets_of_kubernetes_are(tmp_path, monkeypatch):
    (tmp_path / "real").write_text(f"{TOKEN}\n")
    (tmp_path / "token").symlink_to(tmp_path / "real")
    assert token_of_file(str(tmp_path / "token")).value == TOKEN
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_of_file("~/token").value == TOKEN


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("access.kubectl.namespace", {"access": {**KUBECTL, "namespace": "--server=http://evil"}}),
        ("access.kubectl.service", {"access": {**KUBECTL, "service": "a b"}}),
        ("access.kubectl.context", {"access": {**KUBECTL, "context": "--server=http://evil"}}),
        ("access.kubectl.eks_cluster", {"access": {**KUBECTL, "eks_cluster": "--endpoint-url=http://evil"}}),
        ("access.kubectl.port", {"access": {**KUBECTL, "port": 0}}),
        ("token.kubernetes_secret.name", {"token": {"kind": "kubernetes_secret", "name": "--server=http://evil"}}),
        ("token.kubernetes_secret.key", {"token": {"kind": "kubernetes_secret", "name": "a", "key": "a}{.data"}}),
        ("region", {"region": "--endpoint-url=http://evil"}),
    ],
)
def test_no_field_of_a_description_is_an_option_of_kubectl_or_aws(field, changes):
    content = {"schema": 1, "name": "sae", "provider": "ray", "access": KUBECTL, **changes}
    with pytest.raises(UserError, match=field.split(".")[-1]):
        checked_content("cluster.json", content, ClusterDescription)


def test_the_far_end_of_a_tunnel_is_what_is_agreed_to():
    content = {"schema": 1, "name": "sae", "provider": "ray", "access": {**KUBECTL, "eks_cluster": "prod"},
               "region": "eu-north-1", "token": {"kind": "kubernetes_secret", "name": "auth"}}  # fmt: skip
    use = token_use(ClusterDescription.model_validate(content), None, None)
    assert str(use) == (
        "Kubernetes secret auth, key auth_token would be sent to port 8265 of service sae-head-svc in namespace sae, "
        "EKS cluster prod in eu-north-1"
    )


def test_commands_take_both_flags(lexray, dashboard, described, tmp_path):
    file = described({"kind": "direct", "address": dashboard.url})
    dashboard.routes["/api/jobs/"] = lambda: (200, "[]")
    code, out, err = lexray("list", "--cluster", file)
    assert (code, out) == (2, "")
    assert "give --trust" in err
    assert lexray("list", "--cluster", file, "--trust")[0] == 0
    assert lexray("list", "--cluster", file)[0] == 0
    where = ("--address", "http://192.0.2.1:1", "--token-file", tmp_path / "token")
    assert "--insecure" in lexray("list", *where)[2]
    assert Path(file).exists()
