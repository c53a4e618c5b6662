"""Fuzz one reader in a process of its own: `python run.py READER SEED SECONDS FOLDER`.

Prints one JSON object: how many cases were tried and how many refused. Exits with 1, and says which case, at the first
that ends in anything but a value or a one-line refusal, takes more than `MAX_CASE_S` of processor time, or more than
`MAX_BYTES` of memory. The document stays in FOLDER.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from random import Random

from readers import READERS, Reader

from lexray.storage.errors import CorruptDataError, UserError

MAX_CASE_S = 5
MAX_BYTES = 2 * 2**30
"""Above what the process has mapped before the first case."""
MAX_LINE_CHARACTERS = 2000


class TooSlowError(BaseException):
    """No reader may catch it."""


def main(name: str, seed: int, seconds: float, folder: Path) -> None:
    warnings.simplefilter("ignore")
    reader = READERS[name](folder)
    valid = reader.file.read_bytes()
    reader.read(0)  # the sample itself is accepted
    signal.signal(signal.SIGPROF, too_slow)
    limit_memory()
    began, cases, refused = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        cases += 1
        document = reader.mutate(valid, Random(f"{name} {seed} {cases}"))
        reader.file.write_bytes(reader.finish(document))
        refused += not is_accepted(reader, cases)
    print(json.dumps({"reader": name, "cases": cases, "refused": refused}))


def is_accepted(reader: Reader, case: int) -> bool:
    """Whether the document is read; False when it is refused in one line. Exits otherwise."""
    signal.setitimer(signal.ITIMER_PROF, MAX_CASE_S)
    try:
        reader.read(case)
    except (UserError, CorruptDataError) as error:
        if not str(error).strip() or len(str(error)) > MAX_LINE_CHARACTERS:
            found(reader, case, f"a refusal of {len(str(error))} characters: {str(error)[:200]}")
        return False
    except BaseException:
        signal.setitimer(signal.ITIMER_PROF, 0)
        found(reader, case, traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return True


def found(reader: Reader, case: int, what: str) -> None:
    print(f"case {case}, {reader.file}:\n{reader.file.read_bytes()[:2000]!r}\n{what}", file=sys.stderr)
    sys.exit(1)


def too_slow(*_: object) -> None:
    raise TooSlowError(f"more than {MAX_CASE_S} s of processor time")


def limit_memory() -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_BYTES,) * 2)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
