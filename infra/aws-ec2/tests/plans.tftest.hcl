# What the templates make of their variables; AWS is made up.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  region          = "us-east-1"
  container_image = "registry.example.com/lexray:0.1.0"
}

run "defaults_start_from_zero_and_cost_what_they_say" {
  assert {
    condition     = output.max_hourly_cost_usd == 2 * 5.672 + 0.192 + 0.05
    error_message = "The highest hourly cost is pools, head and NAT gateway."
  }

  assert {
    condition     = alltrue([for pool in output.cluster.pools : pool.min_nodes == 0 && pool.capacity == "SPOT"])
    error_message = "Pools start from zero, as spot nodes."
  }

  assert {
    condition     = yamldecode(output.ray_cluster_yaml).available_node_types.a10g.node_config.LaunchTemplate.Version == "3"
    error_message = "Ray launches from the newest template, named by its version."
  }

  assert {
    condition     = output.cluster.max_cluster_hours == null && !strcontains(output.head_user_data, "lexray-deadline")
    error_message = "Without a deadline nothing ends the head."
  }
}

run "a_deadline_ends_head_and_workers" {
  variables {
    max_cluster_hours = 12
    stop_schedule     = "0 20 * * *"
  }

  assert {
    condition     = strcontains(output.head_user_data, "--on-active='12h'") && strcontains(output.worker_user_data["a10g"], "shutdown -h \"+$((12 * 60))\"")
    error_message = "Every node has the deadline in its start-up script."
  }
}

run "liveness_reaches_every_node" {
  variables {
    liveness = { keepalive_s = 2.5, health_check_failures = 3 }
  }

  assert {
    condition = alltrue([
      for script in [output.head_user_data, output.worker_user_data["a10g"]] :
      strcontains(script, "RAY_grpc_keepalive_time_ms=2500\n") && strcontains(script, "RAY_health_check_failure_threshold=3\n")
    ])
    error_message = "Liveness is set in milliseconds on head and workers."
  }
}

run "efa_nodes_have_an_interface_for_each_card" {
  variables {
    hourly_cost_limit_usd = 200
    pools = {
      p5 = {
        instance_types = ["p5.48xlarge"]
        cpus           = 190
        memory_gib     = 1900
        gpus           = 8
        capacity       = "RESERVED"
        reservation_id = "cr-0123456789abcdef0"
        max            = 1
        zone           = "us-east-1a"
        efa_interfaces = 32
        price_usd_hour = 98.32
      }
    }
  }

  assert {
    condition = [
      for card in yamldecode(output.ray_cluster_yaml).available_node_types.p5.node_config.NetworkInterfaces :
      "${card.NetworkCardIndex} ${card.DeviceIndex} ${card.InterfaceType}"
    ] == concat(["0 0 efa"], [for card in range(1, 32) : "${card} 1 efa"])
    error_message = "One EFA interface for each network card, the first at device 0 and all others at device 1."
  }

  assert {
    condition     = strcontains(output.worker_user_data["p5"], "--device /dev/infiniband")
    error_message = "The container sees the EFA devices."
  }
}

run "many_large_pools_fit_into_the_user_data" {
  variables {
    hourly_cost_limit_usd = 2000
    pools = { for index in range(12) : "p5-${index}" => {
      instance_types = ["p5.48xlarge"]
      cpus           = 190
      memory_gib     = 1900
      max            = 1
      gpus           = 8
      zone           = "us-east-1a"
      efa_interfaces = 32
      price_usd_hour = 98.32
    } }
  }

  assert {
    condition     = length(output.head_user_data) > 100000 && length(base64gzip(output.head_user_data)) * 3 / 4 < 16384 / 2
    error_message = "Twelve pools with 32 network cards each are ${length(output.head_user_data)} characters, ${length(base64gzip(output.head_user_data)) * 3 / 4} compressed."
  }
}

run "pools_above_the_limit_are_refused" {
  command = plan

  variables {
    hourly_cost_limit_usd = 5
  }

  expect_failures = [terraform_data.cost_limit]
}

