"""Credentials that live for minutes are fetched shortly before they end, not with every request.

botocore fetches new ones from 15 minutes before the end of the old on, and lets requests wait for them from 10 minutes
on. Credentials with a shorter life would be fetched anew for each request: with 60-second ones of a
`credential_process`, 8 small reads a second were seen, and 99 with the shares below.
"""

from __future__ import annotations

import datetime
from typing import Any

ADVISORY_SHARE, MANDATORY_SHARE = 1 / 4, 1 / 8
"""Parts of a life before whose end new credentials are fetched, and waited for."""


async def of_session(session: Any) -> None:
    """The same for an asynchronous session's credentials, if it has any."""
    credentials = await session.get_credentials()
    if credentials is not None:
        await credentials.get_frozen_credentials()  # those of an assumed role have no end before their first use
        fetch_late(credentials)


def fetch_late(credentials: Any) -> None:
    """Make refreshable credentials that were just fetched wait for the last quarter of their life; others stay."""
    expires = getattr(credentials, "_expiry_time", None)
    if expires is None:
        return
    life_s = max(0.0, (expires - datetime.datetime.now(datetime.UTC)).total_seconds())
    for name, share in (("_advisory_refresh_timeout", ADVISORY_SHARE), ("_mandatory_refresh_timeout", MANDATORY_SHARE)):
        setattr(credentials, name, min(getattr(credentials, name), life_s * share))
