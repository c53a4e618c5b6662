variable "name" {
  description = "Prefix of everything's name."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "zones" {
  description = "Availability zones with a private subnet each; the NAT gateway stands in the first."
  type        = list(string)
}

variable "cidr" {
  description = "Addresses of the VPC. Each private subnet is a sixteenth of it."
  type        = string
}

variable "existing_vpc_id" {
  description = "Use this VPC and make none; null makes one."
  type        = string
}

variable "existing_subnet_ids" {
  description = "Private subnets of the existing VPC; empty with a VPC of our own."
  type        = list(string)
}

variable "enable_nat" {
  description = "One NAT gateway: nodes reach the internet (W&B, package indexes). Without it, endpoints for AWS's own services."
  type        = bool
}

variable "enable_flow_logs" {
  description = "Log refused connections of the VPC."
  type        = bool
}

variable "endpoint_services" {
  description = "AWS services that nodes need where there is no NAT gateway."
  type        = list(string)
}

variable "log_retention_days" {
  description = "How long flow logs are kept, in days."
  type        = number
}

variable "private_subnet_tags" {
  description = "Tags of private subnets, beyond the provider's default ones."
  type        = map(string)
  default     = {}
}
