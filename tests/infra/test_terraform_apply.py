"""Both roots applied to a simulated AWS, looked at through boto3, planned again, used by Ray, and destroyed."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rendered
import yaml
from applied_roots import BUCKET_BEFORE, EKS_VARIABLES, Applied, apply_root, client
from running_cluster import RunningCluster, User, finished_in
from terraform_tool import Terraform, copy_of_infra

from lexray.cluster.provisioned.description import ClusterDescription

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def aws(aws_endpoint):
    """Clients by service."""
    return lambda service: client(service, aws_endpoint)


@pytest.fixture(scope="module")
def applied(infra_copy, cli_config, aws_endpoint, tmp_path_factory) -> Iterator[dict[str, Applied]]:
    """Both roots at once: most of the time is the provider's waiting."""
    client("s3", aws_endpoint).create_bucket(Bucket=BUCKET_BEFORE)
    folder = copy_of_infra(tmp_path_factory.mktemp("applied"))

    def apply(name: str, variables: dict[str, Any]) -> Applied:
        return apply_root(folder / name, variables, infra_copy / name, cli_config, aws_endpoint)

    with ThreadPoolExecutor(2) as pool:
        futures = {
            "aws-ec2": pool.submit(apply, "aws-ec2", rendered.VARIABLES),
            "aws-eks": pool.submit(apply, "aws-eks", EKS_VARIABLES),
        }
        yield {name: future.result() for name, future in futures.items()}


@pytest.fixture
def ec2(applied) -> dict[str, Any]:
    return applied["aws-ec2"].outputs


@pytest.fixture
def eks(applied) -> dict[str, Any]:
    return applied["aws-eks"].outputs


def test_the_cluster_output_of_each_root_is_what_lexray_reads(ec2, eks):
    for outputs, provider, access in ((ec2, "aws-ec2", "ssm"), (eks, "aws-eks", "kubectl")):
        description = ClusterDescription.model_validate(outputs["cluster"])
        assert (description.provider, description.access.kind) == (provider, access)
        assert description.pools[0].min_nodes == 0
        assert description.max_hourly_cost_usd == outputs["max_hourly_cost_usd"]
    assert ClusterDescription.model_validate(ec2["cluster"]).max_cluster_hours == 24


def test_what_was_rendered_is_what_the_repository_shows(ec2):
    for name, text in rendered.files(ec2).items():
        assert rendered.read(name) == text, f"{name}: run `make infra-rendered`"


def test_nothing_can_be_reached_from_outside(ec2, eks, aws):
    groups = aws("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": ["lexray*"]}])
    rules = [rule for group in groups["SecurityGroups"] for rule in group["IpPermissions"]]
    assert rules
    assert [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]] == []
    instances = [i for r in aws("ec2").describe_instances()["Reservations"] for i in r["Instances"]]
    assert instances
    assert {instance.get("PublicIpAddress") for instance in instances} <= {None, ""}
    assert [instance for instance in instances if instance.get("KeyName")] == []


