output "budget_name" {
  description = "Name of the budget in the billing console."
  value       = aws_budgets_budget.this.name
}
