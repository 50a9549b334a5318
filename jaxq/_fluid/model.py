"""What both levels of the fluid model share: rates, stages, and what the solver asks of a level."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._instance import Instance
from .._policy.base import AbstractGate, AbstractRouter, Policy

State = Any
"""The state of a level: a pytree of masses per GPU."""

Width = Float[Array, ""]
"""Requests or GPUs, per GPU, that are needed before something that is there is found for certain."""


class Rates(eqx.Module):
    """Rates of each class, 1/s; arrivals per GPU."""

    arrival: Float[Array, " classes"]
    patience: Float[Array, " classes"]
    mu_prefill: Float[Array, " classes"]
    mu_mixed: Float[Array, " classes"]
    mu_solo: Float[Array, " classes"]

    @classmethod
    def of(cls, instance: Instance) -> Rates:
        """Those of an instance."""
        workload = instance.workload
        service = (instance.mu_prefill, instance.mu_mixed, instance.mu_solo)
        return cls(
            *(jnp.asarray(rate, float) for rate in (workload.arrival_rate, workload.patience_rate, *service))
        )


class Stages(eqx.Module):
    """Requests in each stage per GPU, by class; or their integrals over time, request-seconds."""

    prefills: Float[Array, "*times classes"]
    decodes_mixed: Float[Array, "*times classes"]
    decodes_solo: Float[Array, "*times classes"]
    prefill_queue: Float[Array, "*times classes"]
    decode_queue: Float[Array, "*times classes"]


class AbstractFluidModel(eqx.Module):
    """A policy on an instance in the limit of many GPUs, at one level of detail.

    A differential equation whose right-hand side is smoothed by a width w: decisions are taken at the same
    moments as in the exact chain, and where something is there for part of them only (a queue that is emptied
    as fast as it fills, a pool whose slots are taken as they come free, an idle GPU), its mass m counts as
    there with the chance m / (m + w). As w goes to 0 this is the sliding motion along the boundary.
    """

    gate: eqx.AbstractVar[AbstractGate]
    router: eqx.AbstractVar[AbstractRouter]
    rates: eqx.AbstractVar[Rates]
    mixed_share: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def empty(self) -> State:
        """A cluster without requests."""

    @abc.abstractmethod
    def stages(self, state: State) -> Stages:
        """Requests in each stage."""

    @abc.abstractmethod
    def drift(self, state: State, width: Width) -> State:
        """The rate of change of the state, 1/s."""

    @abc.abstractmethod
    def balance(self, state: State, width: Width) -> State:
        """0 in a steady state and nowhere else: the drift, with rows that follow from others replaced by what
        is conserved."""


def lowered(policy: Policy) -> tuple[AbstractGate, AbstractRouter, Float[Array, ""]]:
    """The gate and the router with arrays that have a last axis for cases, and the mixed group's share."""

    def lower(leaf: Any) -> Any:
        is_number = isinstance(leaf, float | int | np.ndarray | np.generic | jax.Array)
        return jnp.asarray(leaf, float)[..., None] if is_number else leaf

    share = 1.0 if policy.partition is None else policy.partition.mixed_share
    gate, router = jax.tree.map(lower, (policy.gate, policy.router))
    return gate, router, jnp.asarray(share, float)
