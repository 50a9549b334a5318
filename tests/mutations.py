"""Mutations of the law, each of which the tests must notice: `python tests/mutations.py [NAME ...]`.

Each mutation replaces one passage of the engine's or the policies' source in a temporary copy of the
repository and runs the tests that should fail; it counts as noticed when one of them fails by an assertion. A
passage that is not found, a mutant that cannot even be imported, and tests that fail without any mutation are
errors.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = "tests/test_exact.py::test_tiny_system_has_the_law_of_global_balance"

TIES = "tests/test_policies.py::test_occupancy_gate"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A wrong law: in `file`, `before` (which must occur exactly once) becomes `after`; `tests` must fail."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "wrong rate: decodes in the solo group at the mixed rate",
        "jaxq/_engine/exact.py",
        "blocks += [numbers.mu_solo * state.solo]",
        "blocks += [numbers.mu_mixed * state.solo]",
        (f"{TINY}[gate_and_route]",),
    ),
    Mutation(
        "missing mode switch: decodes keep their pace when a prefill starts beside them",
        "jaxq/_engine/exact.py",
        "slowed = jnp.where(start, scene.counts, 0)",
        "slowed = jnp.zeros_like(scene.counts)",
        ("tests/test_properties.py::test_path_keeps_the_rules[exact-gate_fcfs]",),
    ),
    Mutation(
        "thinning dropped: decodes end at the faster mode's rate whatever runs beside them",
        "jaxq/_engine/exact.py",
        "accepted = ~kinds.is_decode | (rand.uniforms(3) * class_sum(kinds.decode * fastest) < here)",
        "accepted = ~kinds.is_decode | (class_sum(kinds.decode * fastest) >= 0 * here)",
        (f"{TINY}[sarathi]",),
    ),
    Mutation(
        "biased tie: no tolerance, so that float32 breaks the occupancy gate's ties",
        "jaxq/_policy/gates.py",
        "tied = waiting & (ratio <= least * (1 + TIE))",
        "tied = waiting & (ratio <= least)",
        (f"{TIES}_calls_ratios_tied_that_float32_tells_apart",),
    ),
    Mutation(
        "biased tie: the occupancy gate gives ties to the highest index",
        "jaxq/_policy/gates.py",
        "return jnp.where(tied, excess, -jnp.inf)",
        "return jnp.where(tied, jnp.arange(1.0, 1 + len(tied))[:, None], -jnp.inf)",
        (f"{TIES}_breaks_its_last_tie_by_the_lowest_index",),
    ),
    Mutation(
        "route before gate under gate_fcfs",
        "jaxq/_policy/presets.py",
        'PrefillFirstRouter(), name="gate_fcfs"',
        'PrefillFirstRouter(), route_first=True, name="gate_fcfs"',
        ("tests/test_reference_rows.py::test_order_of_decisions_under_overload",),
    ),
    Mutation(
        "stale step: the leap stepper's prefills take the step of another length",
        "jaxq/_engine/leap.py",
        "dt * numbers.mu_prefill[c]",
        "0.9 * dt * numbers.mu_prefill[c]",
        ("tests/test_leap.py::test_corner_is_a_classical_queue_at_a_small_step",),
    ),
    Mutation(
        "biased choice: the leap stepper spreads the starts of a step over GPUs at random",
        "jaxq/_engine/leap.py",
        "return self.shape.classes + 1 if Pool.OWN in self.policy.router.pools else 1",
        "return 1",
        ("tests/test_leap.py::test_prefills_start_where_the_decisions_fell",),
    ),
    Mutation(
        "lost abandonment: requests leave the prefill queue uncounted",
        "jaxq/_engine/exact.py",
        "abandoned_prefill=totals.abandoned_prefill + kinds.abandoned_prefill,",
        "abandoned_prefill=totals.abandoned_prefill,",
        ("tests/test_properties.py::test_path_keeps_the_rules[exact-gate_fcfs]",),
    ),
    Mutation(
        "no abandonment from the decode queue",
        "jaxq/_engine/exact.py",
        "blocks = [numbers.patience_rate * queue for queue in levels.decode_queue]",
        "blocks = [0.0 * numbers.patience_rate * queue for queue in levels.decode_queue]",
        (f"{TINY}[sli_gate_and_route]",),
    ),
    Mutation(
        "biased choice: an arrival starts on the free GPU of lowest index",
        "jaxq/_engine/exact.py",
        "gpu_set.member(state.start, self.once(to_index(rand.words(4), idle)))",
        "gpu_set.member(state.start, self.once(0 * to_index(rand.words(4), idle)))",
        ("tests/test_properties.py::test_gpus_are_chosen_uniformly[exact]",),
    ),
    Mutation(
        "capacity: no slot reserved in the mixed group",
        "jaxq/_engine/exact.py",
        "reserved = 1 if self.shape.partitioned else busy.astype(jnp.int32)",
        "reserved = busy.astype(jnp.int32)",
        ("tests/test_properties.py::test_path_keeps_the_rules[exact-sli_gate_and_route]",),
    ),
)


def copy_repository(to: Path) -> None:
    """What the tests need, without caches."""
    for folder in ("jaxq", "tests", "benchmarks", "experiments", "calibration_data"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Whether they pass, and the last lines of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", *tests]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    # 1: tests failed; anything else but 0 says that they did not run.
    if answer.returncode not in (0, 1):
        raise SystemExit(f"error: the tests did not run:\n{answer.stdout[-3000:]}{answer.stderr[-1000:]}")
    return answer.returncode == 0, answer.stdout


def check(mutation: Mutation, folder: Path) -> str | None:
    """The test that notices the mutation; None if all pass."""
    source = folder / mutation.file
    text = source.read_text()
    if text.count(mutation.before) != 1:
        times = text.count(mutation.before)
        raise SystemExit(f"error: {mutation.name}: found {times} times in {mutation.file}: {mutation.before}")
    source.write_text(text.replace(mutation.before, mutation.after))
    try:
        passed, output = run_tests(folder, mutation.tests)
    finally:
        source.write_text(text)
    if passed:
        return None
    failed = re.search(r"^FAILED (\S+)(.*)$", output, re.MULTILINE)
    if failed is None or "AssertionError" not in output and "assert" not in output:
        raise SystemExit(f"error: {mutation.name}: failed otherwise than by an assertion:\n{output[-3000:]}")
    return failed.group(1)


def main(names: list[str]) -> int:
    """Run the mutations whose names contain one of `names` (none: all); 1 if one goes unnoticed."""
    chosen = [m for m in MUTATIONS if not names or any(name in m.name for name in names)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        for mutation in chosen:
            noticed = check(mutation, Path(folder))
            missed += noticed is None
            print(f"{mutation.name}: {'NOT NOTICED' if noticed is None else noticed}", flush=True)
        tests = tuple(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
        passed, output = run_tests(Path(folder), tests)
        if not passed:
            raise SystemExit(f"error: without any mutation the tests fail:\n{output[-3000:]}")
    print(f"{len(chosen) - missed} of {len(chosen)} mutations noticed")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
