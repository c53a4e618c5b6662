output "role_name" {
  description = "Name of the role, to attach further policies."
  value       = aws_iam_role.this.name
}

output "role_arn" {
  description = "ARN of the role."
  value       = aws_iam_role.this.arn
}

output "instance_profile_arn" {
  description = "ARN of the instance profile; null for pods."
  value       = one(aws_iam_instance_profile.this[*].arn)
}
