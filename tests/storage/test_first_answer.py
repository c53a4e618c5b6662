"""A server that is not there is given up early by whoever starts a command; one that is there is waited for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError

from lexray.storage.objects.first_answer import NoAnswerError, answers_within, first_answer
from lexray.storage.objects.retries import StoreUnavailableError
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

NUMBERS = count()


@pytest.fixture
def store() -> str:
    """One that this process never asked."""
    return f"store {next(NUMBERS)}"


def raising(error: Exception) -> Callable[[], str]:
    def action() -> str:
        raise error

    return action


def test_a_server_that_is_not_there_is_given_up_before_the_budget_is_spent() -> None:
    nowhere = Store.at("s3://bucket/folder", StorageSettings(endpoint_url="http://127.0.0.1:1"))
    assert nowhere.settings.policy.budget_s > 60
    with answers_within(0.3), pytest.raises(NoAnswerError, match="s3://bucket/folder/file: given up after"):
        nowhere.read("file")


def test_a_budget_that_is_smaller_still_holds() -> None:
    settings = StorageSettings(endpoint_url="http://127.0.0.1:1", retry_budget_s=0)
    with answers_within(1000), pytest.raises(NoAnswerError, match="given up after 1 attempt in 0 s"):
        Store.at("s3://bucket/folder", settings).read("file")


def test_outside_of_a_command_the_policy_alone_decides(store: str) -> None:
    with pytest.raises(ConnectionResetError):
        first_answer(store, "file", lambda: "not asked", raising(ConnectionResetError("gone")), 100)


def test_an_answer_of_any_kind_makes_the_calls_after_it_patient(store: str) -> None:
    busy = ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject")
    with answers_within(100):
        assert first_answer(store, "file", raising(busy), lambda: "waited for", 100) == "waited for"
        assert first_answer(store, "file", lambda: "asked briefly", lambda: "patient", 100) == "patient"


def test_credentials_that_do_not_come_are_waited_for(store: str) -> None:
    error = CredentialRetrievalError(provider="custom", error_msg="later")
    with answers_within(100):
        assert first_answer(store, "file", raising(error), lambda: "renewed", 100) == "renewed"


def test_what_is_asked_briefly_is_returned(store: str) -> None:
    with answers_within(100):
        assert first_answer(store, "file", lambda: "found", raising(AssertionError("asked again")), 100) == "found"


def test_what_is_wrong_with_the_call_is_raised_as_it_is(store: str) -> None:
    missing = FileNotFoundError("file")
    with answers_within(100), pytest.raises(FileNotFoundError) as caught:
        first_answer(store, "file", raising(missing), raising(missing), 100)
    assert not isinstance(caught.value, StoreUnavailableError)
