# The provider that was tried, exactly. The modules allow ">= 5.95, < 7.0": change the version here to try another.

terraform {
  required_version = ">= 1.10"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}
