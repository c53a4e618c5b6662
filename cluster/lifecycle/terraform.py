"""Runs Terraform in a root's folder: parses its output lines, plans and state, and applies a plan before the user."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.lifecycle.terraform_plan import counted, counts
from lexray.cluster.provisioned.errors import RefusedError
from lexray.cluster.provisioned.programs import missing
from lexray.storage.errors import UserError, last_line

Line = dict[str, Any]
"""A line of Terraform's `-json` output."""
PROGRAM = "terraform"
OF_VARIABLES = ("variable", "input")
"""Words in the summary of an error in a variable; such errors are reported first."""
SHOWN = ("apply_progress", "apply_complete", "apply_errored")
"""Kinds of Terraform's lines that are shown, in its own words."""
UNDECLARED = "Value for undeclared variable"
"""Terraform only warns of this and uses the default of the misspelled variable."""


@dataclass(frozen=True, kw_only=True)
class Terraform:
    """Terraform in `folder`; every failure is a one-line error."""

    folder: Path
    var_file: Path | None = None
    """File with further values of variables."""
    start: Callable[..., subprocess.Popen[str]] = field(default=subprocess.Popen, repr=False)
    """Starts a program."""

    def check(self) -> None:
        """Raise UserError if the folder holds no Terraform files."""
        if not any(self.folder.glob("*.tf")):
            raise UserError(
                f"{self.folder}: no Terraform files and no hosts.yaml there; give infra/aws-ec2 or a copy of it, or "
                "write the hosts.yaml of infra/ssh"
            )
        if self.var_file is not None and not self.var_file.is_file():
            raise UserError(f"--var-file {self.var_file}: no such file")

    def init(self) -> None:
        """Install providers and initialize the backend."""
        self.output("init", "-input=false", "-no-color")

    def plan(self, file: Path, *options: str) -> dict[str, Any]:
        """Save a plan to `file` and return its JSON form. Raises UserError naming the variable or the error."""
        given = [] if self.var_file is None else [f"-var-file={self.var_file.resolve()}"]
        found: list[Line] = []
        code = self.follow(("plan", "-json", "-input=false", f"-out={file}", *given, *options), found.append)
        wrong = diagnoses(found)
        if code or any(line["summary"] == UNDECLARED for line in wrong):
            raise UserError(one_line(wrong, self.folder) if wrong else f"terraform plan: exit code {code}")
        shown: dict[str, Any] = json.loads(self.output("show", "-json", str(file)))
        return shown

    def apply(self, file: Path, on_line: Callable[[Line], None]) -> None:
        """Apply a saved plan. Raises RefusedError with the error; the plan may be partly applied by then."""
        found: list[Line] = []

        def keep(line: Line) -> None:
            if line.get("type") == "diagnostic":
                found.append(line)
            on_line(line)

        code = self.follow(("apply", "-json", "-input=false", str(file)), keep)
        if code:
            wrong = diagnoses(found)
            raise RefusedError(one_line(wrong, self.folder) if wrong else f"terraform apply: exit code {code}")

    def outputs(self) -> dict[str, Any]:
        """Return the outputs by name; empty if nothing is applied."""
        return {name: entry["value"] for name, entry in json.loads(self.output("output", "-json")).items()}

    def state(self) -> list[str]:
        """Return the types of the managed resources in the state, one entry for each resource."""
        return managed((json.loads(self.output("show", "-json")).get("values") or {}).get("root_module", {}))

    def output(self, *arguments: str) -> str:
        """Return the stdout of a call. Raises UserError with the last line of its error."""
        with self._started(arguments) as (process, complaints):
            printed, _ = process.communicate()
            complaints.seek(0)
            said = complaints.read()
        if process.returncode:
            raise UserError(f"terraform {arguments[0]} in {self.folder}: {complaint(said)}")
        return printed

    def follow(self, arguments: Sequence[str], on_line: Callable[[Line], None]) -> int:
        """Pass on each output line as it arrives; return the exit code. An interrupt waits until Terraform has saved
        its state.
        """
        with self._started(arguments) as (process, complaints):
            for line in _parsed(process.stdout):
                on_line(line)
            process.wait()
            complaints.seek(0)
            said = complaints.read()
        if process.returncode and said.strip():
            on_line({"type": "diagnostic", "diagnostic": {"severity": "error", "summary": complaint(said)}})
        return process.returncode

    @contextmanager
    def _started(self, arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
        command = [PROGRAM, f"-chdir={self.folder}", *arguments]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
            try:
                process = self.start(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,  # else the terminal interrupts it, too, and twice makes it drop its state
                )
            except FileNotFoundError as error:
                raise missing(PROGRAM) from error
            try:
                yield process, complaints
            except BaseException:
                _ended(process)
                raise


def diagnoses(lines: Sequence[Line]) -> list[Line]:
    """Return errors and warnings of undeclared variables; those about variables first."""
    found = [line["diagnostic"] for line in lines if line.get("type") == "diagnostic"]
    wrong = [one for one in found if one.get("severity") == "error" or one.get("summary") == UNDECLARED]
    return sorted(wrong, key=lambda one: not any(word in one["summary"] for word in OF_VARIABLES))


def one_line(wrong: Sequence[Line], folder: Path) -> str:
    """Return the first error for the user, and the number of others."""
    said = list(dict.fromkeys(_said(one, folder) for one in wrong))
    return said[0] + (f" (and {len(said) - 1} more)" if len(said) > 1 else "")


def _said(one: Line, folder: Path) -> str:
    summary, detail = one["summary"], " ".join((one.get("detail") or "").split("\n\n")[0].split())
    if summary == "No value for required variable":
        name = detail.split('"')[1]
        return f"{name}: not set; set it in {folder / 'terraform.tfvars'}, or give --var-file FILE"
    if summary in ("Invalid value for variable", "Resource precondition failed") and detail:
        return detail
    if summary == UNDECLARED and detail:
        name = detail.split('"')[1]
        return f"{name}: no variable of {folder} has this name; look for the right one in {folder / 'variables.tf'}"
    where = f"{one['address']}: " if one.get("address") else ""
    return f"{where}{summary}" + (f": {detail}" if detail else "")


def managed(module: dict[str, Any]) -> list[str]:
    """Return the types of managed resources in a module of a state and its children; data sources are left out."""
    own = [thing["type"] for thing in module.get("resources", []) if thing["mode"] == "managed"]
    return own + [type_ for child in module.get("child_modules", []) for type_ in managed(child)]


def complaint(text: str) -> str:
    """Extract the text after `Error:` from Terraform's human-readable output, as one line."""
    words = " ".join(text.replace("\u2502", " ").replace("\u2577", " ").replace("\u2575", " ").split())
    _, mark, error = words.partition("Error: ")
    return error[:600] if mark else last_line(text)


def _parsed(lines: IO[str] | None) -> Iterator[Line]:
    assert lines is not None
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a provider's plain output between Terraform's lines
        if isinstance(line, dict):
            yield line


def _ended(process: subprocess.Popen[str]) -> None:
    """Interrupt Terraform once and wait: it finishes its current operation and saves its state."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    if process.stdout is not None:
        for _ in process.stdout:  # drain the pipe, so that it cannot block on output
            pass
    process.wait()


def carry_out(terraform: Terraform, saved: Path, advice: str, messages: Console) -> None:
    """Apply a saved plan. Raises RefusedError when it fails, after saying what is there and `advice`."""

    def show(line: Line) -> None:
        if line.get("type") in SHOWN:
            say(messages, str(line.get("@message", "")))

    try:
        terraform.apply(saved, show)
    except (RefusedError, KeyboardInterrupt):
        types = terraform.state()
        say(messages, f"there now, and some of it costs money: {sum(counts(types).values())}: {counted(types)}")
        say(messages, advice)
        raise


def refuse_unasked(command: str, does: str) -> UserError:
    """No terminal, and no word that none is needed."""
    return UserError(f"--yes: lexray {command} asks before it {does} anything, and there is no terminal; add --yes")