def test_the_bucket_is_private_encrypted_versioned_and_forgets_scratch(ec2, aws):
    bucket = ec2["bucket_uris"]["data"].removeprefix("s3://").partition("/")[0]
    s3 = aws("s3")
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    rules = {rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]}
    assert rules["incomplete-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == 1
    assert rules["scratch"]["Expiration"]["Days"] == 14
    kept_days = {rule["Filter"]["Prefix"]: rule["NoncurrentVersionExpiration"]["NoncurrentDays"]
                 for rule in rules.values() if "NoncurrentVersionExpiration" in rule}  # fmt: skip
    assert kept_days == {"data/": 14, "runs/": 1, "scratch/": 1}, "a deleted checkpoint is billed for a day"


def _policies(iam: Any, role: str) -> list[dict[str, Any]]:
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    documents = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    return [statement for document in documents for statement in document["Statement"]]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("role", ["lexray-head", "lexray-worker", "lexray-eks-ray"])
def test_roles_reach_their_prefixes_and_secrets_and_write_no_data(applied, aws, role):
    statements = _policies(aws("iam"), role)
    of_s3 = [s for s in statements if any(action.startswith("s3:") for action in _list(s["Action"]))]
    further = {"ListFurtherBuckets", "ReadFurtherBuckets"} if role == "lexray-eks-ray" else set()
    assert {statement["Sid"] for statement in of_s3} == {"List", "Read", "Write", *further}
    for statement in of_s3:
        resources = [resource.partition(":::")[2] for resource in _list(statement["Resource"])]
        assert all(len(resource) > 3 and not resource.startswith("*") for resource in resources), resources
        if statement["Sid"] == "Write":
            assert {resource.split("/")[1] for resource in resources} == {"runs", "scratch"}
    secrets = [s for s in statements if any(action.startswith("secretsmanager:") for action in _list(s["Action"]))]
    assert secrets
    assert all(":secret:/lexray/" in arn for s in secrets for arn in _list(s["Resource"]))


def test_what_the_operator_adds_is_added(applied, aws):
    attached = aws("iam").list_attached_role_policies(RoleName="lexray-eks-ray")["AttachedPolicies"]
    assert [policy["PolicyName"] for policy in attached] == ["AmazonEC2ReadOnlyAccess"]
    (read,) = [s for s in _policies(aws("iam"), "lexray-eks-ray") if s.get("Sid") == "ReadFurtherBuckets"]
    assert _list(read["Resource"]) == ["arn:aws:s3:::their-activations/*"]
    for role in ("lexray-head", "lexray-worker"):
        (used,) = [s for s in _policies(aws("iam"), role) if s.get("Sid") == "UseKeyOfBucket"]
        assert _list(used["Resource"]) == [rendered.VARIABLES["kms_key_arn"]]
    rules = aws("s3").get_bucket_encryption(Bucket="lexray-123456789012-us-east-1")
    (rule,) = rules["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"] == rendered.VARIABLES["kms_key_arn"]
    groups = aws("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": ["lexray-nodes"]}])
    out = groups["SecurityGroups"][0]["IpPermissionsEgress"]
    assert {rule.get("FromPort") for rule in out if rule["IpRanges"]} == {22, 443}


def test_the_head_launches_from_our_templates_alone_and_ends_our_nodes_alone(applied, aws):
    statements = {
        statement["Sid"]: statement for statement in _policies(aws("iam"), "lexray-head") if "Sid" in statement
    }
    templates = aws("ec2").describe_launch_templates()["LaunchTemplates"]
    (ours,) = [t["LaunchTemplateId"] for t in templates if t["LaunchTemplateName"] == "lexray-pool-a10g"]
    condition = statements["LaunchFromOurTemplates"]["Condition"]["ArnEquals"]["ec2:LaunchTemplate"]
    assert _list(condition)[0].endswith(ours)
    images = statements["LaunchImagesOfOurTemplates"]
    assert images["Condition"] == {
        "ArnEquals": {"ec2:LaunchTemplate": condition}, "Bool": {"ec2:IsLaunchTemplateResource": "true"}
    }  # fmt: skip
    assert not [s for s in statements.values() if s is not images and "image/" in json.dumps(s.get("Resource"))]
    assert statements["EndOurNodes"]["Condition"] == {"StringEquals": {"aws:ResourceTag/lexray-cluster": "lexray"}}
    assert _list(statements["PassWorkerRole"]["Resource"])[0].endswith(":role/lexray-worker")
    worker = {action for s in _policies(aws("iam"), "lexray-worker") for action in _list(s["Action"])}
    assert not worker & {"ec2:RunInstances", "iam:PassRole", "secretsmanager:PutSecretValue"}


def test_a_pool_is_launched_by_a_template_with_the_script_that_is_shown(ec2, aws):
    versions = aws("ec2").describe_launch_template_versions(LaunchTemplateName="lexray-pool-a10g", Versions=["$Latest"])
    data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert gzip.decompress(base64.b64decode(data["UserData"])).decode() == ec2["worker_user_data"]["a10g"]
    assert "InstanceMarketOptions" not in data, "a launch could not take a template's market away"
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["IamInstanceProfile"]["Arn"].endswith("instance-profile/lexray-worker")


