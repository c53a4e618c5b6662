"""An AWS to apply the templates to: moto's server, and the few answers that it lacks and Terraform asks for.

`python tests/infra/aws_simulator.py PORT` serves on 127.0.0.1 until it is ended. What is added: tags of budgets and
subscribers of their alarms; descriptions of security rules that name a group, which moto keeps but does not tell; EKS
add-ons and pod identity associations, kept as they were sent. Nothing runs in an EKS
of moto's, so that an add-on is ACTIVE at once says nothing about a real one.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any
from urllib.parse import unquote

os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"

from moto.budgets.responses import BudgetsResponse
from moto.core.responses import ActionResult
from moto.ec2.models.launch_templates import LaunchTemplate, LaunchTemplateBackend
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.eks import urls as eks_urls
from moto.eks.models import EKSBackend
from moto.eks.responses import EKSResponse
from moto.s3.models import FakeDeleteMarker
from moto.server import main
from moto.utilities.utils import get_partition

_KEPT: dict[str, dict[str, dict[str, object]]] = {}
"""Add-ons and associations: by kind, then by cluster and name."""
_BUDGET_TAGS: dict[str, list[dict[str, str]]] = {}
_moto_create_launch_template = LaunchTemplateBackend.create_launch_template
_moto_create_budget = BudgetsResponse.create_budget


def create_launch_template(
    backend: LaunchTemplateBackend, name: str, description: str, data: dict[str, Any], tags: dict[str, Any]
) -> LaunchTemplate:
    """As moto does it, without the template's own tags among those of the instances that it launches."""
    kept = [spec for spec in data.get("TagSpecifications", []) if spec["ResourceType"] != "launch-template"]
    return _moto_create_launch_template(backend, name, description, {**data, "TagSpecifications": kept}, tags)


def create_budget(response: BudgetsResponse) -> str:
    """As moto does it; and the tags are kept."""
    name = response._get_param("Budget")["BudgetName"]
    _BUDGET_TAGS[name] = response._get_param("ResourceTags") or []
    return _moto_create_budget(response)


def budget_tags(response: BudgetsResponse) -> str:
    name = response._get_param("ResourceARN").rpartition("/")[2]
    return json.dumps({"ResourceTags": _BUDGET_TAGS.get(name, [])})


def budget_subscribers(response: BudgetsResponse) -> str:
    account, name = response._get_param("AccountId"), response._get_param("BudgetName")
    wanted = response._get_param("Notification")
    for kept in response.backend.budgets[account][name].notifications:
        if all(kept.details.get(key) == wanted.get(key) for key in ("NotificationType", "Threshold")):
            return json.dumps({"Subscribers": kept.subscribers})
    return json.dumps({"Subscribers": []})


def _of_path(response: EKSResponse, index: int) -> str:
    return unquote(response.path.strip("/").split("/")[index])


def _arn(response: EKSResponse, kind: str, name: str) -> str:
    region, account = response.region, response.current_account
    return f"arn:{get_partition(region)}:eks:{region}:{account}:{kind}/{_of_path(response, 1)}/{name}"


class KeptKind:
    """Create, describe, delete and list things of a cluster that nothing is done with."""

    def __init__(self, action: str, field: str, arn_kind: str, name_field: str):
        self.action, self.field, self.arn_kind, self.name_field = action, field, arn_kind, name_field

    def _kept(self) -> dict[str, dict[str, object]]:
        return _KEPT.setdefault(self.field, {})

    def _key(self, response: EKSResponse) -> str:
        return f"{_of_path(response, 1)}/{_of_path(response, 3)}"

    def create(self, response: EKSResponse) -> ActionResult:
        sent = json.loads(response.body or "{}")
        name = str(sent.get("addonName") or f"a-{len(self._kept())}")
        thing = {**sent, self.name_field: name, "clusterName": _of_path(response, 1), "status": "ACTIVE"}
        thing[self.arn_kind_field] = _arn(response, self.arn_kind, name)
        self._kept()[f"{thing['clusterName']}/{name}"] = thing
        return ActionResult({self.field: thing})

    @property
    def arn_kind_field(self) -> str:
        return f"{self.field}Arn" if self.field == "addon" else "associationArn"

    def describe(self, response: EKSResponse) -> ActionResult | tuple[int, dict[str, str], str]:
        thing = self._kept().get(self._key(response))
        return ActionResult({self.field: thing}) if thing else _not_found()

    def delete(self, response: EKSResponse) -> ActionResult | tuple[int, dict[str, str], str]:
        thing = self._kept().pop(self._key(response), None)
        return ActionResult({self.field: thing}) if thing else _not_found()


def _not_found() -> tuple[int, dict[str, str], str]:
    return 404, {"x-amzn-errortype": "ResourceNotFoundException"}, json.dumps({"message": "No such thing."})


def install() -> None:
    """Teach moto's classes; before its server starts."""
    LaunchTemplateBackend.create_launch_template = create_launch_template
    BudgetsResponse.create_budget = create_budget
    SecurityGroupRule.description = property(lambda rule: (rule.ip_range or rule.source_group).get("Description"))
    FakeDeleteMarker.dispose = lambda marker: None  # asked of it when a bucket is emptied, and missing
    BudgetsResponse.list_tags_for_resource = budget_tags
    BudgetsResponse.describe_subscribers_for_notification = budget_subscribers
    addon = KeptKind("addon", "addon", "addon", "addonName")
    association = KeptKind("pod_identity_association", "association", "podidentityassociation", "associationId")
    for kind in (addon, association):
        for verb in ("create", "describe", "delete"):
            setattr(EKSResponse, f"{verb}_{kind.action}", _method(kind, verb))
    for path in ("addons", "pod-identity-associations"):
        for end in ("$", "/(?P<thing>[^/]+)$"):
            eks_urls.url_paths[f"{{0}}/clusters/(?P<name>[^/]+)/{path}{end}"] = eks_urls.response.dispatch
    known_tags = EKSBackend.list_tags_for_resource

    def tags_of(backend: EKSBackend, arn: str) -> dict[str, str]:
        for things in _KEPT.values():
            for thing in things.values():
                if arn in thing.values():
                    return dict(thing.get("tags") or {})  # type: ignore[call-overload]
        return known_tags(backend, arn)

    EKSBackend.list_tags_for_resource = tags_of


def _method(kind: KeptKind, verb: str):
    def method(response: EKSResponse):
        return getattr(kind, verb)(response)

    return method


if __name__ == "__main__":
    install()
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
