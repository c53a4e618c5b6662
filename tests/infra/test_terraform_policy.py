"""Rules that every Terraform file keeps, read without Terraform."""

from __future__ import annotations

import json

import pytest
from hcl_files import MODULES, ROOTS, Block, blocks, declared, files_of, parsed, resources, type_text

EVERYWHERE = {"0.0.0.0/0", "::/0"}
FOLDERS = [pytest.param(folder, id=folder.name) for folder in (*ROOTS, *MODULES)]


def _statements() -> list[tuple[Block, dict]]:
    documents = [block for block in blocks("data") if block.type == "aws_iam_policy_document"]
    return [(document, statement) for document in documents for statement in document.body.get("statement", [])]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_variable_has_a_type_and_a_description_and_every_output_a_description(folder):
    variables, outputs = declared("variable", folder), declared("output", folder)
    assert variables
    assert [name for name, body in variables.items() if "type" not in body or not body.get("description")] == []
    assert [name for name, body in outputs.items() if not body.get("description")] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_asks_for_the_same_terraform_and_the_aws_provider_alone(folder):
    settings = parsed(folder / "versions.tf")["terraform"][0]
    assert settings["required_version"] == ">= 1.10"
    (providers,) = settings["required_providers"]
    # A user gets the provider that was tried; modules leave the choice to their root.
    tried = "5.100.0" if folder in ROOTS else ">= 5.95, < 7.0"
    assert providers == {"aws": {"source": "hashicorp/aws", "version": tried}}
    assert {"main.tf", "variables.tf", "outputs.tf"} <= {file.name for file in files_of(folder)}


def test_variables_of_both_roots_are_the_same_where_they_have_the_same_name():
    ec2, eks = (declared("variable", root) for root in ROOTS)
    shared = ec2.keys() & eks.keys() - {"pools"}
    assert len(shared) > 20
    assert [name for name in sorted(shared) if ec2[name] != eks[name]] == []
    assert type_text(ec2["pools"]) == type_text(eks["pools"])


def test_nobody_comes_in_from_everywhere():
    rules = resources("aws_vpc_security_group_ingress_rule")
    assert rules
    for rule in rules:
        assert not EVERYWHERE & {rule.body.get("cidr_ipv4"), rule.body.get("cidr_ipv6")}, rule
    # Rules inside groups are not written at all, so that the rules above are all there are.
    assert [str(group) for group in resources("aws_security_group") if {"ingress", "egress"} & group.body.keys()] == []
    assert resources("aws_security_group_rule") == []


def test_what_goes_out_to_everywhere_is_https_alone_unless_a_port_is_named():
    for rule in resources("aws_vpc_security_group_egress_rule"):
        if EVERYWHERE & {rule.body.get("cidr_ipv4"), rule.body.get("cidr_ipv6")}:
            is_named = "var.egress_ports" in rule.body.get("for_each", "")
            ports = (rule.body["from_port"], rule.body["to_port"])
            assert ports == (("${tonumber(each.value)}",) * 2 if is_named else (443, 443)), rule
    assert declared("variable", ROOTS[0])["egress_ports"]["default"] == []


def test_no_node_has_a_public_address_or_a_key_for_ssh():
    assert resources("aws_key_pair") == []
    assert [str(s) for s in resources("aws_subnet") if s.body["map_public_ip_on_launch"] is not False] == []
    for template in resources("aws_launch_template"):
        assert "key_name" not in template.body, template
        assert "associate_public_ip_address" not in json.dumps(template.body), template


def test_every_node_has_metadata_version_2_one_hop_and_encrypted_disks():
    templates = resources("aws_launch_template")
    assert len(templates) == 4
    for template in templates:
        (metadata,) = template.body["metadata_options"]
        assert metadata["http_tokens"] == "required", template
        assert metadata["http_put_response_hop_limit"] == 1, template
        assert [d["ebs"][0]["encrypted"] for d in template.body["block_device_mappings"]] == [True], template