def test_the_head_is_a_group_of_one_that_ray_knows_by_its_tags(ec2, aws):
    group = ec2["cluster"]["access"]["autoscaling_group"]
    (found,) = aws("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
    assert (found["MinSize"], found["MaxSize"], found["DesiredCapacity"]) == (0, 1, 1)
    tags = {tag["Key"]: tag["Value"] for tag in found["Tags"] if tag["PropagateAtLaunch"]}
    assert {"ray-cluster-name": "lexray", "ray-node-type": "head", "lexray-cluster": "lexray"}.items() <= tags.items()


def test_budgets_watch_the_clusters_by_their_tag(ec2, eks, aws):
    budgets = aws("budgets")
    found = {budget["BudgetName"]: budget for budget in budgets.describe_budgets(AccountId="123456789012")["Budgets"]}
    assert found["lexray-lexray"]["CostFilters"]["TagKeyValue"] == ["user:lexray-cluster$lexray"]
    alarms = budgets.describe_notifications_for_budget(AccountId="123456789012", BudgetName="lexray-lexray-eks")
    assert sorted(alarm["Threshold"] for alarm in alarms["Notifications"]) == [50, 80, 100, 100]


def test_no_state_holds_a_secret(applied):
    for root in applied.values():
        state = json.loads((root.terraform.folder / "terraform.tfstate").read_text(encoding="utf-8"))
        assert [r["type"] for r in state["resources"] if r["type"] == "aws_secretsmanager_secret_version"] == []


def test_kubernetes_has_a_group_for_each_pool_from_zero_with_taints_and_labels(eks, aws):
    cluster = aws("eks").describe_cluster(name="lexray-eks")["cluster"]
    assert cluster["resourcesVpcConfig"]["endpointPrivateAccess"] is True
    assert cluster["resourcesVpcConfig"]["publicAccessCidrs"] == ["203.0.113.7/32"]
    assert sorted(aws("eks").list_nodegroups(clusterName="lexray-eks")["nodegroups"]) == ["a10g", "core"]
    pool = aws("eks").describe_nodegroup(clusterName="lexray-eks", nodegroupName="a10g")["nodegroup"]
    assert (pool["scalingConfig"]["minSize"], pool["scalingConfig"]["maxSize"]) == (0, 2)
    kept = json.loads(rendered.read(rendered.NODE_GROUPS))["a10g"]
    assert (pool["capacityType"], pool["labels"]) == ("SPOT", kept["labels"])
    assert {taint["key"] for taint in pool["taints"]} == {"nvidia.com/gpu", "lexray.io/spot"}
    assert kept["tags"].items() <= pool["tags"].items()
    association = aws("eks").describe_pod_identity_association
    namespaces = {
        association(clusterName="lexray-eks", associationId=f"a-{index}")["association"]["namespace"]
        for index in (0, 1)
    }
    assert namespaces == {eks["cluster"]["access"]["namespace"], "kube-system"}


def _changes(terraform: Terraform, folder: Path) -> dict[str, set[str]]:
    """What a plan would do, by address: the names of the attributes that change."""
    terraform.run("plan", "-out", str(folder / "again"), "-no-color", "-input=false")
    plan = json.loads(terraform.run("show", "-json", str(folder / "again")).stdout)
    return {
        change["address"]: {
            key
            for key in (change["change"]["before"] or {}).keys() | (change["change"]["after"] or {}).keys()
            if (change["change"]["before"] or {}).get(key) != (change["change"]["after"] or {}).get(key)
        }
        for change in plan.get("resource_changes", [])
        if change["change"]["actions"] not in (["no-op"], ["read"])
    }


def test_a_second_plan_of_ec2_is_empty(applied, tmp_path):
    assert _changes(applied["aws-ec2"].terraform, tmp_path) == {}


def test_a_second_plan_of_eks_touches_what_the_simulator_does_not_keep_of_eks_alone(applied, tmp_path):
    changes = _changes(applied["aws-eks"].terraform, tmp_path)
    assert all(address.startswith(("module.eks.aws_eks_", "module.eks.data.")) for address in changes), changes


def test_rays_own_provider_launches_and_ends_a_node_from_the_rendered_file(ec2, aws_endpoint, monkeypatch):
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS, TAG_RAY_USER_NODE_TYPE

    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_endpoint)
    config = yaml.safe_load(ec2["ray_cluster_yaml"])
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    assert len(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "head"})) == 1
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_NODE_STATUS: "uninitialized", TAG_RAY_USER_NODE_TYPE: "a10g"}
    node_config = config["available_node_types"]["a10g"]["node_config"]
    provider.create_node(dict(node_config), tags, 1)
    (node,) = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"})
    instance = provider._get_node(node)
    assert (instance.instance_type, instance.instance_lifecycle) == ("g5.12xlarge", "spot")
    assert {group["GroupName"] for group in instance.security_groups} == {"lexray-nodes"}
    assert instance.subnet_id in node_config["SubnetIds"]
    assert provider.node_tags(node)["lexray-cluster"] == "lexray"
    provider.terminate_nodes([node])
    assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"}) == []


