output "vpc_id" {
  description = "VPC of the cluster."
  value       = local.own ? aws_vpc.this[0].id : var.existing_vpc_id
}

output "private_subnet_ids" {
  description = "Private subnets, in the order of the zones."
  value       = local.own ? [for zone in local.zones : aws_subnet.private[zone].id] : var.existing_subnet_ids
  # Who takes the subnets boots in them: the way out is there first, and goes last.
  depends_on = [
    aws_route_table_association.private,
    aws_route_table_association.public,
    aws_route.internet,
    aws_route.nat,
    aws_vpc_endpoint.s3,
    aws_vpc_endpoint.service,
    aws_vpc_security_group_ingress_rule.endpoints,
  ]
}

output "subnet_ids_by_zone" {
  description = "Private subnets of each zone."
  value = local.own ? { for zone, subnet in aws_subnet.private : zone => [subnet.id] } : {
    for subnet in data.aws_subnet.existing : subnet.availability_zone => subnet.id...
  }
}

output "zones" {
  description = "Zones of the private subnets, the preferred one first."
  value       = local.own ? local.zones : distinct([for id in var.existing_subnet_ids : data.aws_subnet.existing[id].availability_zone])
}

output "hourly_price_usd" {
  description = "What the network costs in an hour without any traffic, in us-east-1: NAT gateway with its address, or endpoints."
  value       = local.nat_count * 0.05 + length(local.endpoints) * 0.01
}
