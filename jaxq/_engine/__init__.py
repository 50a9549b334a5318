"""Engines: how the state of a cluster advances in time."""
