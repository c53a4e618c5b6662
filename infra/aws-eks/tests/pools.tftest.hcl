# Pools of every kind, for tests/infra/test_node_pools.py to look at what their nodes would be; AWS is made up.

mock_provider "aws" {
  source = "./tests/mocks"
}

run "pools_of_every_kind" {
  variables {
    region                = "us-east-1"
    container_image       = "registry.example.com/lexray:0.1.0"
    hourly_cost_limit_usd = 400
    kms_key_arn           = "arn:aws:kms:us-east-1:123456789012:key/ours"
    extra_policy_arns     = ["arn:aws:iam::123456789012:policy/read-another-bucket"]
    pools = {
      cpu  = { instance_types = ["m6i.2xlarge"], cpus = 7, memory_gib = 28, capacity = "ON_DEMAND", price_usd_hour = 0.4 }
      a10g = { instance_types = ["g5.12xlarge"], cpus = 46, memory_gib = 176, gpus = 4, price_usd_hour = 5.672 }
      wide = { instance_types = ["g5.12xlarge"], cpus = 46, memory_gib = 176, gpus = 4, zone = "any", price_usd_hour = 5.672 }
      a100 = {
        instance_types = ["p4d.24xlarge"]
        cpus           = 94
        memory_gib     = 1000
        gpus           = 8
        capacity       = "RESERVED"
        reservation_id = "cr-0123456789abcdef0"
        zone           = "us-east-1a"
        efa_interfaces = 4
        price_usd_hour = 21.96
      }
      h100 = {
        instance_types = ["p5.48xlarge"]
        cpus           = 190
        memory_gib     = 1900
        gpus           = 8
        capacity       = "CAPACITY_BLOCK"
        reservation_id = "cr-0fedcba9876543210"
        zone           = "us-east-1b"
        efa_interfaces = 32
        price_usd_hour = 31.46
      }
    }
  }

  assert {
    condition     = length(output.cluster.pools) == 5
    error_message = "Every pool is described."
  }
}
