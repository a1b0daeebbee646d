"""The cluster file: read, checked, planned into guests and channel ends. See docs/cluster-file.md."""

from hostd.cluster.errors import ClusterFileError

__all__ = ["ClusterFileError"]
