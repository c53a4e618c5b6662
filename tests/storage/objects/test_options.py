"""What a file may set of a store: nothing that runs, reaches elsewhere or weakens TLS without leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lexray.storage.errors import UserError
from lexray.storage.objects.options import INSECURE, SCHEMES, insecure_env, is_loopback
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

SAFE = (
    ("s3", {"requester_pays": True}),
    ("s3a", {"config_kwargs": {"read_timeout": 60, "s3": {"addressing_style": "path"}}}),
    ("s3", {"s3_additional_kwargs": {"ServerSideEncryption": "AES256", "ACL": "bucket-owner-full-control"}}),
    ("s3", {"config_kwargs": {"signature_version": "s3"}}),
    ("gs", {"project": "p", "token": "anon"}),
    ("abfs", {"account_name": "a"}),
    ("hdfs", {"host": "namenode", "port": 8020, "user": "u"}),
    ("memory", {}),
)
UNSAFE = (
    ("s3", {"client_kwargs": {"verify": False}}, "client_kwargs.verify"),
    ("s3", {"client_kwargs": {"verify": "/tmp/mine.pem"}}, "client_kwargs.verify"),
    ("s3", {"client_kwargs": {"endpoint_url": "http://198.51.100.7"}}, "client_kwargs.endpoint_url"),
    ("s3", {"verify": False}, "verify"),
    ("s3", {"use_ssl": False}, "use_ssl"),
    ("s3", {"endpoint_url": "http://198.51.100.7"}, "endpoint_url"),
    ("s3", {"anon": True}, "anon"),
    ("s3", {"profile": "admin"}, "profile"),
    ("s3", {"session": "x"}, "session"),
    ("s3", {"version_aware": True}, "version_aware"),
    ("s3", {"config_kwargs": {"proxies": {"https": "http://198.51.100.7"}}}, "config_kwargs.proxies"),
    ("s3", {"config_kwargs": {"proxies_config": {"proxy_ca_bundle": "x"}}}, "config_kwargs.proxies_config"),
    ("s3", {"config_kwargs": {"client_cert": "/etc/shadow"}}, "config_kwargs.client_cert"),
    ("s3", {"config_kwargs": {"retries": {"total_max_attempts": 9}}}, "config_kwargs.retries"),
    ("s3", {"config_kwargs": {"signature_version": "bearer"}}, "config_kwargs.signature_version"),
    ("s3", {"config_kwargs": 5}, "config_kwargs"),
    ("s3", {"requester_pays": {"a": 1}}, "requester_pays"),
    ("s3", {"s3_additional_kwargs": {"ACL": "public-read"}}, "s3_additional_kwargs.ACL"),
    ("s3", {"s3_additional_kwargs": {"GrantRead": "uri=x"}}, "s3_additional_kwargs.GrantRead"),
    ("s3", {"asynchronous": True}, "asynchronous"),
    ("s3", {"requester_pay": True}, "requester_pay"),
    ("gs", {"token": "/home/victim/key.json"}, "token"),
    ("gs", {"endpoint_url": "http://198.51.100.7"}, "endpoint_url"),
    ("gs", {"session_kwargs": {"proxy": "http://198.51.100.7"}}, "session_kwargs"),
    ("abfs", {"account_host": "198.51.100.7"}, "account_host"),
    ("abfs", {"account_name": "198.51.100.7/#"}, "account_name"),
    ("oci", {"region": "example.org/"}, "region"),
    ("adl", {"store_name": ["x"]}, "store_name"),
    ("s3", {"s3_additional_kwargs": {"ACL": ["private"]}}, "s3_additional_kwargs.ACL"),
    ("hdfs", {"kerb_ticket": "/tmp/krb5cc_0"}, "kerb_ticket"),
    ("hdfs", {"extra_conf": {"a": "b"}}, "extra_conf"),
    ("hf", {"endpoint": "http://198.51.100.7"}, "endpoint"),
    ("memory", {"fo": "x"}, "fo"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INSECURE, raising=False)


def refusal(url: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        Store.at(url, StorageSettings(**settings))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(("scheme", "options"), SAFE)
def test_harmless_options_are_passed_on(scheme: str, options: dict[str, Any]) -> None:
    settings = StorageSettings(options=json.dumps(options))
    Store.at(f"{scheme}://bucket/folder", settings)
    for name, value in options.items():
        found = settings.arguments(scheme)[name]
        assert found == value or found.items() >= value.items()


@pytest.mark.parametrize(("scheme", "options", "field"), UNSAFE)
def test_other_options_are_refused_by_name_before_anything_is_reached(
    scheme: str, options: dict[str, Any], field: str
) -> None:
    assert refusal(f"{scheme}://bucket/folder", options=json.dumps(options)).startswith(f"storage.options.{field}: ")


@pytest.mark.parametrize("options", ["", "[]", "5", "null", "{", "[" * 100_000])
def test_options_that_are_no_object_are_refused(options: str) -> None:
    assert refusal("s3://bucket", options=options).startswith("storage.options: must be an object")


def test_what_weakens_tls_needs_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = json.dumps({"client_kwargs": {"verify": False}})
    assert "set storage.endpoint_url" in refusal("s3://bucket", options='{"endpoint_url": "https://x"}')
    assert INSECURE in refusal("s3://bucket", options='{"use_ssl": false}')
    assert INSECURE in refusal("s3://bucket", options=options)
    assert insecure_env() == {}
    for value in ("0", "true", ""):
        monkeypatch.setenv(INSECURE, value)
        assert INSECURE in refusal("s3://bucket", options=options)
    monkeypatch.setenv(INSECURE, "1")
    assert StorageSettings(options=options).arguments("s3")["client_kwargs"]["verify"] is False
    assert insecure_env() == {INSECURE: "1"}
    Store.at("s3://bucket", StorageSettings(options=options, endpoint_url="http://minio:9000"))
    Store.at("sftp://folder", StorageSettings(options='{"host": "h"}'))
    assert "proxies" in refusal("s3://bucket", options='{"config_kwargs": {"proxies": {}}}'), "this is not about TLS"


@pytest.mark.parametrize(
    "endpoint", ["http://minio:9000", "http://198.51.100.7", "http://169.254.169.254/", "http://127.0.0.1.example.org",
                 "http://localhost.example.org", "http://[2001:db8::1]:9000", "HTTP://minio"]
)  # fmt: skip
def test_plain_http_to_another_machine_is_refused(endpoint: str) -> None:
    assert refusal("s3://bucket", endpoint_url=endpoint).endswith(
        f"is not encrypted; use https, or set {INSECURE}=1 in the environment to allow plain http"
    )


@pytest.mark.parametrize(
    "endpoint", ["https://minio:9000", "http://127.0.0.1:5000", "http://localhost:9000", "http://[::1]:9000"]
)
def test_https_and_this_machine_are_not(endpoint: str) -> None:
    Store.at("s3://bucket", StorageSettings(endpoint_url=endpoint))
    assert StorageSettings(endpoint_url=endpoint).endpoint_url == endpoint


@pytest.mark.parametrize(
    "endpoint", ["", "minio:9000", "file:///etc", "https://", "https://a:b@host", "https://host?x=1", "https://h\n",
                 "http://host:99999", "https://[::1", "ftp://host", "https://ho st"]
)  # fmt: skip
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    assert refusal("s3://bucket", endpoint_url=endpoint).startswith(f"storage.endpoint_url: {endpoint!r} ")


def test_unencrypted_schemes_need_the_environment_too() -> None:
    assert "is not encrypted" in refusal("http://198.51.100.7/corpus.jsonl")
    assert "does not verify the host's key" in refusal("sftp://folder", options='{"host": "h"}')
    Store.at("http://127.0.0.1:8000/corpus.jsonl")
    Store.at("https://example.org/corpus.jsonl")


def test_no_scheme_wraps_another_or_runs_something() -> None:
    for scheme in sorted(set(fsspec.available_protocols()) - set(SCHEMES)):
        assert f"no storage scheme is called {scheme!r}" in refusal(f"{scheme}://x/y")
    assert {"github", "ssh", "zip", "dir", "reference", "simplecache", "local", "ftp", "git"}.isdisjoint(SCHEMES)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3:/x", "two slashes must follow 's3:'; write 's3://x'"),
        ("s3:x/y", "two slashes must follow 's3:'; write 's3://x/y'"),
        ("S3:/x", "two slashes must follow 'S3:'; write 's3://x'"),
        ("file:/x", "two slashes must follow 'file:'; write 'file:///x'"),
        ("gs:/x", "two slashes must follow 'gs:'; write 'gs://x'"),
        ("s3://", "names no bucket; write s3://NAME/FOLDER"),
        ("s3:///", "names no bucket"),
        ("s3:///x", "'' cannot be the name of a bucket"),
        ("gs://", "names no place"),
        ("S3://x", "schemes are written in lower case; write s3://"),
        ("s3://a*b/x", "'a*b' cannot be the name of a bucket"),
        ("s3://b/a//b", "empty folder name"),
        ("s3://b/../x", "holds '..'"),
        ("s3://b/x/./y", "holds '.'"),
        ("s3://b/x?versionId=1", "would be cut off"),
        ("s3://b/x\ny", "holds the character '\\n'"),
        ("/tmp/x\ny", "holds the character '\\n'"),
        ("/tmp/\udc80", "holds the character '\\udc80'"),
        ("/tmp/\x1b]0;x", "holds the character '\\x1b'"),
        ("/", "is the root of the file system"),
        ("simplecache::s3://b/x", "chained urls"),
        ("filecache::simplecache::http://b/x", "chained urls"),
        ("zip://x.zip::s3://b", "no storage scheme is called 'zip'"),
        ("gs://b/x::file:///etc", "empty folder name"),
        ("gs://b/x::y", "holds '::', which gs:// may expand"),
        ("gs://b/x#1", "holds '#'"),
    ],
)
def test_a_url_that_names_no_one_place_is_refused_in_one_line(url: str, said: str) -> None:
    message = refusal(url)
    assert message.startswith(f"url {url!r}: ")
    assert said in message


@pytest.mark.parametrize("path", ["s3x:/y", "a:b", "./s3:/x", "s3", "c:/x", "-rf", "a b", "%2e", "a#b", "~x", "x::y"])
def test_local_names_that_look_like_urls_are_local(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store.at(path).write("file", b"x")
    assert (tmp_path / path / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("host", "here"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("", False),
                       ("10.0.0.1", False), ("0x7f000001", False), ("localhost.evil.org", False)]
)  # fmt: skip
def test_which_hosts_are_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) is here
