# Ray on EC2: an always-on head, and pools of nodes that Ray's autoscaler launches for work and gives back after it.

provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394:Few zones are taken, however many there are; name `zones` to pin them.
  state = "available"

  # Local zones have neither GPUs to speak of nor every service.
  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == null ? 1 : 0
  name  = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
}

# The image that the first apply found: a newer one that AWS publishes changes nothing by itself.
resource "terraform_data" "ami" {
  count = var.ami_id == null ? 1 : 0
  input = data.aws_ssm_parameter.ami[0].insecure_value

  lifecycle {
    ignore_changes = [input]
  }
}

# Asked only where the zones are chosen here.
data "aws_ec2_instance_type_offerings" "pool" {
  for_each      = toset(var.zones == null && var.existing_vpc_id == null ? local.pool_types : [])
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = [each.value]
  }
}

locals {
  tag_key    = "lexray-cluster"
  tags       = merge(var.tags, { (local.tag_key) = var.name })
  account_id = data.aws_caller_identity.current.account_id

  # Zones that offer every type of every pool; those that pools name come first. A network needs two, whatever they offer.
  pool_types = distinct(flatten([for pool in var.pools : pool.instance_types]))
  offering = [
    for zone in data.aws_availability_zones.available.names : zone
    if alltrue([for offers in data.aws_ec2_instance_type_offerings.pool : contains(offers.locations, zone)])
  ]
  named     = [for zone in data.aws_availability_zones.available.names : zone if contains([for pool in var.pools : coalesce(pool.zone, "any")], zone)]
  preferred = distinct(concat(local.named, local.offering))
  chosen    = slice(distinct(concat(local.preferred, data.aws_availability_zones.available.names)), 0, max(2, min(4, length(local.preferred))))
  zones     = var.zones == null ? local.chosen : var.zones
  ami_id    = var.ami_id == null ? one(terraform_data.ami[*].output) : var.ami_id

  # From here on a null zone stands for all of them.
  pools = { for name, pool in var.pools : name => merge(pool, { zone = pool.zone == "any" ? null : coalesce(pool.zone, module.network.zones[0]) }) }

  pools_price_usd     = sum(concat([0], [for pool in var.pools : pool.max * pool.price_usd_hour]))
  standing_price_usd  = var.head_price_usd_hour + module.network.hourly_price_usd
  max_hourly_cost_usd = local.pools_price_usd + local.standing_price_usd
}

module "network" {
  source              = "../modules/aws/network"
  name                = var.name
  region              = var.region
  zones               = local.zones
  cidr                = var.vpc_cidr
  existing_vpc_id     = var.existing_vpc_id
  existing_subnet_ids = var.existing_subnet_ids
  enable_nat          = var.enable_nat
  enable_flow_logs    = var.enable_flow_logs
  log_retention_days  = var.log_retention_days
  endpoint_services = [
    "autoscaling", "ec2", "ecr.api", "ecr.dkr", "logs", "secretsmanager", "ssm", "ssmmessages",
  ]
}

module "storage" {
  source                 = "../modules/aws/storage"
  name                   = var.name
  bucket_suffix          = "${local.account_id}-${var.region}"
  existing_bucket        = var.existing_bucket
  scratch_retention_days = var.scratch_retention_days
  force_destroy          = var.force_destroy_bucket
  kms_key_arn            = var.kms_key_arn
}

# A container without content: put your key in with `aws secretsmanager put-secret-value`, and no state ever holds it.
resource "aws_secretsmanager_secret" "wandb" {
  #checkov:skip=CKV2_AWS_57:A W&B key is renewed by its owner, and Ray's token with the cluster: running nodes could not follow.
  #checkov:skip=CKV_AWS_149:Encrypted by the service's own key; a customer key costs 1 USD a month and keeps nobody out whom IAM lets in.
  name                    = "/lexray/${var.name}/wandb-api-key"
  description             = "W&B key of the cluster, put in by its operator"
  recovery_window_in_days = 0
}

module "ray" {
  source               = "../modules/aws/ray-ec2"
  name                 = var.name
  region               = var.region
  account_id           = local.account_id
  partition            = data.aws_partition.current.partition
  tags                 = local.tags
  cluster_tag_key      = local.tag_key
  vpc_id               = module.network.vpc_id
  subnet_ids           = module.network.private_subnet_ids
  subnet_ids_by_zone   = module.network.subnet_ids_by_zone
  ami_id               = local.ami_id
  container_image      = var.container_image
  python_environment   = var.python_environment
  head_instance_type   = var.head_instance_type
  root_volume_gib      = var.root_volume_gib
  root_volume_mib_s    = var.root_volume_mib_s
  pools                = local.pools
  liveness             = var.liveness
  idle_timeout_minutes = var.idle_timeout_minutes
  max_cluster_hours    = var.max_cluster_hours
  stop_schedule        = var.stop_schedule
  stop_idle_minutes    = var.stop_idle_head_minutes
  egress_ports         = var.egress_ports
  log_retention_days   = var.log_retention_days
  bucket_arn           = module.storage.bucket_arn
  data_writable        = var.data_writable
  readable_buckets     = var.readable_buckets
  kms_key_arn          = var.kms_key_arn
  extra_policy_arns    = var.extra_policy_arns
  wandb_secret_arn     = aws_secretsmanager_secret.wandb.arn
}

module "budget" {
  count              = var.monthly_budget_usd == null ? 0 : 1
  source             = "../modules/aws/budget"
  name               = var.name
  tag_key            = local.tag_key
  monthly_budget_usd = var.monthly_budget_usd
  emails             = var.budget_emails
}

# Checked in the plan, before anything exists.
resource "terraform_data" "cost_limit" {
  input = local.max_hourly_cost_usd

  lifecycle {
    precondition {
      condition     = local.max_hourly_cost_usd <= var.hourly_cost_limit_usd
      error_message = "Everything at its largest costs ${format("%.2f", local.max_hourly_cost_usd)} USD an hour, above hourly_cost_limit_usd = ${var.hourly_cost_limit_usd}: lower max of a pool, or raise the limit."
    }
  }
}

resource "terraform_data" "pool_zones" {
  input = keys(module.network.subnet_ids_by_zone)

  lifecycle {
    precondition {
      condition     = alltrue([for pool in local.pools : pool.zone == null || contains(keys(module.network.subnet_ids_by_zone), coalesce(pool.zone, "none"))])
      error_message = "pools: zones are ${join(", ", compact([for pool in local.pools : pool.zone]))}, and the network has private subnets in ${join(", ", keys(module.network.subnet_ids_by_zone))}."
    }
  }
}
