"""Whether W&B would take runs from here."""

from __future__ import annotations

import base64
import json
import netrc
import os
from urllib.parse import urlsplit

from lexray.cluster.doctor.dashboard import http_status
from lexray.cluster.doctor.findings import Unknown, WandbFacts

PUBLIC_HOST = "https://api.wandb.ai"
_QUERY = json.dumps({"query": "query Viewer { viewer { username } }"}).encode()


def look_at_wandb(mode: str) -> WandbFacts:
    """The key that runs would use, and what the host says to it; nobody is asked where no run would go online."""
    host = os.environ.get("WANDB_BASE_URL", PUBLIC_HOST).rstrip("/")
    has_key = mode in ("auto", "online") and _has_key()
    status = _ask(host) if has_key else Unknown("not asked", is_asked=False)
    return WandbFacts(mode=mode, has_key=has_key, host=host, status=status)


def _has_key() -> bool:
    from lexray.tuning.views.wandb_runs import has_key  # W&B's client is slow to import

    return has_key()


def _ask(host: str) -> int | Unknown:
    secret = base64.b64encode(f"api:{_key(urlsplit(host).hostname or host)}".encode()).decode()
    headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json", "User-Agent": "lexray"}
    return http_status(f"{host}/graphql", headers, data=_QUERY, proxies=None)


def _key(host: str) -> str:
    """The environment's key, else that of `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    entry = netrc.netrc().authenticators(host)
    return entry[2] if entry is not None else ""
