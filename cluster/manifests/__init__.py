"""The Kubernetes manifests of a described cluster."""
