variable "name" {
  description = "Name of the cluster: prefix of everything's name, and the value of its tag."
  type        = string
  default     = "lexray"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "name is ${var.name}: use 2 to 31 lower-case letters, digits and dashes, a letter first."
  }
}

variable "region" {
  description = "AWS region, such as us-east-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is ${var.region}: use one such as us-east-1."
  }
}

variable "tags" {
  description = "Tags of everything, beyond `lexray-cluster`."
  type        = map(string)
  default     = {}
}

variable "zones" {
  description = "Availability zones with a private subnet each; null takes those that offer every instance type of the pools, at most 4. Pools may name one of them."
  type        = list(string)
  default     = null

  validation {
    condition     = var.zones == null ? true : length(var.zones) >= 2 && length(var.zones) <= 15
    error_message = "zones has ${length(coalesce(var.zones, []))} entries: name 2 to 15."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the VPC that is made."
  type        = string
  default     = "10.42.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 4, 0))
    error_message = "vpc_cidr is ${var.vpc_cidr}: use a block such as 10.42.0.0/16."
  }
}

variable "existing_vpc_id" {
  description = "Use this VPC and make none. It must have a way out by HTTPS and an S3 gateway endpoint."
  type        = string
  default     = null

  validation {
    condition     = (var.existing_vpc_id == null) == (length(var.existing_subnet_ids) == 0)
    error_message = "existing_vpc_id and existing_subnet_ids go together: give both or neither."
  }
}

variable "existing_subnet_ids" {
  description = "Private subnets of `existing_vpc_id`."
  type        = list(string)
  default     = []
}

variable "existing_bucket" {
  description = "Keep data, runs and scratch in this bucket and make none."
  type        = string
  default     = null
}

variable "force_destroy_bucket" {
  description = "Let destroy delete the bucket with everything in it."
  type        = bool
  default     = false
}

variable "scratch_retention_days" {
  description = "After how many days objects under scratch/ go."
  type        = number
  default     = 14

  validation {
    condition     = var.scratch_retention_days >= 1 && floor(var.scratch_retention_days) == var.scratch_retention_days
    error_message = "scratch_retention_days is ${var.scratch_retention_days}: use a whole number of at least 1."
  }
}

variable "data_writable" {
  description = "Let the cluster write data/ too, to harvest on it. It can always write runs/ and scratch/."
  type        = bool
  default     = false
}

variable "readable_buckets" {
  description = "Names of further buckets that the cluster may read, wherever datasets lie."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for bucket in var.readable_buckets : can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", bucket))])
    error_message = "readable_buckets has ${join(", ", var.readable_buckets)}: give names of buckets, without s3:// and without a folder."
  }
}

variable "kms_key_arn" {
  description = "KMS key of yours for the bucket: encrypts the one that is made, and the cluster may use it for one that exists. On EKS also for Kubernetes' secrets and the nodes' disks: its policy lets AWSServiceRoleForAutoScaling use it and make grants. Null: keys of S3 and of the account, on EKS one that is made for the secrets."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null ? true : can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$", var.kms_key_arn))
    error_message = "kms_key_arn is ${coalesce(var.kms_key_arn, "unset")}: use the ARN of a key, such as arn:aws:kms:us-east-1:123456789012:key/ID."
  }
}

variable "extra_policy_arns" {
  description = "IAM policies, by ARN, that the role of what runs lexray gets besides its own."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.extra_policy_arns : can(regex("^arn:[a-z-]+:iam::([0-9]{12}|aws):policy/", arn))])
    error_message = "extra_policy_arns has ${join(", ", var.extra_policy_arns)}: give ARNs of policies, such as arn:aws:iam::123456789012:policy/ours."
  }
}

variable "enable_nat" {
  description = "One NAT gateway (about 36 USD a month): nodes reach W&B and package indexes. Without it, endpoints for AWS's services alone."
  type        = bool
  default     = true
}

variable "enable_flow_logs" {
  description = "Log refused connections of the VPC that is made."
  type        = bool
  default     = true
}

variable "log_retention_days" {
  description = "How long logs are kept, in days; one of the values that CloudWatch knows."
  type        = number
  default     = 14

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365], var.log_retention_days)
    error_message = "log_retention_days is ${var.log_retention_days}: use 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180 or 365."
  }
}

variable "container_image" {
  description = "Image of infra/image that you pushed, with a tag or digest, such as ACCOUNT.dkr.ecr.REGION.amazonaws.com/lexray:0.1.0; or, with `python_environment = \"uv\"`, a public one of Ray, such as rayproject/ray:2.60.0-py311-gpu."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9._:/-]*(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$", var.container_image)) && !endswith(var.container_image, ":latest")
    error_message = "container_image is ${var.container_image}: pin it by a tag other than latest, or by digest."
  }
}

variable "python_environment" {
  description = "`image`: container_image has lexray's requirements. `uv`: it has Ray alone, and each node installs them when a job begins."
  type        = string
  default     = "image"

  validation {
    condition     = contains(["image", "uv"], var.python_environment)
    error_message = "python_environment is ${var.python_environment}: use image or uv."
  }
}

