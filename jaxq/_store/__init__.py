"""Runs that survive: replications in files as they finish, from which an interrupted run goes on."""
