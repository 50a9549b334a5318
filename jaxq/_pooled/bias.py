"""How far the pooled engine was found to be from the cluster engine."""

from __future__ import annotations

MEASURED = {
    "gate_and_route": ((1_000, 0.018, 0.058), (10_000, 0.125, 0.137)),
    "prioritize_and_route": ((1_000, -0.020, 0.056), (10_000, 0.049, 0.062)),
    "sli_gate_and_route": ((1_000, 0.077, 0.057), (10_000, -0.040, 0.069)),
    "fcfs_route": ((1_000, -0.012, 0.057), (10_000, 0.042, 0.067)),
}
"""Bundled revenue with `Leap` less that of the cluster engine, % of R*, with its standard error, by number of
GPUs, on the reference instance: from `python -m benchmarks.engine_agreement`; see docs/large_n.md."""


def bias_line(policy: str) -> str:
    """What was measured for a policy, in one line."""
    if policy not in MEASURED:
        return f"bias not measured for {policy}; compare with the cluster engine"
    found = ", ".join(
        f"{bias:+.2f} ± {error:.2f} % of R* at n = {n_gpus:,}" for n_gpus, bias, error in MEASURED[policy]
    )
    return f"bias on the reference instance {found}"
