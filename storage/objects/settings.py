"""Connection settings of a store, the only part of it that crosses a process boundary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, JsonValue
from pydantic_core import CoreSchema, core_schema

from lexray.storage.errors import UserError, as_user_error
from lexray.storage.file_settings import MAX_SECONDS, FileSettings
from lexray.storage.objects.options import check_options, check_transport, is_insecure_allowed
from lexray.storage.objects.retries import RetryPolicy
from lexray.storage.synthetic_url import SCHEME

REQUESTS_IN_FLIGHT = 32
"""Maximum calls in flight in a process, over all stores."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
"""Read timeout of a response in seconds."""
S3 = ("s3", "s3a")
_SECRETS = {
    "secret", "password", "client_secret", "account_key", "sas_token", "connection_string",
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
}  # fmt: skip
_S3_SECRETS = _SECRETS | {"key", "token", "username"}


class _JsonObject:
    """Annotates text that is a JSON object, and is written in a file as a mapping."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        mapping = core_schema.no_info_before_validator_function(_parsed, handler.generate_schema(dict[str, JsonValue]))
        written = core_schema.plain_serializer_function_ser_schema(json.loads)
        return core_schema.no_info_after_validator_function(
            partial(json.dumps, sort_keys=True), mapping, serialization=written
        )


def _parsed(options: Any) -> Any:
    """Return the object that text holds; a mapping as it is."""
    if not isinstance(options, str):
        return options
    try:
        found = json.loads(options)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"must be an object of options, got {options[:40]!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class StorageSettings(FileSettings):
    """Connection settings of an object store, without credentials: these come from the provider's refreshable chain."""

    endpoint_url: str | None = None
    """Address of an S3-compatible server; None is AWS."""
    region: str | None = None
    """Region of the store's buckets; null leaves it to the provider's own configuration."""
    profile: str | None = None
    """Name of a credentials profile."""
    anonymous: bool = False
    """Send requests without credentials, as public buckets allow."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Whether a bucket's name is part of the path or of the host name."""
    options: Annotated[str, _JsonObject] = "{}"
    """Further arguments for the filesystem of the url's scheme, see `lexray.storage.objects.options`; kept as JSON."""
    retry_budget_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    """Seconds for which a failing call is retried; None is the default of `RetryPolicy`, 0 never retries."""

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy() if self.retry_budget_s is None else RetryPolicy(budget_s=self.retry_budget_s)

    def arguments(self, scheme: str) -> dict[str, Any]:
        """Return the arguments of the scheme's filesystem. Raises UserError for options that a file may not set."""
        if scheme in ("file", SCHEME):
            return {}  # options belong to the other store of a sweep
        with as_user_error(lambda error: f"storage.options: {error}", ValueError):
            options = _parsed(self.options)
        _refuse_secrets(options, _S3_SECRETS if scheme in S3 else _SECRETS)
        check_options(options, scheme, insecure=is_insecure_allowed())
        return _merged(self.s3_options(), options) if scheme in S3 else options

    def check(self, scheme: str, url: str) -> None:
        """Raise UserError for settings (perhaps of a file) that must not be used to reach `url`."""
        self.arguments(scheme)
        check_transport(scheme, url, self.endpoint_url, insecure=is_insecure_allowed())

    def s3_options(self) -> dict[str, Any]:
        """Return the arguments of `s3fs.S3FileSystem`."""
        client = {k: v for k, v in (("endpoint_url", self.endpoint_url), ("region_name", self.region)) if v}
        config: dict[str, Any] = {
            "retries": {"total_max_attempts": 1, "mode": "standard"},  # only lexray retries, and counts
            "max_pool_connections": REQUESTS_IN_FLIGHT,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            # Many S3-compatible servers lack the checksums that newer clients request; lexray has its own.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        if self.addressing_style != "auto":
            config["s3"] = {"addressing_style": self.addressing_style}
        options: dict[str, Any] = {"client_kwargs": client, "config_kwargs": config, "use_listings_cache": False}
        if self.profile:
            options["profile"] = self.profile
        if self.anonymous:
            options["anon"] = True
        return options


def _refuse_secrets(options: dict[str, Any], secrets: set[str], place: str = "storage.options") -> None:
    for name, value in options.items():
        if name in secrets:
            raise UserError(
                f"{place}.{name}: credentials do not belong here; lexray takes them from the provider's chain"
            )
        if isinstance(value, dict):
            _refuse_secrets(value, secrets, f"{place}.{name}")


def _merged(ours: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Merge the options over the defaults, recursively."""
    nested = {name: _merged(ours[name], value) for name, value in options.items() if isinstance(ours.get(name), dict)}
    return ours | options | nested