run "a_zone_without_a_subnet_is_refused" {
  command = plan

  variables {
    pools = {
      far = {
        instance_types = ["g5.xlarge"]
        cpus           = 4
        memory_gib     = 14
        gpus           = 1
        zone           = "us-east-1f"
        price_usd_hour = 1
      }
    }
  }

  expect_failures = [terraform_data.pool_zones]
}

run "a_network_and_a_bucket_that_exist_are_used" {
  variables {
    existing_vpc_id     = "vpc-0aaaaaaaaaaaaaaaa"
    existing_subnet_ids = ["subnet-0aaaaaaaaaaaaaaaa", "subnet-0bbbbbbbbbbbbbbbb"]
    existing_bucket     = "ours"
  }

  assert {
    condition     = output.bucket_uris["runs"] == "s3://ours/runs"
    error_message = "The bucket that exists is not used."
  }

  assert {
    condition     = output.max_hourly_cost_usd == 2 * 5.672 + 0.192
    error_message = "The network that exists is not used, or something was made in it."
  }
}

run "without_nat_there_are_endpoints" {
  variables {
    enable_nat = false
  }

  assert {
    condition     = abs(output.max_hourly_cost_usd - (2 * 5.672 + 0.192 + 8 * 0.01)) < 0.0001
    error_message = "Endpoints cost 0.01 USD an hour each."
  }
}


run "zones_are_those_that_offer_the_pools_types_and_those_that_pools_name" {
  command = plan

  variables {
    pools = {
      near = {
        instance_types = ["g5.xlarge"]
        cpus           = 4
        memory_gib     = 14
        gpus           = 1
        zone           = "us-east-1a"
        price_usd_hour = 1
      }
    }
  }

  assert {
    condition     = local.zones == tolist(["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"])
    error_message = "Zones are ${join(", ", local.zones)}."
  }
}

run "a_budget_can_be_switched_off" {
  command = plan

  variables {
    monthly_budget_usd = null
  }

  assert {
    condition     = length(module.budget) == 0 && local.zones == tolist(["us-east-1b", "us-east-1c", "us-east-1d"])
    error_message = "A budget is made, or a zone is used that does not offer g5.12xlarge."
  }
}

run "ways_to_launch_are_in_the_stated_order" {
  variables {
    pools = {
      any = {
        instance_types     = ["g5.12xlarge", "g6.12xlarge"]
        cpus               = 46
        memory_gib         = 176
        gpus               = 4
        on_demand_fallback = true
        price_usd_hour     = 5.672
      }
    }
    stop_idle_head_minutes = 45
  }

  assert {
    condition = [
      for way in yamldecode(output.ray_cluster_yaml).available_node_types.any.node_config.LaunchWays :
      "${way.InstanceType} ${try(way.InstanceMarketOptions.MarketType, "on demand")}"
    ] == ["g5.12xlarge spot", "g5.12xlarge on demand", "g6.12xlarge spot", "g6.12xlarge on demand"]
    error_message = "Each type on spot, then on demand, before the next type."
  }

  assert {
    condition     = strcontains(output.head_user_data, "idle_head 45;")
    error_message = "The head does not watch whether it is used."
  }
}

run "an_image_without_lexray_gets_the_programs_of_its_nodes" {
  variables {
    container_image    = "rayproject/ray:2.60.0-py311-gpu"
    python_environment = "uv"
  }

  assert {
    condition     = output.cluster.python_environment == "uv" && output.cluster.image == "rayproject/ray:2.60.0-py311-gpu"
    error_message = "Jobs bring their requirements."
  }

  assert {
    condition = alltrue([
      for script in [output.head_user_data, output.worker_user_data["a10g"]] :
      strcontains(script, "\nPYTHONPATH=/etc/lexray/public\n") && alltrue([
        for name in ["drain_node", "ec2_provider", "idle_head"] :
        strcontains(script, "cat > /etc/lexray/public/lexray/cluster/node/${name}.py <<'PROGRAM'\n\"\"\"")
      ])
    ])
    error_message = "Head and workers have what they run beside jobs."
  }

  assert {
    condition     = length(base64gzip(output.head_user_data)) * 3 / 4 < 16384 * 3 / 4
    error_message = "The head's start-up script has ${length(base64gzip(output.head_user_data)) * 3 / 4} bytes compressed."
  }
}
