"""What an instance has and a network namespace lacks: metadata, systemd, Docker, and AWS's command line.

Each stand-in does what the boot needs of it. `systemctl` runs the units' own commands and restarts them as the units
say, `docker` runs in the namespace what it would run in a container, `aws` makes the same calls by botocore.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import rendered
from namespaces import RAY, Machines
from node_scripts import with_small_store

METADATA = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

KNOWN = {"/latest/meta-data/instance-id": sys.argv[1], "/latest/meta-data/local-ipv4": sys.argv[2]}
class Metadata(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.tell("a token")
    def do_GET(self):
        self.tell(KNOWN.get(self.path) if self.headers.get("X-aws-ec2-metadata-token") == "a token" else None)
    def tell(self, text):
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

HTTPServer(("169.254.169.254", 80), Metadata).serve_forever()
"""
SYSTEMCTL = """#!{python}
import re, shlex, subprocess, sys, time
from pathlib import Path

def settings(unit):
    text = Path("{home}/units", unit).read_text().replace("\\\\\\n", " ")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))

def supervise(unit):
    given = settings(unit)
    with open("{home}/units.log", "a", buffering=1) as log:
        while True:
            name = given.get("StandardOutput", "append:{home}/" + unit + ".log").removeprefix("append:")
            with open(name, "a") as out:
                code = subprocess.run(shlex.split(given["ExecStart"]), stdout=out, stderr=out).returncode
            print(unit, "ended with", code, file=log)
            restart = given.get("Restart", "no")
            if restart != "always" and not (restart == "on-failure" and code):
                break
            time.sleep(float(given.get("RestartSec", "0.1")))
        if "ExecStopPost" in given:
            subprocess.run(shlex.split(given["ExecStopPost"]))

command, *words = sys.argv[1:]
unit = words[-1] if words else ""
if command == "supervise":
    supervise(unit)
elif command == "start" or "--now" in words:
    subprocess.Popen([sys.executable, __file__, "supervise", unit], start_new_session=True)
"""
DOCKER = """#!/bin/bash
case "$1" in
  login) cat > /dev/null ;;
  pull) exec curl -sS -m 5 -o /dev/null "$AWS_ENDPOINT_URL" ;;
  run)
    while [ "$1" != --env-file ]; do shift; done
    exec env $(cat "$2") bash "${{@: -1}}" ;;
  *) exit 64 ;;
esac
"""
AWS = """#!{python}
import json, sys
import botocore.session, jmespath

service, command, *words = sys.argv[1:]
given = {{}}
while words:
    option = words.pop(0).removeprefix("--").replace("-", "")
    given[option] = words.pop(0) if words and not words[0].startswith("--") else True
client = botocore.session.Session().create_client(service)
query, output = given.pop("query", "@"), given.pop("output", "json")
if command == "get-login-password":
    print(client.get_authorization_token()["authorizationData"][0]["authorizationToken"])
    raise SystemExit
operation = command.replace("-", "_")
shape = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation]).input_shape
values = {{}}
for name, member in shape.members.items():
    value = given.pop(name.lower(), None)
    if isinstance(value, str) and value.startswith("file://"):
        value = open(value.removeprefix("file://")).read()
    if value is not None:
        values[name] = json.loads(value) if member.type_name == "list" else value
assert not given, given
try:
    answer = jmespath.search(query, getattr(client, operation)(**values))
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
print(answer if output == "text" else json.dumps(answer, default=str))
"""


class Instance:
    """A network namespace that runs a node's user data as cloud-init does."""

    def __init__(self, hosts: Machines, name: str, instance: str, endpoint: str) -> None:
        self.hosts, self.name, self.home = hosts, name, hosts.place / name
        address = hosts.machine(name)
        for folder in ("bin", "units"):
            (self.home / folder).mkdir(parents=True)
        temp = hosts.temp / name
        temp.mkdir()
        for program, text in {
            "systemctl": SYSTEMCTL.format(python=sys.executable, home=self.home),
            "docker": DOCKER.format(),
            "aws": AWS.format(python=sys.executable),
            "shutdown": f'#!/bin/bash\necho "$*" >> {self.home}/shutdown.log\n',
            "systemd-run": f'#!/bin/bash\necho "$*" >> {self.home}/timers.log\n',
            "ray": f'#!/bin/bash\nexec {RAY} "$1" --temp-dir={temp} "${{@:2}}"\n',
        }.items():
            self._write(self.home / "bin" / program, text)
        self.env = {
            "PATH": f"{self.home}/bin:{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin",
            "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1", "RAY_prestart_worker_first_driver": "0",
        }  # fmt: skip
        assert hosts.run(name, ["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"]).wait() == 0
        hosts.run(name, [sys.executable, "-c", METADATA, instance, address])

    def moved(self, text: str) -> str:
        """The same script with this instance's folders, and secrets by their names."""
        places = {"/etc/lexray": "etc", "/mnt/lexray": "mnt", "/etc/systemd/system": "units"}
        for path, place in (places | {"/var/log/lexray-boot.log": "boot.log"}).items():
            text = text.replace(path, f"{self.home}/{place}")
        text = text.replace("/usr/bin/docker", f"{self.home}/bin/docker").replace("/usr/sbin/shutdown", "shutdown")
        text = with_small_store(text)
        return re.sub(r"arn:aws:secretsmanager:[^']*:secret:(/lexray/lexray/[a-z-]+)-000000", r"\1", text)

    def boot(self, script: str) -> None:
        """Run user data to its end, which does not wait for the boot."""
        file = self.home / "user-data"
        self._write(file, self.moved(rendered.read(script)))
        assert self.hosts.run(self.name, [str(file)], **self.env).wait(60) == 0, self.log("boot.log")

    def log(self, name: str) -> str:
        """Return what was written to a log so far."""
        file = self.home / name
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def _write(self, file: Path, text: str) -> None:
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)
