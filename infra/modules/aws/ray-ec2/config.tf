# What the nodes run: Ray's own cluster file, and the scripts of the first boot.

locals {
  # The same names and values as cluster/provisioned/description.py gives; a test holds them together.
  liveness_env = {
    RAY_grpc_client_keepalive_time_ms    = 1000 * var.liveness.keepalive_s
    RAY_grpc_client_keepalive_timeout_ms = 1000 * var.liveness.keepalive_s
    RAY_grpc_keepalive_time_ms           = 1000 * var.liveness.keepalive_s
    RAY_grpc_keepalive_timeout_ms        = 1000 * var.liveness.keepalive_s
    RAY_health_check_initial_delay_ms    = 1000 * var.liveness.health_check_period_s
    RAY_health_check_period_ms           = 1000 * var.liveness.health_check_period_s
    RAY_health_check_timeout_ms          = 1000 * var.liveness.health_check_timeout_s
    RAY_health_check_failure_threshold   = var.liveness.health_check_failures
  }

  # In MiB, as tuning/placement/memory_split.py divides a node's memory; a test holds them together.
  memory_mib = {
    for name, pool in var.pools : name => {
      heap  = floor(pool.memory_gib * 1024) - floor(pool.memory_gib * 1024 * 35 / 100)
      store = floor(pool.memory_gib * 1024 * 30 / 100)
      total = floor(pool.memory_gib * 1024)
    }
  }

  pool_subnet_ids = {
    for name, pool in var.pools : name => pool.zone == null ? var.subnet_ids : lookup(var.subnet_ids_by_zone, pool.zone, var.subnet_ids)
  }

  # Card 0 has the primary interface; further cards have theirs at device 1.
  efa_interfaces = {
    for name, pool in local.efa_pools : name => {
      NetworkInterfaces = [for card in range(pool.efa_interfaces) : {
        DeviceIndex         = card == 0 ? 0 : 1
        NetworkCardIndex    = card
        InterfaceType       = "efa"
        SubnetId            = local.pool_subnet_ids[name][0]
        Groups              = [aws_security_group.nodes.id]
        DeleteOnTermination = true
      }]
    }
  }

  # In the order in which they are tried: each type as the pool asks for it, then, if the pool allows it, on demand.
  markets = {
    SPOT           = { MarketType = "spot", SpotOptions = { SpotInstanceType = "one-time", InstanceInterruptionBehavior = "terminate" } }
    CAPACITY_BLOCK = { MarketType = "capacity-block" }
  }
  launch_ways = {
    for name, pool in var.pools : name => flatten([
      for type in pool.instance_types : concat(
        [merge({ InstanceType = type }, contains(keys(local.markets), pool.capacity) ? { InstanceMarketOptions = local.markets[pool.capacity] } : {})],
        pool.on_demand_fallback ? [{ InstanceType = type }] : [],
      )
    ])
  }

  pool_node_types = {
    for name, pool in var.pools : name => {
      min_workers = pool.min
      max_workers = pool.max
      # Ray adds up memory in bytes.
      resources = merge(
        { CPU = pool.cpus, memory = local.memory_mib[name].heap * 1024 * 1024 },
        pool.gpus > 0 ? { GPU = pool.gpus } : {},
      )
      # Nodes themselves report their zone as RAY_NODE_ZONE; the autoscaler has to know it before there is one.
      labels = pool.zone == null ? {} : { "ray.io/availability-zone" = pool.zone }
      node_config = merge(
        {
          InstanceType = pool.instance_types[0]
          LaunchWays   = local.launch_ways[name]
          SubnetIds    = local.pool_subnet_ids[name]
          LaunchTemplate = {
            LaunchTemplateId = aws_launch_template.pool[name].id
            Version          = tostring(aws_launch_template.pool[name].latest_version)
          }
          TagSpecifications = [{
            ResourceType = "instance"
            Tags         = [for key, value in local.node_tags : { Key = key, Value = value }]
          }]
        },
        lookup(local.efa_interfaces, name, {}),
      )
    }
  }

  ray_cluster = {
    cluster_name         = var.name
    max_workers          = sum(concat([0], [for pool in var.pools : pool.max]))
    idle_timeout_minutes = var.idle_timeout_minutes
    head_node_type       = "head"
    provider = {
      type                        = "external"
      module                      = "lexray.cluster.node.ec2_provider.Ec2Provider"
      region                      = var.region
      use_internal_ips            = true
      cache_stopped_nodes         = false
      disable_node_updaters       = true
      disable_launch_config_check = true
    }
    auth = { ssh_user = "nobody" }
    available_node_types = merge(local.pool_node_types, {
      head = {
        min_workers = 0
        max_workers = 0
        resources   = { CPU = 0 }
        node_config = { InstanceType = var.head_instance_type, SubnetIds = var.subnet_ids }
      }
    })
    # Nodes set themselves up: Ray has nothing to copy or to run there.
    file_mounts               = {}
    cluster_synced_files      = []
    initialization_commands   = []
    setup_commands            = []
    head_setup_commands       = []
    worker_setup_commands     = []
    head_start_ray_commands   = []
    worker_start_ray_commands = []
  }

  ray_cluster_yaml = yamlencode(local.ray_cluster)

  # For an image without lexray: what runs beside jobs, each file of which imports Ray and the standard library alone, and
  # time for the head to install before it starts a job.
  is_bare = var.python_environment == "uv"
  bring_programs = !local.is_bare ? "" : templatefile("${path.module}/templates/programs.sh.tftpl", {
    programs = { for name in ["drain_node.py", "ec2_provider.py", "idle_head.py"] : name => file("${path.module}/programs/${name}") }
  })
  bare_env = local.is_bare ? { PYTHONPATH = "/etc/lexray/public", RAY_JOB_START_TIMEOUT_SECONDS = "1800" } : {}

  node_values = {
    bring_programs    = local.bring_programs
    region            = var.region
    container_image   = var.container_image
    further_env       = merge(local.liveness_env, local.bare_env)
    token_secret_arn  = aws_secretsmanager_secret.token.arn
    address_parameter = aws_ssm_parameter.head_address.name
    log_group         = aws_cloudwatch_log_group.nodes.name
    max_cluster_hours = var.max_cluster_hours
  }

  # The unit lexray-boot runs the script until it succeeds. A worker that has not in this time is only a bill, and ends
  # itself; a head gets as long before its Ray must answer, and ends itself after ten minutes of silence.
  boot_limit_s = 1800
  silence_s    = 600

  head_user_data = templatefile("${path.module}/templates/head.sh.tftpl", merge(local.node_values, {
    prelude          = templatefile("${path.module}/templates/node.sh.tftpl", merge(local.node_values, { gpus = 0, efa = false, memory_bytes = 0, on_failure = "true" }))
    ray_cluster_yaml = local.ray_cluster_yaml
    wandb_secret_arn = var.wandb_secret_arn
    group            = "${var.name}-head"
    stop_when_idle = var.stop_idle_minutes == 0 ? "" : templatefile("${path.module}/templates/idle.sh.tftpl", {
      minutes = var.stop_idle_minutes
      group   = "${var.name}-head"
    })
    grace_s   = local.boot_limit_s
    silence_s = local.silence_s
  }))

  worker_user_data = {
    for name, pool in var.pools : name => templatefile("${path.module}/templates/worker.sh.tftpl", merge(local.node_values, {
      prelude = templatefile("${path.module}/templates/node.sh.tftpl", merge(local.node_values, {
        gpus         = pool.gpus
        efa          = pool.efa_interfaces > 0
        memory_bytes = local.memory_mib[name].total * 1024 * 1024
        on_failure   = "[ \"$(cut -d. -f1 /proc/uptime)\" -lt ${local.boot_limit_s} ] || shutdown -h now"
      }))
      pool        = name
      cpus        = pool.cpus
      gpus        = pool.gpus
      heap_bytes  = local.memory_mib[name].heap * 1024 * 1024
      store_bytes = local.memory_mib[name].store * 1024 * 1024
    }))
  }
}
