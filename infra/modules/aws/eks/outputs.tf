output "cluster_name" {
  description = "Name of the EKS cluster."
  value       = aws_eks_cluster.this.name
}

output "autoscaler_service_account" {
  description = "Service account in kube-system that has the role of cluster-autoscaler."
  value       = aws_eks_pod_identity_association.autoscaler.service_account
}
