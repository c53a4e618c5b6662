variable "name" {
  description = "Prefix of the bucket's name."
  type        = string
}

variable "bucket_suffix" {
  description = "What makes the bucket's name unique in the world: account and region."
  type        = string
}

variable "existing_bucket" {
  description = "Use this bucket and make none; null makes one."
  type        = string
}

variable "scratch_retention_days" {
  description = "After how many days objects under scratch/ go."
  type        = number
}

variable "force_destroy" {
  description = "Destroy the bucket with everything in it."
  type        = bool
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the bucket; null: S3's own keys."
  type        = string
}
