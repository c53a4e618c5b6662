"""Requests to AWS: the instance that is the head now, and the text of a secret."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lexray.storage.errors import UserError

SERVING = "InService"


def head_instance(group: str, region: str | None) -> str:
    """Return the id of the instance in an autoscaling group of one. Raises UserError if none is in service."""
    with aws_errors(f"autoscaling group {group}"):
        answer = client("autoscaling", region).describe_auto_scaling_groups(AutoScalingGroupNames=[group])
    groups = answer["AutoScalingGroups"]
    if not groups:
        raise UserError(f"autoscaling group {group}: none of that name in {region or 'this region'}")
    serving = [instance["InstanceId"] for instance in groups[0]["Instances"] if instance["LifecycleState"] == SERVING]
    if not serving:
        if groups[0]["DesiredCapacity"] == 0:
            where = f" --region {region}" if region else ""
            start = (
                f"aws autoscaling set-desired-capacity{where} --auto-scaling-group-name {group} --desired-capacity 1"
            )
            raise UserError(
                f"autoscaling group {group}: its head is stopped; start it by `{start}`, it takes some minutes"
            )
        raise UserError(f"autoscaling group {group}: 0 of 1 head(s) in service; wait for it to start")
    return str(serving[0])


def secret(arn: str, region: str | None) -> str:
    """Return the text of a secret in Secrets Manager."""
    with aws_errors(f"token: secret {arn}"):
        answer = client("secretsmanager", region).get_secret_value(SecretId=arn)
    text: str | None = answer.get("SecretString")
    if text is None:
        raise UserError(f"token: secret {arn}: holds bytes instead of text")
    return text


def client(service: str, region: str | None) -> Any:
    from botocore.session import Session

    return Session().create_client(service, region_name=region)


def listed(service: str, region: str | None, operation: str, key: str, **request: Any) -> list[Any]:
    """Return the entries under `key` (JMESPath, as `Volumes[]`) of all pages of an operation's answer."""
    return list(client(service, region).get_paginator(operation).paginate(**request).search(key))


@contextmanager
def aws_errors(what: str) -> Iterator[None]:
    """Turn AWS errors (credentials, permissions, missing resources) into one-line UserErrors."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        answer = error.response.get("Error", {})
        raise UserError(f"{what}: AWS says {answer.get('Code')}: {answer.get('Message')}") from error
    except BotoCoreError as error:
        raise UserError(f"{what}: AWS cannot be asked ({error})") from error
