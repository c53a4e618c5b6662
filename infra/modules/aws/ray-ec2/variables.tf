variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "account_id" {
  description = "AWS account."
  type        = string
}

variable "partition" {
  description = "AWS partition, such as aws."
  type        = string
}

variable "tags" {
  description = "Tags of instances and volumes, which the provider's default tags do not reach."
  type        = map(string)
}

variable "cluster_tag_key" {
  description = "Tag, with the cluster's name as its value, by which the head knows its own nodes."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the nodes."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, in the order of preference."
  type        = list(string)
}

variable "subnet_ids_by_zone" {
  description = "Private subnets of each zone, for pools that name one."
  type        = map(list(string))
}

variable "ami_id" {
  description = "Machine image with Docker, the AWS command line and NVIDIA's driver and container toolkit."
  type        = string
}

variable "container_image" {
  description = "Image from which Ray runs on every node."
  type        = string
}

variable "python_environment" {
  description = "`image`: container_image has lexray's requirements. `uv`: it has Ray alone."
  type        = string
}

variable "head_instance_type" {
  description = "Instance type of the head, which runs no work of Ray's but the sweep's driver."
  type        = string
}

variable "root_volume_gib" {
  description = "Size of each node's root volume, in GiB."
  type        = number
}

variable "root_volume_mib_s" {
  description = "Throughput of each node's root volume, in MiB/s."
  type        = number
}

variable "pools" {
  description = "Pools of nodes by name, as the root declares them."
  type = map(object({
    instance_types     = list(string)
    cpus               = number
    memory_gib         = number
    gpus               = number
    capacity           = string
    min                = number
    max                = number
    zone               = string
    efa_interfaces     = number
    reservation_id     = string
    on_demand_fallback = bool
    gpu_memory_gib     = number
    price_usd_hour     = number
  }))
}

variable "liveness" {
  description = "After how long a node that vanished counts as lost, in seconds and failed checks."
  type = object({
    keepalive_s            = number
    health_check_period_s  = number
    health_check_timeout_s = number
    health_check_failures  = number
  })
}

variable "idle_timeout_minutes" {
  description = "After how many minutes without work a node is given back."
  type        = number
}

variable "max_cluster_hours" {
  description = "Hours after which a node, the head too, ends itself whatever it does; 0 is never."
  type        = number
}

variable "stop_schedule" {
  description = "When the head is stopped, as a cron expression in UTC; null is never."
  type        = string
}

variable "log_retention_days" {
  description = "How long the nodes' logs are kept, in days."
  type        = number
}

variable "bucket_arn" {
  description = "Bucket of data/, runs/ and scratch/."
  type        = string
}

variable "data_writable" {
  description = "Let nodes write data/ too."
  type        = bool
}

variable "readable_buckets" {
  description = "Names of further buckets that may be read."
  type        = list(string)
}

variable "kms_key_arn" {
  description = "KMS key of the bucket; null where S3's own keys encrypt it."
  type        = string
}

variable "extra_policy_arns" {
  description = "IAM policies that the role gets besides its own."
  type        = list(string)
}

variable "stop_idle_minutes" {
  description = "Stop the head after so many minutes without a job and without a node; 0 is never."
  type        = number
}

variable "egress_ports" {
  description = "TCP ports that nodes may reach outside, beyond 443."
  type        = list(number)
}

variable "wandb_secret_arn" {
  description = "Secret that holds the W&B key, if the operator put one in."
  type        = string
}
