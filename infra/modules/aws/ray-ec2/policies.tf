# What a node may do besides its work: be reached, log, pull its image. The head may launch and end its own pools.

module "head_identity" {
  source               = "../identity"
  name                 = "${var.name}-head"
  service              = "ec2"
  bucket_arn           = var.bucket_arn
  data_writable        = var.data_writable
  partition            = var.partition
  readable_buckets     = var.readable_buckets
  kms_key_arn          = var.kms_key_arn
  extra_policy_arns    = var.extra_policy_arns
  readable_secret_arns = { token = aws_secretsmanager_secret.token.arn, wandb = var.wandb_secret_arn }
}

module "worker_identity" {
  source               = "../identity"
  name                 = "${var.name}-worker"
  service              = "ec2"
  bucket_arn           = var.bucket_arn
  data_writable        = var.data_writable
  partition            = var.partition
  readable_buckets     = var.readable_buckets
  kms_key_arn          = var.kms_key_arn
  extra_policy_arns    = var.extra_policy_arns
  readable_secret_arns = { token = aws_secretsmanager_secret.token.arn }
}

data "aws_iam_policy_document" "node" {
  #checkov:skip=CKV_AWS_111:Session Manager's and the registry's actions know no resources.
  #checkov:skip=CKV_AWS_356:Session Manager's and the registry's actions know no resources.
  # Session Manager's own minimum. The managed policy for it would open every parameter of the account as well.
  statement {
    sid = "Session"
    actions = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "Log"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.nodes.arn}:*"]
  }

  statement {
    sid       = "ImageLogin"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    sid       = "ImagePull"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = ["arn:${var.partition}:ecr:${var.region}:${var.account_id}:repository/*"]
  }

  statement {
    sid       = "FindHead"
    actions   = ["ssm:GetParameter"]
    resources = [aws_ssm_parameter.head_address.arn]
  }
}

data "aws_iam_policy_document" "head" {
  statement {
    sid       = "LaunchFromOurTemplates"
    actions   = ["ec2:RunInstances"]
    resources = [for kind in ["instance", "volume", "network-interface"] : "${local.arn_prefix}:${kind}/*"]

    condition {
      test     = "ArnEquals"
      variable = "ec2:LaunchTemplate"
      values   = [for template in aws_launch_template.pool : template.arn]
    }
  }

  statement {
    sid     = "LaunchInOurNetwork"
    actions = ["ec2:RunInstances"]
    resources = concat(
      [for id in var.subnet_ids : "${local.arn_prefix}:subnet/${id}"],
      [for template in aws_launch_template.pool : template.arn],
      [for group in aws_placement_group.pool : group.arn],
      [for pool in var.pools : "${local.arn_prefix}:capacity-reservation/${pool.reservation_id}" if pool.reservation_id != null],
      [
        "${local.arn_prefix}:security-group/${aws_security_group.nodes.id}",
        "${local.arn_prefix}:spot-instances-request/*",
      ],
    )
  }

  # The image comes from a version of our templates and from nowhere else: a running head launches by the version that it
  # started with, whatever image the newest one has.
  statement {
    sid       = "LaunchImagesOfOurTemplates"
    actions   = ["ec2:RunInstances"]
    resources = ["arn:${var.partition}:ec2:${var.region}::image/*"]

    condition {
      test     = "ArnEquals"
      variable = "ec2:LaunchTemplate"
      values   = [for template in aws_launch_template.pool : template.arn]
    }

    condition {
      test     = "Bool"
      variable = "ec2:IsLaunchTemplateResource"
      values   = ["true"]
    }
  }

  statement {
    sid       = "TagWhatIsLaunched"
    actions   = ["ec2:CreateTags"]
    resources = [for kind in ["instance", "volume", "network-interface", "spot-instances-request"] : "${local.arn_prefix}:${kind}/*"]

    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  statement {
    sid       = "EndOurNodes"
    actions   = ["ec2:TerminateInstances", "ec2:CreateTags"]
    resources = ["${local.arn_prefix}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/${var.cluster_tag_key}"
      values   = [var.name]
    }
  }

  # This action knows no resources.
  statement {
    sid       = "Look"
    actions   = ["ec2:DescribeInstances"]
    resources = ["*"]
  }

  statement {
    sid       = "PassWorkerRole"
    actions   = ["iam:PassRole"]
    resources = [module.worker_identity.role_arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ec2.amazonaws.com"]
    }
  }

  statement {
    sid       = "WriteToken"
    actions   = ["secretsmanager:DescribeSecret", "secretsmanager:PutSecretValue"]
    resources = [aws_secretsmanager_secret.token.arn]
  }

  statement {
    sid       = "LookForWandbKey"
    actions   = ["secretsmanager:DescribeSecret"]
    resources = [var.wandb_secret_arn]
  }

  statement {
    sid       = "SayWhereHeadIs"
    actions   = ["ssm:PutParameter"]
    resources = [aws_ssm_parameter.head_address.arn]
  }

  # By name: the group itself needs the launch template, which needs this role.
  statement {
    sid       = "StopHeadAtDeadline"
    actions   = ["autoscaling:SetDesiredCapacity"]
    resources = ["arn:${var.partition}:autoscaling:${var.region}:${var.account_id}:autoScalingGroup:*:autoScalingGroupName/${var.name}-head"]
  }
}

resource "aws_iam_role_policy" "node" {
  for_each = { head = module.head_identity.role_name, worker = module.worker_identity.role_name }
  name     = "node"
  role     = each.value
  policy   = data.aws_iam_policy_document.node.json
}

resource "aws_iam_role_policy" "head" {
  name   = "head"
  role   = module.head_identity.role_name
  policy = data.aws_iam_policy_document.head.json
}