def test_no_role_may_do_everything_and_stars_on_resources_are_for_actions_without_any():
    allowed = {"Look", "Session", "ImageLogin", "ScaleOurGroups"}
    for document, statement in _statements():
        actions = statement["actions"]
        if statement.get("effect") == "Deny":
            continue
        stars = [action for action in actions if action.endswith("*")]
        if stars:
            # A key's own policy gives the account its rights over the key, and is of the key alone.
            assert (document.name, stars) == ("key", ["kms:*"]), document
            continue
        # An expression is a text here; what it gives is looked at after an apply.
        if isinstance(statement.get("resources"), list) and "*" in statement["resources"]:
            assert statement["sid"] in allowed, (str(document), statement["sid"])
            assert not any(action.startswith(("s3:", "secretsmanager:", "iam:")) for action in actions)


def test_the_roles_of_nodes_in_kubernetes_read_no_bucket():
    for attachment in resources("aws_iam_role_policy_attachment"):
        assert "S3" not in json.dumps(attachment.body), attachment
    assert [b for b in blocks("resource") if b.type == "aws_iam_role_policy" and b.file.parent.name == "eks"] == [
        block for block in resources("aws_iam_role_policy") if block.name == "autoscaler"
    ]


def test_buckets_are_private_encrypted_versioned_and_speak_tls_alone():
    assert [bucket.name for bucket in resources("aws_s3_bucket")] == ["this"]
    (block,) = resources("aws_s3_bucket_public_access_block")
    switches = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    assert [block.body[switch] for switch in switches] == [True] * 4
    (encryption,) = resources("aws_s3_bucket_server_side_encryption_configuration")
    assert "AES256" in json.dumps(encryption.body)
    (versioning,) = resources("aws_s3_bucket_versioning")
    assert versioning.body["versioning_configuration"][0]["status"] == "Enabled"
    (denied,) = [statement for document, statement in _statements() if document.name == "tls_only"]
    assert denied["effect"] == "Deny"
    assert denied["condition"][0]["variable"] == "aws:SecureTransport"


def test_every_private_route_table_has_the_free_way_to_s3():
    (endpoint,) = [e for e in resources("aws_vpc_endpoint") if e.body["vpc_endpoint_type"] == "Gateway"]
    private = [table for table in resources("aws_route_table") if table.name != "public"]
    assert [f"${{aws_route_table.{table.name}[0].id}}" for table in private] == endpoint.body["route_table_ids"]


@pytest.mark.parametrize("root", [pytest.param(root, id=root.name) for root in ROOTS])
def test_pools_start_from_zero_and_are_spot_unless_somebody_says_otherwise(root):
    pools = declared("variable", root)["pools"]
    assert "min = optional(number, 0)" in type_text(pools)
    assert 'capacity = optional(string, "SPOT")' in type_text(pools)
    assert all(pool.get("min", 0) == 0 and pool.get("capacity", "SPOT") == "SPOT" for pool in pools["default"].values())


@pytest.mark.parametrize("root", [pytest.param(root, id=root.name) for root in ROOTS])
def test_each_root_has_a_budget_a_cost_limit_tags_on_everything_and_no_secret_in_its_state(root):
    modules = {name for entry in parsed(root / "main.tf")["module"] for name in entry}
    assert "budget" in modules
    (limit,) = [block for block in blocks("resource", root) if block.name == "cost_limit"]
    assert "hourly_cost_limit_usd" in limit.body["lifecycle"][0]["precondition"][0]["condition"]
    (provider,) = parsed(root / "main.tf")["provider"]
    assert provider["aws"]["default_tags"]
    assert resources("aws_secretsmanager_secret_version") == []


def test_the_kubernetes_api_is_private_unless_addresses_are_named_and_keeps_every_log():
    (cluster,) = resources("aws_eks_cluster")
    assert declared("variable", ROOTS[1])["allowed_cidrs"]["default"] == []
    assert cluster.body["vpc_config"][0]["endpoint_public_access"] == "${length(var.allowed_cidrs) > 0}"
    assert cluster.body["access_config"][0]["authentication_mode"] == "API"
    assert len(cluster.body["enabled_cluster_log_types"]) == 5
    assert cluster.body["encryption_config"][0]["resources"] == ["secrets"]


def test_every_exception_to_the_linter_has_its_reason():
    lines = [line for folder in (*ROOTS, *MODULES) for file in files_of(folder) for line in file.open(encoding="utf-8")]
    skips = [line.strip().split(":", 2) for line in lines if "checkov:skip" in line]
    assert skips
    assert [skip for skip in skips if len(skip) != 3 or len(skip[2]) < 20] == []
