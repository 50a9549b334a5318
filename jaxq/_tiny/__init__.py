"""Clusters so small that their chain can be written down: the optimal control, any policy's exact value."""
