output "cluster" {
  description = "The cluster as `lexray` reads it: `terraform output -json cluster > cluster.json`."
  value = {
    schema   = 1
    name     = var.name
    provider = "aws-ec2"
    region   = var.region
    access = {
      kind              = "ssm"
      autoscaling_group = module.ray.autoscaling_group
      port              = 8265
    }
    token = {
      kind = "secrets_manager"
      arn  = module.ray.token_secret_arn
    }
    ray_version        = var.ray_version
    image              = var.container_image
    python_environment = var.python_environment
    data_url           = module.storage.uris["data"]
    runs_url           = module.storage.uris["runs"]
    scratch_url        = module.storage.uris["scratch"]
    scratch_days       = var.existing_bucket == null ? var.scratch_retention_days : null
    wandb_secret_arn   = aws_secretsmanager_secret.wandb.arn
    pools = [
      for name, pool in local.pools : {
        name           = name
        instance_types = pool.instance_types
        cpus           = pool.cpus
        memory_gib     = pool.memory_gib
        gpus           = pool.gpus
        gpu_memory_gib = pool.gpu_memory_gib
        capacity       = pool.capacity
        min_nodes      = pool.min
        max_nodes      = pool.max
        zone           = pool.zone
        price_usd_hour = pool.price_usd_hour
      }
    ]
    liveness             = var.liveness
    idle_timeout_minutes = var.idle_timeout_minutes
    max_cluster_hours    = var.max_cluster_hours > 0 ? var.max_cluster_hours : null
    max_hourly_cost_usd  = local.max_hourly_cost_usd
    tags                 = local.tags
  }
}

output "region" {
  description = "AWS region."
  value       = var.region
}

output "bucket_uris" {
  description = "Where data, runs and scratch lie."
  value       = module.storage.uris
}

output "token_secret_arn" {
  description = "Secret with Ray's token, made by the head."
  value       = module.ray.token_secret_arn
}

output "wandb_secret_arn" {
  description = "Secret for your W&B key; empty until you put one in."
  value       = aws_secretsmanager_secret.wandb.arn
}

output "ray_cluster_yaml" {
  description = "Ray's cluster file, with which the head's autoscaler runs."
  value       = module.ray.ray_cluster_yaml
}

output "head_user_data" {
  description = "Start-up script of the head, to read."
  value       = module.ray.head_user_data
}

output "worker_user_data" {
  description = "Start-up script of each pool's nodes, to read."
  value       = module.ray.worker_user_data
}

output "log_group" {
  description = "CloudWatch log group of all nodes: Ray's output, and why a start-up failed."
  value       = module.ray.log_group
}

output "connect_command" {
  description = "Opens the dashboard at http://127.0.0.1:8265 without lexray; needs AWS's session-manager-plugin."
  value = join(" ", [
    "aws ssm start-session --region ${var.region}",
    "--target $(aws autoscaling describe-auto-scaling-groups --region ${var.region}",
    "--auto-scaling-group-names ${module.ray.autoscaling_group}",
    "--query 'AutoScalingGroups[0].Instances[0].InstanceId' --output text)",
    "--document-name AWS-StartPortForwardingSession",
    "--parameters portNumber=8265,localPortNumber=8265",
  ])
}

output "max_hourly_cost_usd" {
  description = "What an hour costs at most, with every pool at its largest, by the prices in your variables; no traffic, no storage."
  value       = terraform_data.cost_limit.input
}
