variable "name" {
  description = "Name of the cluster whose cost is watched."
  type        = string
}

variable "tag_key" {
  description = "Tag that everything of the cluster carries, with the cluster's name as its value."
  type        = string
}

variable "monthly_budget_usd" {
  description = "Cost of the cluster in a calendar month, in USD, that the alarms refer to."
  type        = number
}

variable "emails" {
  description = "Who is told; nobody, with an empty list, and the budget is only shown in the console."
  type        = list(string)
}