variable "ray_version" {
  description = "Version of Ray in the image; `lexray doctor` compares."
  type        = string
  default     = "2.60.0"

  validation {
    condition     = can(regex("^[0-9]+[.][0-9]+[.][0-9]+$", var.ray_version))
    error_message = "ray_version is ${var.ray_version}: use an exact one such as 2.60.0."
  }
}

variable "pools" {
  description = <<-EOT
    Pools of nodes by name. `cpus`, `memory_gib`, `gpus`: what Ray may use of a node; of `memory_gib` 65 % is for
    processes and 30 % for Ray's object store. `capacity`: SPOT, ON_DEMAND, or one of
    RESERVED and CAPACITY_BLOCK with the `reservation_id` and `zone` of the reservation. `min`, `max`: how many nodes; from zero
    unless you say otherwise. `zone`: the zone of all nodes; null takes the first of `zones`, `any` spreads them over all (more
    spot capacity, but the ranks of a trial never span zones). `efa_interfaces`: EFA cards of a node; needs the image built with
    `--target efa`. `gpu_memory_gib`: of one GPU, for plans. `price_usd_hour`: the most that a node costs in an hour; a spot node
    never costs more than the on-demand price. `on_demand_fallback` is of aws-ec2.
  EOT
  type = map(object({
    instance_types     = list(string)
    cpus               = number
    memory_gib         = number
    gpus               = optional(number, 0)
    capacity           = optional(string, "SPOT")
    min                = optional(number, 0)
    max                = optional(number, 2)
    zone               = optional(string)
    efa_interfaces     = optional(number, 0)
    reservation_id     = optional(string)
    on_demand_fallback = optional(bool, false)
    gpu_memory_gib     = optional(number)
    price_usd_hour     = number
  }))
  default = {
    a10g = {
      instance_types = ["g5.12xlarge"]
      cpus           = 46
      memory_gib     = 176
      gpus           = 4
      gpu_memory_gib = 24
      price_usd_hour = 5.672
    }
  }

  validation {
    condition     = alltrue([for name in keys(var.pools) : can(regex("^[a-z][a-z0-9-]{1,30}$", name)) && !contains(["head", "core"], name)])
    error_message = "pools has ${join(", ", keys(var.pools))}: names are 2 to 31 lower-case letters, digits and dashes, a letter first, and neither head nor core."
  }

  validation {
    condition     = alltrue([for pool in var.pools : contains(["SPOT", "ON_DEMAND", "RESERVED", "CAPACITY_BLOCK"], pool.capacity)])
    error_message = "pools.capacity is one of ${join(", ", [for pool in var.pools : pool.capacity])}: use SPOT, ON_DEMAND, RESERVED or CAPACITY_BLOCK."
  }

  validation {
    condition     = alltrue([for pool in var.pools : 0 <= pool.min && pool.min <= pool.max && 1 <= pool.max && pool.max <= 64])
    error_message = "pools: each needs 0 <= min <= max and 1 <= max <= 64; given ${join(", ", [for name, pool in var.pools : "${name}: min ${pool.min}, max ${pool.max}"])}."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.cpus >= 1 && pool.memory_gib >= 1 && pool.gpus >= 0 && pool.price_usd_hour >= 0])
    error_message = "pools: cpus and memory_gib are at least 1, gpus and price_usd_hour at least 0."
  }

  validation {
    condition     = alltrue([for pool in var.pools : contains(["RESERVED", "CAPACITY_BLOCK"], pool.capacity) == (pool.reservation_id != null)])
    error_message = "pools: reservation_id goes with capacity RESERVED or CAPACITY_BLOCK; spot and on-demand nodes have no reservation."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.reservation_id == null || (coalesce(pool.zone, "any") != "any" && length(pool.instance_types) == 1)])
    error_message = "pools: ${join(", ", [for name, pool in var.pools : name if pool.reservation_id != null])} with a reservation_id: give the zone and the single instance type of the reservation."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.capacity != "CAPACITY_BLOCK" || pool.min == 0])
    error_message = "pools: ${join(", ", [for name, pool in var.pools : "${name}: min ${pool.min}" if pool.capacity == "CAPACITY_BLOCK"])}: use min 0 with CAPACITY_BLOCK, whose nodes exist between the start and the end of the block alone."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.efa_interfaces == 0 || (pool.zone != "any" && length(pool.instance_types) == 1)])
    error_message = "pools: efa_interfaces need a single zone, not any, and a single instance type."
  }

  validation {
    condition     = alltrue([for pool in var.pools : pool.efa_interfaces >= 0 && pool.efa_interfaces <= 32])
    error_message = "pools: efa_interfaces is 0 to 32, one for each network card (p4d has 4, p5 has 32)."
  }

  validation {
    condition     = alltrue([for pool in var.pools : length(pool.instance_types) >= 1])
    error_message = "pools: each needs at least one of instance_types; several are taken in the order of preference."
  }

  validation {
    condition     = alltrue([for pool in var.pools : !pool.on_demand_fallback])
    error_message = "pools: a node group of EKS is spot or on demand; make a second pool ON_DEMAND instead of on_demand_fallback (${join(", ", [for name, pool in var.pools : name if pool.on_demand_fallback])})."
  }
}

