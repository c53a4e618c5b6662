"""A home folder and a user name for accounts that have none, as in containers that run under a bare user id.

Ray, torch and W&B look up both when they are imported, and fail without.
"""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from pathlib import Path

CACHES = {
    "WANDB_CACHE_DIR": "wandb-cache",
    "WANDB_DATA_DIR": "wandb-data",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
}
"""Variables of libraries that write below HOME and complain where they cannot; by folder of ours."""


def ensure_home() -> str:
    """Set HOME and LOGNAME where the system knows neither, and other caches where HOME cannot be written.

    Returns one line that says so, empty where all is well.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.geteuid()}"
    try:
        home = Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_own_folder())
        return (
            f"HOME is not set and user id {os.geteuid()} has no entry in the password file; caches go to "
            f"{os.environ['HOME']}; set HOME to a folder of yours"
        )
    missing = {name: folder for name, folder in CACHES.items() if name not in os.environ}
    if not missing or _can_write(home):
        return ""
    own = _own_folder()
    os.environ.update({name: str(own / folder) for name, folder in missing.items()})
    return f"HOME ({home}) cannot be written; caches of libraries go to {own}; set HOME to a folder of yours"


def _can_write(folder: Path) -> bool:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _own_folder() -> Path:
    """Return a folder that only this user can enter: that of earlier commands, else a new one."""
    kept = Path(tempfile.gettempdir()) / f"lexray-home-{os.geteuid()}"
    try:
        kept.mkdir(mode=0o700)
    except FileExistsError:
        found = kept.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        return kept if is_ours else Path(tempfile.mkdtemp(prefix="lexray-home-"))
    return kept
