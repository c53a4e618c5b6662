"""Follow, stop and resume sweeps by what lies in their folders: the cluster may be gone."""
