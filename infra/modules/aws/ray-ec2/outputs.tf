output "autoscaling_group" {
  description = "Group of one that keeps the head."
  value       = aws_autoscaling_group.head.name
}

output "token_secret_arn" {
  description = "Secret where the head puts Ray's token."
  value       = aws_secretsmanager_secret.token.arn
}

output "ray_cluster_yaml" {
  description = "Ray's cluster file, with which the head's autoscaler runs."
  value       = local.ray_cluster_yaml
}

output "head_user_data" {
  description = "Start-up script of the head."
  value       = local.head_user_data
}

output "worker_user_data" {
  description = "Start-up script of each pool's nodes."
  value       = local.worker_user_data
}

output "log_group" {
  description = "Log group of all nodes."
  value       = aws_cloudwatch_log_group.nodes.name
}
