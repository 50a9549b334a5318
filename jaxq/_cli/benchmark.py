"""`jaxq benchmark`: how fast this machine simulates."""

from __future__ import annotations

from .environment import configure_jax
from .options import Json, print_json


def benchmark(json: Json = False) -> None:
    """Measure how fast this machine simulates, and what a step compiles to.

    Prints events and simulated GPU-seconds per second of each stepper on the reference instance, and the
    fusions and loops of one compiled step.

    \b
    Examples:
      jaxq benchmark
      jaxq benchmark --json
    """
    configure_jax()
    from .._benchmark import benchmark_main

    result = benchmark_main(quiet=json)
    if json:
        print_json(result)
