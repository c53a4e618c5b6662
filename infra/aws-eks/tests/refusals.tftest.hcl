# One value that each rule of a variable refuses, before anything is planned.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  region          = "us-east-1"
  container_image = "registry.example.com/lexray:0.1.0"
}

run "refuses_a_bad_value_of_every_variable" {
  command = plan

  variables {
    name                   = "Upper"
    region                 = "everywhere"
    zones                  = ["us-east-1a"]
    vpc_cidr               = "10.0.0.0"
    existing_vpc_id        = "vpc-0123456789abcdef0"
    scratch_retention_days = 0
    log_retention_days     = 15
    container_image        = "registry.example.com/lexray:latest"
    python_environment     = "conda"
    ray_version            = "latest"
    root_volume_gib        = 20
    root_volume_mib_s      = 1000
    readable_buckets       = ["s3://theirs"]
    kms_key_arn            = "alias/ours"
    extra_policy_arns      = ["ReadOnlyAccess"]
    liveness               = { keepalive_s = 0 }
    idle_timeout_minutes   = 0
    max_cluster_hours      = -1
    hourly_cost_limit_usd  = 0
    monthly_budget_usd     = 0
    budget_emails          = ["nobody"]
    kubernetes_version     = "latest"
    allowed_cidrs          = ["0.0.0.0/0"]
    admin_arns             = ["me"]
    core_price_usd_hour    = -1
  }

  expect_failures = [
    var.name,
    var.region,
    var.zones,
    var.vpc_cidr,
    var.existing_vpc_id,
    var.scratch_retention_days,
    var.log_retention_days,
    var.container_image,
    var.python_environment,
    var.ray_version,
    var.root_volume_gib,
    var.root_volume_mib_s,
    var.readable_buckets,
    var.kms_key_arn,
    var.extra_policy_arns,
    var.liveness,
    var.idle_timeout_minutes,
    var.max_cluster_hours,
    var.hourly_cost_limit_usd,
    var.monthly_budget_usd,
    var.budget_emails,
    var.kubernetes_version,
    var.allowed_cidrs,
    var.admin_arns,
    var.core_price_usd_hour,
  ]
}

run "refuses_another_allowed_cidrs" {
  command = plan

  variables {
    allowed_cidrs = ["::/0"]
  }

  expect_failures = [var.allowed_cidrs]
}

run "refuses_pool_name" {
  command = plan

  variables {
    pools = {
      head = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        max            = 1
        price_usd_hour = 30
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_capacity" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        max            = 1
        price_usd_hour = 30
        capacity       = "CHEAP"
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_max" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        max            = 65
        price_usd_hour = 30
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_sizes" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 0
        memory_gib     = 1000
        gpus           = 8
        max            = 1
        price_usd_hour = 30
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_reservation" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        max            = 1
        price_usd_hour = 30
        reservation_id = "cr-0123456789abcdef0"
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_reservation_zone" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p5.48xlarge"]
        cpus           = 190
        memory_gib     = 1900
        gpus           = 8
        max            = 1
        price_usd_hour = 30
        capacity       = "CAPACITY_BLOCK"
        reservation_id = "cr-0123456789abcdef0"
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_block_min" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p5.48xlarge"]
        cpus           = 190
        memory_gib     = 1900
        gpus           = 8
        max            = 1
        price_usd_hour = 30
        capacity       = "CAPACITY_BLOCK"
        reservation_id = "cr-0123456789abcdef0"
        zone           = "us-east-1a"
        min            = 1
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_block_without_reservation" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p5.48xlarge"]
        cpus           = 190
        memory_gib     = 1900
        gpus           = 8
        max            = 1
        price_usd_hour = 30
        capacity       = "CAPACITY_BLOCK"
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_efa_zone" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        max            = 1
        price_usd_hour = 30
        efa_interfaces = 4
        zone           = "any"
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_efa_count" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        max            = 1
        price_usd_hour = 30
        efa_interfaces = 33
        zone           = "us-east-1a"
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_types" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types = []
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        max            = 1
        price_usd_hour = 30
      }
    }
  }

  expect_failures = [var.pools]
}

run "refuses_pool_fallback" {
  command = plan

  variables {
    pools = {
      gpu = {
        instance_types     = ["p4d.24xlarge"]
        cpus               = 94
        memory_gib         = 1000
        gpus               = 8
        max                = 1
        capacity           = "ON_DEMAND"
        on_demand_fallback = true
        price_usd_hour     = 30
      }
    }
  }

  expect_failures = [var.pools]
}
