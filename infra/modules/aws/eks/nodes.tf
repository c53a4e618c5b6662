# A small group that is always there, and one group for each pool, from zero by cluster-autoscaler. It finds the groups by
# tags that EKS puts on them itself. eks:DescribeNodegroup tells it the labels, taints and resources (tags) of a node that an
# empty group would get. What charts and pods ask of labels and taints: tests/infra/test_scheduling.py.

locals {
  # Nodes that speak EFA stand close together; AWS itself sees to that in a Capacity Block.
  grouped_pools = { for name, pool in var.pools : name => pool if pool.efa_interfaces > 0 && pool.capacity != "CAPACITY_BLOCK" }

  # Instance disks of a node as one RAID 0, under what pods call emptyDir: Ray's spilled objects and the cache of chunks.
  node_config = yamlencode({
    apiVersion = "node.eks.aws/v1alpha1"
    kind       = "NodeConfig"
    spec       = { instance = { localStorage = { strategy = "RAID0" } } }
  })
  # Huge pages for libfabric, before kubelet counts what the node has.
  reserve_huge_pages = <<-EOT
    #!/bin/bash
    [ "$(cat /proc/sys/vm/nr_hugepages)" -ge 2560 ] || sysctl -w vm.nr_hugepages=2560
  EOT
  user_data = {
    for name, pool in var.pools : name => join("\n", concat(
      ["MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=lexray", ""],
      ["--lexray", "Content-Type: application/node.eks.aws", "", local.node_config],
      pool.efa_interfaces > 0 ? ["--lexray", "Content-Type: text/x-shellscript", "", local.reserve_huge_pages] : [],
      ["--lexray--", ""],
    ))
  }

  node_labels = {
    for name, pool in var.pools : name => merge(
      { "lexray.io/pool" = name },
      # NVIDIA's device plugin goes where the first says so; by the second cluster-autoscaler knows that a young node will
      # have GPUs, and starts no further one meanwhile.
      pool.gpus > 0 ? { "nvidia.com/gpu.present" = "true", "k8s.amazonaws.com/accelerator" = name } : {},
      pool.efa_interfaces > 0 ? { "vpc.amazonaws.com/efa.present" = "true" } : {},
    )
  }
  node_resources = {
    for name, pool in var.pools : name => merge(
      pool.gpus > 0 ? { "nvidia.com/gpu" = tostring(pool.gpus) } : {},
      pool.efa_interfaces > 0 ? { "vpc.amazonaws.com/efa" = tostring(pool.efa_interfaces), "hugepages-2Mi" = "5120Mi" } : {},
    )
  }
}

resource "aws_security_group" "efa" {
  count       = anytrue([for pool in var.pools : pool.efa_interfaces > 0]) ? 1 : 0
  name        = "${var.name}-efa"
  description = "EFA asks for a rule to and from its own group"
  vpc_id      = var.vpc_id
  tags        = { Name = "${var.name}-efa" }
}

resource "aws_vpc_security_group_ingress_rule" "efa" {
  count                        = length(aws_security_group.efa)
  security_group_id            = aws_security_group.efa[0].id
  description                  = "From EFA nodes of this cluster"
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "efa" {
  count                        = length(aws_security_group.efa)
  security_group_id            = aws_security_group.efa[0].id
  description                  = "To EFA nodes of this cluster"
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"
}

resource "aws_placement_group" "pool" {
  for_each = local.grouped_pools
  name     = "${var.name}-${each.key}"
  strategy = "cluster"
}

resource "aws_launch_template" "core" {
  name                   = "${var.name}-core"
  update_default_version = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = 50
      volume_type           = "gp3"
      encrypted             = true
      kms_key_id            = var.kms_key_arn
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.name}-core" })
    }
  }
}

resource "aws_launch_template" "pool" {
  for_each               = var.pools
  name                   = "${var.name}-pool-${each.key}"
  user_data              = base64encode(local.user_data[each.key])
  update_default_version = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = var.root_volume_gib
      volume_type           = "gp3"
      throughput            = var.root_volume_mib_s
      encrypted             = true
      kms_key_id            = var.kms_key_arn
      delete_on_termination = true
    }
  }

  # Card 0 has the primary interface; further cards have theirs at device 1.
  dynamic "network_interfaces" {
    for_each = range(each.value.efa_interfaces)

    content {
      device_index          = network_interfaces.value == 0 ? 0 : 1
      network_card_index    = network_interfaces.value
      interface_type        = "efa"
      delete_on_termination = true
      security_groups = [
        aws_security_group.efa[0].id,
        aws_eks_cluster.this.vpc_config[0].cluster_security_group_id,
      ]
    }
  }

  # EKS takes the instance type of a Capacity Block from here, and of every other group from the group itself.
  instance_type = each.value.capacity == "CAPACITY_BLOCK" ? each.value.instance_types[0] : null

  dynamic "instance_market_options" {
    for_each = each.value.capacity == "CAPACITY_BLOCK" ? [1] : []

    content {
      market_type = "capacity-block"
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
      group_name = aws_placement_group.pool[each.key].name
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.name}-${each.key}" })
    }
  }
}

resource "aws_eks_node_group" "core" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "core"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  ami_type        = "AL2023_x86_64_STANDARD"
  capacity_type   = "ON_DEMAND"
  instance_types  = [var.core_instance_type]
  labels          = { "lexray.io/pool" = "core" }

  scaling_config {
    min_size     = 2
    max_size     = 2
    desired_size = 2
  }

  update_config {
    max_unavailable = 1
  }

  launch_template {
    id      = aws_launch_template.core.id
    version = aws_launch_template.core.latest_version
  }

  depends_on = [aws_eks_addon.first, aws_iam_role_policy_attachment.node]
}

resource "aws_eks_node_group" "pool" {
  for_each        = var.pools
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = each.value.zone == null ? var.subnet_ids : lookup(var.subnet_ids_by_zone, each.value.zone, var.subnet_ids)
  ami_type        = each.value.gpus > 0 ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  capacity_type   = each.value.capacity == "RESERVED" ? "ON_DEMAND" : each.value.capacity
  instance_types  = each.value.capacity == "CAPACITY_BLOCK" ? null : each.value.instance_types
  labels          = local.node_labels[each.key]
  tags            = { for resource, amount in local.node_resources[each.key] : "k8s.io/cluster-autoscaler/node-template/resources/${resource}" => amount }

  scaling_config {
    min_size     = each.value.min
    max_size     = each.value.max
    desired_size = each.value.min
  }

  update_config {
    max_unavailable = 1
  }

  launch_template {
    id      = aws_launch_template.pool[each.key].id
    version = aws_launch_template.pool[each.key].latest_version
  }

  dynamic "taint" {
    for_each = each.value.gpus > 0 ? [1] : []

    content {
      key    = "nvidia.com/gpu"
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  dynamic "taint" {
    for_each = each.value.capacity == "SPOT" ? [1] : []

    content {
      key    = "lexray.io/spot"
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  lifecycle {
    # cluster-autoscaler's.
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_eks_addon.first, aws_iam_role_policy_attachment.node]
}