variable "root_volume_gib" {
  description = "Size of each node's root volume, in GiB: image, and spilled objects where an instance has no disks of its own."
  type        = number
  default     = 200

  validation {
    condition     = var.root_volume_gib >= 75
    error_message = "root_volume_gib is ${var.root_volume_gib}: machine and container image need at least 75."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes, such as 1.33; null takes EKS's own default."
  type        = string
  default     = null

  validation {
    condition     = var.kubernetes_version == null ? true : can(regex("^1[.][0-9]+$", var.kubernetes_version))
    error_message = "kubernetes_version is ${coalesce(var.kubernetes_version, "unset")}: use one such as 1.33."
  }
}

variable "allowed_cidrs" {
  description = "Who may reach the Kubernetes API from outside the VPC, such as your own address as 203.0.113.7/32; nobody, when empty."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.allowed_cidrs : can(cidrhost(cidr, 0)) && try(tonumber(split("/", cidr)[1]) >= 8, false)])
    error_message = "allowed_cidrs has ${join(", ", var.allowed_cidrs)}: name blocks of /8 or smaller, never the whole internet."
  }
}

variable "admin_arns" {
  description = "Roles or users that administrate the cluster, besides who makes it."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.admin_arns : startswith(arn, "arn:")])
    error_message = "admin_arns has ${join(", ", var.admin_arns)}: give ARNs of IAM roles or users."
  }
}

variable "core_instance_type" {
  description = "Instance type of the two nodes that are always there: they carry the head, the operator and DNS."
  type        = string
  default     = "m6i.xlarge"
}

variable "core_price_usd_hour" {
  description = "What one of these two nodes costs in an hour, on demand."
  type        = number
  default     = 0.192

  validation {
    condition     = var.core_price_usd_hour >= 0
    error_message = "core_price_usd_hour is ${var.core_price_usd_hour}: use at least 0."
  }
}

variable "root_volume_mib_s" {
  description = "Throughput of each node's root volume, in MiB/s: how soon a new node has its image. Above 125 it costs 0.04 USD a MiB/s and month."
  type        = number
  default     = 500

  validation {
    condition     = var.root_volume_mib_s >= 125 && var.root_volume_mib_s <= 750
    error_message = "root_volume_mib_s is ${var.root_volume_mib_s}: use 125 to 750."
  }
}

variable "liveness" {
  description = "After how long a node that vanished without a word counts as lost: seconds, and failed checks in a row."
  type = object({
    keepalive_s            = optional(number, 10)
    health_check_period_s  = optional(number, 5)
    health_check_timeout_s = optional(number, 10)
    health_check_failures  = optional(number, 5)
  })
  default = {}

  validation {
    condition     = alltrue([for value in values(var.liveness) : value > 0]) && floor(var.liveness.health_check_failures) == var.liveness.health_check_failures
    error_message = "liveness: every value is above 0, and health_check_failures a whole number."
  }
}

variable "idle_timeout_minutes" {
  description = "After how many minutes without work a node is given back."
  type        = number
  default     = 10

  validation {
    condition     = var.idle_timeout_minutes > 0
    error_message = "idle_timeout_minutes is ${var.idle_timeout_minutes}: use more than 0."
  }
}

variable "max_cluster_hours" {
  description = "Whole hours after which the cluster ends its work whatever it does; 0 is never. On EC2 every node ends itself, the head too; on Kubernetes it is the deadline of jobs."
  type        = number
  default     = 0

  validation {
    condition     = var.max_cluster_hours >= 0 && floor(var.max_cluster_hours) == var.max_cluster_hours
    error_message = "max_cluster_hours is ${var.max_cluster_hours}: use a whole number of hours, or 0 for never."
  }
}

variable "hourly_cost_limit_usd" {
  description = "Refuse to apply when everything at its largest would cost more than this in an hour."
  type        = number
  default     = 50

  validation {
    condition     = var.hourly_cost_limit_usd > 0
    error_message = "hourly_cost_limit_usd is ${var.hourly_cost_limit_usd}: use more than 0."
  }
}

variable "monthly_budget_usd" {
  description = "Cost in a calendar month that the alarms refer to; null makes no budget, as where the account may not make any."
  type        = number
  default     = 500

  validation {
    condition     = var.monthly_budget_usd == null ? true : var.monthly_budget_usd > 0
    error_message = "monthly_budget_usd is ${coalesce(var.monthly_budget_usd, 0)}: use more than 0, or null for no budget."
  }
}

variable "budget_emails" {
  description = "Who is told at 50, 80 and 100 % of the budget, and when 100 % is foreseen."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.budget_emails : can(regex("^[^@ ]+@[^@ ]+$", email))])
    error_message = "budget_emails: ${join(", ", var.budget_emails)} are not all addresses."
  }
}
