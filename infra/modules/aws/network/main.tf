# A VPC of private subnets. S3 is reached by a gateway endpoint, which is free: through the NAT gateway activations would
# cost 0.045 USD for each GB read.

locals {
  own       = var.existing_vpc_id == null
  own_count = local.own ? 1 : 0
  nat_count = local.own && var.enable_nat ? 1 : 0
  zones     = local.own ? var.zones : []
  endpoints = local.own && !var.enable_nat ? toset(var.endpoint_services) : toset([])
}

data "aws_subnet" "existing" {
  for_each = local.own ? toset([]) : toset(var.existing_subnet_ids)
  id       = each.value
}

resource "aws_vpc" "this" {
  count                = local.own_count
  cidr_block           = var.cidr
  enable_dns_hostnames = true
  enable_dns_support   = true
  tags                 = { Name = var.name }
}

# Without rules: what names no group of its own can talk to nobody.
resource "aws_default_security_group" "this" {
  count  = local.own_count
  vpc_id = aws_vpc.this[0].id
}

resource "aws_subnet" "private" {
  for_each                = { for index, zone in local.zones : zone => index }
  vpc_id                  = aws_vpc.this[0].id
  availability_zone       = each.key
  cidr_block              = cidrsubnet(var.cidr, 4, each.value + 1)
  map_public_ip_on_launch = false
  tags                    = merge(var.private_subnet_tags, { Name = "${var.name}-private-${each.key}" })
}

resource "aws_route_table" "private" {
  count  = local.own_count
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-private" }
}

resource "aws_route_table_association" "private" {
  for_each       = aws_subnet.private
  subnet_id      = each.value.id
  route_table_id = aws_route_table.private[0].id
}

resource "aws_vpc_endpoint" "s3" {
  count             = local.own_count
  vpc_id            = aws_vpc.this[0].id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.private[0].id]
  tags              = { Name = "${var.name}-s3" }
}

resource "aws_internet_gateway" "this" {
  count  = local.nat_count
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = var.name }
}

# Holds the NAT gateway and nothing else.
resource "aws_subnet" "public" {
  count                   = local.nat_count
  vpc_id                  = aws_vpc.this[0].id
  availability_zone       = var.zones[0]
  cidr_block              = cidrsubnet(var.cidr, 4, 0)
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-public" }
}

resource "aws_route_table" "public" {
  count  = local.nat_count
  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-public" }
}

resource "aws_route" "internet" {
  count                  = local.nat_count
  route_table_id         = aws_route_table.public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this[0].id
}

resource "aws_route_table_association" "public" {
  count          = local.nat_count
  subnet_id      = aws_subnet.public[0].id
  route_table_id = aws_route_table.public[0].id
}

resource "aws_eip" "nat" {
  count  = local.nat_count
  domain = "vpc"
  tags   = { Name = "${var.name}-nat" }
}

resource "aws_nat_gateway" "this" {
  count         = local.nat_count
  allocation_id = aws_eip.nat[0].id
  subnet_id     = aws_subnet.public[0].id
  tags          = { Name = var.name }
  depends_on    = [aws_internet_gateway.this]
}

resource "aws_route" "nat" {
  count                  = local.nat_count
  route_table_id         = aws_route_table.private[0].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[0].id
}

resource "aws_security_group" "endpoints" {
  count       = length(local.endpoints) > 0 ? 1 : 0
  name        = "${var.name}-endpoints"
  description = "AWS services inside the VPC"
  vpc_id      = aws_vpc.this[0].id
}

resource "aws_vpc_security_group_ingress_rule" "endpoints" {
  count             = length(local.endpoints) > 0 ? 1 : 0
  security_group_id = aws_security_group.endpoints[0].id
  description       = "HTTPS from the VPC"
  cidr_ipv4         = var.cidr
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_endpoint" "service" {
  for_each            = local.endpoints
  vpc_id              = aws_vpc.this[0].id
  service_name        = "com.amazonaws.${var.region}.${each.value}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = [aws_subnet.private[var.zones[0]].id]
  security_group_ids  = [aws_security_group.endpoints[0].id]
  tags                = { Name = "${var.name}-${each.value}" }
}