@pytest.fixture
def running(applied, hosts, ec2, aws, aws_endpoint) -> Iterator[RunningCluster]:
    """What the root aws-ec2 made, running."""
    aws("secretsmanager").put_secret_value(SecretId=ec2["cluster"]["token"]["arn"], SecretString=hosts.token)
    cluster = RunningCluster(hosts, ec2, aws_endpoint)
    yield cluster
    cluster.close()


def test_a_sweep_is_sent_by_the_cluster_object_of_either_root_and_finishes(applied, running, aws_endpoint, tmp_path):
    """The second goes to the same head: what differs is the way there, and the bucket."""
    user = User(tmp_path / "user", running, aws_endpoint)
    for name, tunnel, targets in (
        ("aws-ec2", ["aws", "ssm", "start-session"], [2, 4]),
        ("aws-eks", ["kubectl", "--kubeconfig"], [4]),
    ):
        root = applied[name]
        axes = {"architecture": ["topk"], "width": [64], "target_l0": targets}
        file, described = user.files_for(root, axes=axes, training={"rows": 128 * 100, "lr": 0.003})
        sent = user.start("submit", file, "--cluster", described, "--trust", "-f", "--json")
        if name == "aws-ec2":
            running.start_the_node_that_it_launches("a10g", sent)
        document = json.loads(user.result(sent))
        assert (document["status"], len(document["plan"]["trials"])) == ("SUCCEEDED", len(targets))
        assert document["url"] == f"{root.outputs['bucket_uris']['runs']}/widths"
        assert finished_in(user.store(document["url"])) == [f"topk-w64-l{target}" for target in targets]
        (forward,) = [call for call in user.programs.calls() if call[: len(tunnel)] == tunnel and "secret" not in call]
        assert (running.head_instance() in forward) == (name == "aws-ec2")
        assert user.programs.living() == []


def _left(aws: Any) -> dict[str, list[str]]:
    """What the templates made and AWS would still bill or list."""
    ec2, iam = aws("ec2"), aws("iam")
    instances = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    tagged = [{"Name": "tag-key", "Values": ["lexray-cluster"]}]
    return {
        "instances": [i["InstanceId"] for i in instances if i["State"]["Name"] not in ("terminated", "shutting-down")],
        "networks": [vpc["VpcId"] for vpc in ec2.describe_vpcs(Filters=tagged)["Vpcs"]],
        "addresses": [address["PublicIp"] for address in ec2.describe_addresses()["Addresses"]],
        "gateways": [g["NatGatewayId"] for g in ec2.describe_nat_gateways()["NatGateways"] if g["State"] != "deleted"],
        "templates": [t["LaunchTemplateName"] for t in ec2.describe_launch_templates()["LaunchTemplates"]],
        "groups": [
            g["AutoScalingGroupName"] for g in aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        ],
        "roles": [role["RoleName"] for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("lexray")],
        "profiles": [p["InstanceProfileName"] for p in iam.list_instance_profiles()["InstanceProfiles"]],
        "secrets": [secret["Name"] for secret in aws("secretsmanager").list_secrets()["SecretList"]],
        "logs": [group["logGroupName"] for group in aws("logs").describe_log_groups()["logGroups"]],
        "clusters": aws("eks").list_clusters()["clusters"],
        "budgets": [b["BudgetName"] for b in aws("budgets").describe_budgets(AccountId="123456789012")["Budgets"]],
        "buckets": [bucket["Name"] for bucket in aws("s3").list_buckets()["Buckets"]],
    }


def test_destroy_leaves_nothing_but_the_bucket_that_was_there(applied, aws):
    assert all(_left(aws).values())
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(
            lambda root: root.terraform.run("destroy", "-auto-approve", "-no-color"), applied.values()
        ):
            assert "Destroy complete!" in done.stdout
    assert {kind: left for kind, left in _left(aws).items() if left} == {"buckets": [BUCKET_BEFORE]}
