"""Clusters of any size under a partition, as counts by class and group."""
