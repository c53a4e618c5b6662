variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "tags" {
  description = "Tags of instances and volumes, which the provider's default tags do not reach."
  type        = map(string)
}

variable "partition" {
  description = "AWS partition, such as aws."
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

variable "kubernetes_version" {
  description = "Version of Kubernetes; null takes EKS's own default."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the cluster."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of control plane and nodes, in two zones at least."
  type        = list(string)
}

variable "subnet_ids_by_zone" {
  description = "Private subnets of each zone, for pools that name one."
  type        = map(list(string))
}

variable "allowed_cidrs" {
  description = "Who may reach the API from outside the VPC; nobody, when empty."
  type        = list(string)
}

variable "admin_arns" {
  description = "Roles or users that administrate the cluster, besides who made it."
  type        = list(string)
}

variable "core_instance_type" {
  description = "Instance type of the two nodes that carry the head and what Kubernetes needs."
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
    instance_types = list(string)
    cpus           = number
    memory_gib     = number
    gpus           = number
    capacity       = string
    min            = number
    max            = number
    zone           = string
    efa_interfaces = number
    reservation_id = string
    gpu_memory_gib = number
    price_usd_hour = number
  }))
}

variable "kms_key_arn" {
  description = "Key for Kubernetes' secrets and nodes' disks; null makes one for the secrets."
  type        = string
}

variable "namespace" {
  description = "Kubernetes namespace of the Ray cluster."
  type        = string
}

variable "service_account" {
  description = "Kubernetes service account of the Ray pods."
  type        = string
}

variable "workload_role_arn" {
  description = "Role of that service account."
  type        = string
}

variable "log_retention_days" {
  description = "How long the control plane's logs are kept, in days."
  type        = number
}
