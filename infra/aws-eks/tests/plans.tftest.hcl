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
    condition     = output.max_hourly_cost_usd == 2 * 5.672 + 0.1 + 2 * 0.192 + 0.05
    error_message = "The highest hourly cost is pools, control plane, two core nodes and NAT gateway."
  }

  assert {
    condition     = alltrue([for pool in output.cluster.pools : pool.min_nodes == 0 && pool.capacity == "SPOT"])
    error_message = "Pools start from zero, as spot nodes."
  }

  assert {
    condition     = yamldecode(output.kubernetes_values).extraArgs["scale-down-unneeded-time"] == "10m"
    error_message = "cluster-autoscaler gives nodes back after the idle timeout."
  }
}

run "efa_and_administrators_are_taken" {
  variables {
    hourly_cost_limit_usd = 200
    admin_arns            = ["arn:aws:iam::123456789012:role/admin"]
    allowed_cidrs         = ["203.0.113.7/32"]
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
    condition     = output.cluster.pools[0].zone == "us-east-1a" && output.cluster.pools[0].capacity == "RESERVED"
    error_message = "The pool keeps its zone and capacity."
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
    condition     = output.max_hourly_cost_usd == 2 * 5.672 + 0.1 + 2 * 0.192
    error_message = "The network that exists is not used, or something was made in it."
  }
}

run "without_nat_there_are_endpoints" {
  variables {
    enable_nat = false
  }

  assert {
    condition     = abs(output.max_hourly_cost_usd - (2 * 5.672 + 0.1 + 2 * 0.192 + 9 * 0.01)) < 0.0001
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

run "an_image_without_lexray_is_described_as_such" {
  command = plan

  variables {
    container_image    = "rayproject/ray:2.60.0-py311-gpu"
    python_environment = "uv"
  }

  assert {
    condition     = output.cluster.python_environment == "uv"
    error_message = "Jobs bring their requirements."
  }
}
