output "bucket_arn" {
  description = "ARN of the bucket."
  value       = local.arn
}

output "uris" {
  description = "Prefixes of the bucket as URLs: data, runs, scratch."
  value       = { for prefix in ["data", "runs", "scratch"] : prefix => "s3://${local.bucket}/${prefix}" }
}
