# One launch template for each pool, from which Ray's autoscaler on the head launches nodes. Instance type and market (spot
# or on demand) are in Ray's configuration: a launch may replace what a template says, but not take its market away.

locals {
  efa_pools = { for name, pool in var.pools : name => pool if pool.efa_interfaces > 0 }
  # AWS itself places the nodes of a Capacity Block close together.
  grouped_pools = { for name, pool in local.efa_pools : name => pool if pool.capacity != "CAPACITY_BLOCK" }
}

# Nodes that speak EFA stand close together.
resource "aws_placement_group" "pool" {
  for_each = local.grouped_pools
  name     = "${var.name}-${each.key}"
  strategy = "cluster"
}

resource "aws_launch_template" "pool" {
  for_each      = var.pools
  name          = "${var.name}-pool-${each.key}"
  image_id      = var.ami_id
  instance_type = each.value.instance_types[0]
  user_data     = base64gzip(local.worker_user_data[each.key])
  # Interfaces of an EFA pool are named in Ray's configuration, and bring their groups themselves.
  vpc_security_group_ids = each.value.efa_interfaces > 0 ? null : [aws_security_group.nodes.id]
  # A node ends itself when its Ray ends; stopped instead, its volume would be billed for good.
  instance_initiated_shutdown_behavior = "terminate"
  update_default_version               = true

  iam_instance_profile {
    arn = module.worker_identity.instance_profile_arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/sda1"

    ebs {
      volume_size           = var.root_volume_gib
      volume_type           = "gp3"
      throughput            = var.root_volume_mib_s
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = each.value.reservation_id == null ? [] : [1]

    content {
      capacity_reservation_target {
        capacity_reservation_id = each.value.reservation_id
      }
    }
  }

  dynamic "placement" {
    for_each = contains(keys(local.grouped_pools), each.key) ? [1] : []

    content {
      group_name        = aws_placement_group.pool[each.key].name
      availability_zone = each.value.zone
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = local.node_tags
  }

  tag_specifications {
    resource_type = "volume"
    tags          = local.node_tags
  }
}
