# The head: a group of one, so that a lost one comes back. It starts Ray with its autoscaler, which launches the pools.

locals {
  prefix     = "/lexray/${var.name}"
  arn_prefix = "arn:${var.partition}:ec2:${var.region}:${var.account_id}"
  node_tags  = merge(var.tags, { (var.cluster_tag_key) = var.name })
  head_tags = merge(local.node_tags, {
    Name               = "${var.name}-head"
    ray-cluster-name   = var.name
    ray-node-type      = "head"
    ray-user-node-type = "head"
    ray-node-status    = "up-to-date"
  })
}

resource "aws_launch_template" "head" {
  name          = "${var.name}-head"
  image_id      = var.ami_id
  instance_type = var.head_instance_type
  # cloud-init unpacks it; it names every pool, and EFA pools every network card.
  user_data                            = base64gzip(local.head_user_data)
  vpc_security_group_ids               = [aws_security_group.nodes.id]
  instance_initiated_shutdown_behavior = "terminate"
  update_default_version               = true

  iam_instance_profile {
    arn = module.head_identity.instance_profile_arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/sda1"

    ebs {
      volume_size           = var.root_volume_gib
      volume_type           = "gp3"
      throughput            = var.root_volume_mib_s
      encrypted             = true
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = local.head_tags
  }

  tag_specifications {
    resource_type = "volume"
    tags          = local.node_tags
  }

  lifecycle {
    precondition {
      condition     = floor(length(base64gzip(local.head_user_data)) * 3 / 4) <= 16384
      error_message = "The head's start-up script has ${floor(length(base64gzip(local.head_user_data)) * 3 / 4)} bytes compressed and EC2 takes 16384: use fewer pools than ${length(var.pools)}."
    }
  }
}

resource "aws_autoscaling_group" "head" {
  name                = "${var.name}-head"
  min_size            = 0
  max_size            = 1
  desired_capacity    = 1
  vpc_zone_identifier = var.subnet_ids
  # Terraform does not wait: the start-up script reports in the log group, and `lexray doctor` asks the head.
  wait_for_capacity_timeout = "0"

  launch_template {
    id      = aws_launch_template.head.id
    version = aws_launch_template.head.latest_version
  }

  dynamic "tag" {
    for_each = local.head_tags

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    # The deadline and the schedule stop the head; an apply for another reason must not start it again.
    ignore_changes = [desired_capacity]
  }

  # The first boot needs its rights and the way out; `subnet_ids` bring the network's routes and endpoints along.
  depends_on = [
    module.head_identity,
    module.worker_identity,
    aws_iam_role_policy.node,
    aws_iam_role_policy.head,
    aws_vpc_security_group_ingress_rule.self,
    aws_vpc_security_group_egress_rule.self,
    aws_vpc_security_group_egress_rule.https,
  ]
}

resource "aws_autoscaling_schedule" "stop" {
  count                  = var.stop_schedule == null ? 0 : 1
  scheduled_action_name  = "stop"
  autoscaling_group_name = aws_autoscaling_group.head.name
  recurrence             = var.stop_schedule
  min_size               = 0
  max_size               = 1
  desired_capacity       = 0
}

# Where workers find the head: written by each head when it boots.
resource "aws_ssm_parameter" "head_address" {
  #checkov:skip=CKV2_AWS_34:An address inside the VPC is no secret.
  name           = "${local.prefix}/head-address"
  description    = "HOST:PORT of Ray's head"
  type           = "String"
  insecure_value = "none"

  lifecycle {
    ignore_changes = [insecure_value]
  }
}

# A container without content: the head writes the token when it boots, so that Terraform's state never holds it.
resource "aws_secretsmanager_secret" "token" {
  #checkov:skip=CKV2_AWS_57:A W&B key is renewed by its owner, and Ray's token with the cluster: running nodes could not follow.
  #checkov:skip=CKV_AWS_149:Encrypted by the service's own key; a customer key costs 1 USD a month and keeps nobody out whom IAM lets in.
  name                    = "${local.prefix}/ray-token"
  description             = "Token of Ray's head and everybody who talks to it"
  recovery_window_in_days = 0
}

resource "aws_cloudwatch_log_group" "nodes" {
  #checkov:skip=CKV_AWS_158:Encrypted by the service's own key; a customer key costs 1 USD a month and keeps nobody out whom IAM lets in.
  #checkov:skip=CKV_AWS_338:Two weeks find a fault; who must keep logs for a year sets log_retention_days.
  name              = "${local.prefix}/nodes"
  retention_in_days = var.log_retention_days
}
