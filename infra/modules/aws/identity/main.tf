# The role of what runs lexray: three prefixes of one bucket, named secrets, and what the operator adds by name.

locals {
  instance_count = var.service == "ec2" ? 1 : 0
  written        = var.data_writable ? ["data", "runs", "scratch"] : ["runs", "scratch"]
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = var.service == "ec2" ? ["sts:AssumeRole"] : ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["${var.service}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "workload" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [var.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = flatten([for prefix in ["data", "runs", "scratch"] : [prefix, "${prefix}/*"]])
    }
  }

  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = [for prefix in ["data", "runs", "scratch"] : "${var.bucket_arn}/${prefix}/*"]
  }

  statement {
    sid       = "Write"
    actions   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    resources = [for prefix in local.written : "${var.bucket_arn}/${prefix}/*"]
  }

  dynamic "statement" {
    for_each = length(var.readable_buckets) > 0 ? [1] : []

    content {
      sid       = "ListFurtherBuckets"
      actions   = ["s3:ListBucket"]
      resources = [for bucket in var.readable_buckets : "arn:${var.partition}:s3:::${bucket}"]
    }
  }

  dynamic "statement" {
    for_each = length(var.readable_buckets) > 0 ? [1] : []

    content {
      sid       = "ReadFurtherBuckets"
      actions   = ["s3:GetObject"]
      resources = [for bucket in var.readable_buckets : "arn:${var.partition}:s3:::${bucket}/*"]
    }
  }

  dynamic "statement" {
    for_each = var.kms_key_arn == null ? [] : [1]

    content {
      sid       = "UseKeyOfBucket"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [var.kms_key_arn]
    }
  }

  dynamic "statement" {
    for_each = length(var.readable_secret_arns) > 0 ? [1] : []

    content {
      sid       = "Secrets"
      actions   = ["secretsmanager:GetSecretValue"]
      resources = values(var.readable_secret_arns)
    }
  }
}

resource "aws_iam_role" "this" {
  name               = var.name
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "workload" {
  name   = "workload"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.workload.json
}

resource "aws_iam_role_policy_attachment" "extra" {
  for_each   = toset(var.extra_policy_arns)
  role       = aws_iam_role.this.name
  policy_arn = each.value
}

resource "aws_iam_instance_profile" "this" {
  count = local.instance_count
  name  = var.name
  role  = aws_iam_role.this.name
}
