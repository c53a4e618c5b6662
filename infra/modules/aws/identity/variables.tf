variable "name" {
  description = "Name of the role."
  type        = string
}

variable "service" {
  description = "Who takes the role: `ec2` (an instance) or `pods.eks` (a service account, by Pod Identity)."
  type        = string

  validation {
    condition     = contains(["ec2", "pods.eks"], var.service)
    error_message = "service must be ec2 or pods.eks."
  }
}

variable "bucket_arn" {
  description = "Bucket of data/, runs/ and scratch/."
  type        = string
}

variable "data_writable" {
  description = "Let the role write data/ too, to harvest on the cluster."
  type        = bool
}

variable "readable_secret_arns" {
  description = "Secrets that the role may read, by a name that is known before they exist."
  type        = map(string)
}

variable "partition" {
  description = "AWS partition, such as aws."
  type        = string
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
