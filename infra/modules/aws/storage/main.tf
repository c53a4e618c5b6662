# One bucket: data/ (activations, read), runs/ (sweeps, written), scratch/ (goes by itself).

locals {
  own_count = var.existing_bucket == null ? 1 : 0
  bucket    = var.existing_bucket == null ? aws_s3_bucket.this[0].id : var.existing_bucket
  arn       = var.existing_bucket == null ? aws_s3_bucket.this[0].arn : data.aws_s3_bucket.existing[0].arn
}

data "aws_s3_bucket" "existing" {
  count  = 1 - local.own_count
  bucket = var.existing_bucket
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV2_AWS_62:Nobody listens to events of this bucket.
  #checkov:skip=CKV_AWS_144:Replication doubles the bill for data that can be harvested again.
  #checkov:skip=CKV_AWS_145:S3's own keys unless kms_key_arn names another: KMS adds a price to each request.
  #checkov:skip=CKV_AWS_18:Access logs of shards that are read by the million cost more than they tell; CloudTrail is the operator's choice.
  count         = local.own_count
  bucket        = "${var.name}-${var.bucket_suffix}"
  force_destroy = var.force_destroy
}

resource "aws_s3_bucket_public_access_block" "this" {
  count                   = local.own_count
  bucket                  = aws_s3_bucket.this[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  count  = local.own_count
  bucket = aws_s3_bucket.this[0].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "this" {
  count  = local.own_count
  bucket = aws_s3_bucket.this[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  count  = local.own_count
  bucket = aws_s3_bucket.this[0].id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }

    # One key for many objects: else KMS is asked, and paid, for each shard.
    bucket_key_enabled = var.kms_key_arn != null
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  count      = local.own_count
  bucket     = aws_s3_bucket.this[0].id
  depends_on = [aws_s3_bucket_versioning.this]

  rule {
    id     = "incomplete-uploads"
    status = "Enabled"

    filter {
      prefix = ""
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  # What was deleted or overwritten by mistake can be fetched back for two weeks.
  rule {
    id     = "deleted-data"
    status = "Enabled"

    filter {
      prefix = "data/"
    }

    expiration {
      expired_object_delete_marker = true
    }

    noncurrent_version_expiration {
      noncurrent_days = 14
    }
  }

  # A busy trial deletes a checkpoint of gigabytes every few minutes: two weeks of them would be some 13 TB, 300 USD a month.
  # A rule knows no other pattern than a prefix, so that dictionaries and reports are kept for a day alike.
  rule {
    id     = "deleted-runs"
    status = "Enabled"

    filter {
      prefix = "runs/"
    }

    expiration {
      expired_object_delete_marker = true
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }

  rule {
    id     = "scratch"
    status = "Enabled"

    filter {
      prefix = "scratch/"
    }

    expiration {
      days = var.scratch_retention_days
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }
}

data "aws_iam_policy_document" "tls_only" {
  count = local.own_count

  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.this[0].arn, "${aws_s3_bucket.this[0].arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  count      = local.own_count
  bucket     = aws_s3_bucket.this[0].id
  policy     = data.aws_iam_policy_document.tls_only[0].json
  depends_on = [aws_s3_bucket_public_access_block.this]
}
