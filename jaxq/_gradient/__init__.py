"""Estimators of the derivative of a policy's value with respect to its parameters."""
