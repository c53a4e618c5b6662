output "cluster" {
  description = "The cluster as `lexray` reads it: `terraform output -json cluster > cluster.json`."
  value = {
    schema   = 1
    name     = var.name
    provider = "aws-eks"
    region   = var.region
    access = {
      kind        = "kubectl"
      namespace   = local.namespace
      service     = "${var.name}-head-svc"
      port        = 8265
      eks_cluster = module.eks.cluster_name
    }
    token = {
      kind = "kubernetes_secret"
      name = var.name
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

output "wandb_secret_arn" {
  description = "Secret for your W&B key; empty until you put one in."
  value       = aws_secretsmanager_secret.wandb.arn
}

output "eks_cluster_name" {
  description = "Name of the EKS cluster."
  value       = module.eks.cluster_name
}

output "kubernetes_values" {
  description = "Values of cluster-autoscaler's chart that are this cluster's own, as YAML: infra/kubernetes/install reads them."
  value = yamlencode({
    autoDiscovery = { clusterName = module.eks.cluster_name }
    awsRegion     = var.region
    rbac          = { serviceAccount = { name = module.eks.autoscaler_service_account } }
    extraArgs = {
      scale-down-unneeded-time   = "${var.idle_timeout_minutes}m"
      scale-down-delay-after-add = "${var.idle_timeout_minutes}m"
    }
  })
}

output "connect_command" {
  description = "Opens the dashboard at http://127.0.0.1:8265 without lexray."
  value = join(" && ", [
    "aws eks update-kubeconfig --region ${var.region} --name ${module.eks.cluster_name}",
    "kubectl --namespace ${local.namespace} port-forward service/${var.name}-head-svc 8265:8265",
  ])
}

output "max_hourly_cost_usd" {
  description = "What an hour costs at most, with every pool at its largest, by the prices in your variables; no traffic, no storage."
  value       = terraform_data.cost_limit.input
}
