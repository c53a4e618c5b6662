"""An AWS to apply the templates to: moto's server, and the few answers that it lacks and Terraform asks for.

`python tests/infra/aws_simulator.py PORT [HOST]` serves on 127.0.0.1, or on HOST, until it is ended. Launches
are refused as the JSON file says that LEXRAY_SIMULATED_REFUSALS names, see `refuse_launch`. What is added: tags of
budgets and subscribers of their alarms; descriptions of security rules that name a group, which moto keeps but does not
tell; EKS add-ons and pod identity associations, kept as they were sent; the vCPU quotas of an account; a machine
image that AWS publishes, which a test puts under PUBLISHED. Nothing runs in
an EKS of moto's, so that an add-on is ACTIVE at once says nothing about a real one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"

from moto.budgets.responses import BudgetsResponse
from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.launch_templates import LaunchTemplate, LaunchTemplateBackend
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.ec2.responses.instances import InstanceResponse
from moto.eks import urls as eks_urls
from moto.eks.models import EKSBackend
from moto.eks.responses import EKSResponse
from moto.s3.models import FakeDeleteMarker
from moto.server import main
from moto.servicequotas.responses import ServiceQuotasResponse
from moto.ssm.models import SimpleSystemManagerBackend
from moto.utilities.utils import get_partition

_KEPT: dict[str, dict[str, dict[str, object]]] = {}
"""Add-ons and associations: by kind, then by cluster and name."""
QUOTAS = {
    "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances": "L-1216C47A",
    "Running On-Demand G and VT instances": "L-DB2E81BA",
    "Running On-Demand P instances": "L-417A185B",
    "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests": "L-34B43A08",
    "All G and VT Spot Instance Requests": "L-3819A6DF",
    "All P4, P3 and P2 Spot Instance Requests": "L-7212CCBC",
    "All P5 Spot Instance Requests": "L-C4BD4855",
    "Attachments per VPC": "L-6DA43717",
}
"""Names and codes as AWS has them, of vCPUs and one that counts something else."""
PUBLISHED = "/published"
"""Before the name of a parameter of AWS's own, which nobody else may write."""
_BUDGET_TAGS: dict[str, list[dict[str, str]]] = {}
_moto_create_launch_template = LaunchTemplateBackend.create_launch_template
_moto_create_budget = BudgetsResponse.create_budget
_moto_run_instances = InstanceResponse.run_instances


def list_service_quotas(response: ServiceQuotasResponse) -> str:
    """An account that may run eight large nodes of every kind, unless LEXRAY_SIMULATED_QUOTAS names a JSON file."""
    file = Path(os.environ.get("LEXRAY_SIMULATED_QUOTAS", "/dev/null"))
    values = json.loads((file.read_text() if file.is_file() else "") or "{}")
    found = [
        {"QuotaName": name, "QuotaCode": code, "Value": values.get(name, 8 * 192.0)} for name, code in QUOTAS.items()
    ]
    return json.dumps({"Quotas": [{"ServiceCode": "ec2", **quota} for quota in found]})


def run_instances(response: InstanceResponse) -> ActionResult:
    """As moto does it, unless the launch is to be refused."""
    refuse_launch(response._get_param("InstanceType"), response._get_param("InstanceMarketOptions.MarketType") or "")
    return _moto_run_instances(response)


def refuse_launch(instance_type: str, market: str) -> None:
    """Raise the first refusal whose `instance_type` and `market` (`spot`; empty: on demand) are these, if named."""
    file = Path(os.environ.get("LEXRAY_SIMULATED_REFUSALS", "/dev/null"))
    for refusal in json.loads((file.read_text() if file.is_file() else "") or "[]"):
        if refusal.get("instance_type", instance_type) == instance_type and refusal.get("market", market) == market:
            raise EC2ClientError(refusal["code"], refusal["message"])


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
    InstanceResponse.run_instances = run_instances
    ServiceQuotasResponse.list_service_quotas = list_service_quotas
    SecurityGroupRule.description = property(lambda rule: (rule.ip_range or rule.source_group).get("Description"))
    FakeDeleteMarker.dispose = lambda marker: None  # asked of it when a bucket is emptied, and missing
    BudgetsResponse.list_tags_for_resource = budget_tags
    BudgetsResponse.describe_subscribers_for_notification = budget_subscribers
    moto_get_parameter = SimpleSystemManagerBackend.get_parameter
    SimpleSystemManagerBackend.get_parameter = lambda backend, name: moto_get_parameter(
        backend, f"{PUBLISHED}{name}" if name.startswith("/aws/service/deeplearning") else name
    )
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
    main(["-H", sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1", "-p", sys.argv[1]])
