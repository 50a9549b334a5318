"""The counter-based generator: equidistribution, independence of neighbours, agreement with threefry.

Every statistical check of the words is a chi-square or normal test at 1e-6 (seeds are fixed).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxq._engine.random import (
    Purpose,
    replication_keys,
    stream,
    to_exponential,
    to_index,
    to_uniform,
)

from . import oracles
from .simulations import averages, run
from .test_exact import NAMES, disagreements

FALSE_ALARM = 1e-6
Z_LIMIT = stats.norm.isf(FALSE_ALARM / 2)
COUNT = 2**18

VIEWS = ("lane", "index", "window", "replication")
"""The counters of which a long row of words is taken, the others being held."""


def words(view: str, purpose: Purpose = Purpose.GPU, seed: int = 0, **held: int) -> np.ndarray:
    """`COUNT` words along one counter; `held` sets others (lane, index, window)."""
    lane, index, window = held.get("lane", 3), held.get("index", 7), held.get("window", 5)
    along = jnp.arange(COUNT, dtype=jnp.int32)
    replications = COUNT if view == "replication" else 1
    keys = replication_keys(jax.random.key(seed), held.get("first", 0) + np.arange(replications))
    if view == "window":
        rows = jax.vmap(lambda w: stream(keys, purpose, w, jnp.asarray([index]), "hash").words(lane))(along)
        return np.asarray(rows).ravel()
    steps = along if view == "index" else jnp.full(replications, index)
    drawn = stream(keys, purpose, window, steps, "hash").words(along if view == "lane" else lane)
    return np.asarray(drawn).ravel()


def uniform_enough(cells: np.ndarray, count: int) -> bool:
    """Chi-square test that `cells` are uniform on 0, ..., count - 1."""
    seen = np.bincount(cells, minlength=count)
    low, high = stats.chi2.interval(1 - FALSE_ALARM, count - 1)
    return low < ((seen - len(cells) / count) ** 2 / (len(cells) / count)).sum() < high


@pytest.mark.parametrize("view", VIEWS)
def test_words_are_equidistributed(view):
    """Highest and lowest bits, and pairs of neighbours on a grid."""
    row = words(view)
    assert uniform_enough(row >> 22, 1024)
    assert uniform_enough(row & 1023, 1024)
    high = row >> 27
    assert uniform_enough((high[:-1:2] << 5) | high[1::2], 1024)
    assert uniform_enough((high[:-1:2] << 5) | (row[1::2] & 31), 1024)


@pytest.mark.parametrize("view", VIEWS)
def test_each_bit_is_fair_and_free_of_its_neighbours_in_the_row(view):
    """Bits of single words, and of the exclusive or of words 1, 2, 3, 32 and 1000 apart."""
    row = words(view)
    for lag in (0, 1, 2, 3, 32, 1000):
        mixed = row if lag == 0 else row[lag:] ^ row[:-lag]
        ones = ((mixed[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=0)
        assert np.abs(ones - 0.5).max() * 2 * np.sqrt(len(mixed)) < stats.norm.isf(FALSE_ALARM / 2 / 32)


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": Purpose.PLACE},
        {"index": 8},
        {"window": 6},
        {"first": 1},
        {"seed": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_neighbouring_counters_and_keys_are_uncorrelated(other):
    """Rows of lanes whose streams differ by one step of one counter or key."""
    a = words("lane").astype(float) / 2**32
    b = words("lane", **other).astype(float) / 2**32
    assert abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(COUNT) < Z_LIMIT
    both = ((a * 32).astype(int) << 5) | (b * 32).astype(int)
    assert uniform_enough(both, 1024)


def test_no_word_repeats_more_often_than_chance():
    """Lanes of a stream are a bijection of 32 bits: no repeats; across replications, as birthdays."""
    assert len(np.unique(words("lane"))) == COUNT
    row = words("replication")
    repeats, expected = COUNT - len(np.unique(row)), COUNT**2 / 2 / 2**32
    assert (
        stats.poisson.ppf(FALSE_ALARM / 2, expected)
        <= repeats
        <= stats.poisson.isf(FALSE_ALARM / 2, expected)
    )


@pytest.mark.parametrize("generator", ["hash", "threefry"])
def test_words_depend_on_key_and_counters_only(generator):
    """Neither on the batch of replications nor on the lanes drawn beside."""
    whole = replication_keys(jax.random.key(5), np.arange(12))
    part = replication_keys(jax.random.key(5), 4 + np.arange(3))
    assert np.array_equal(whole[:, 4:7], part)
    index = jnp.arange(12)
    lanes = jnp.arange(6)[:, None]
    a = stream(whole, Purpose.GATE, 2, index, generator).words(lanes)
    b = stream(part, Purpose.GATE, 2, index[4:7], generator).words(lanes[2])
    assert np.array_equal(a[2, 4:7], np.ravel(b))


def test_indices_are_the_upper_half_of_the_product():
    """Against integers of Python, at the ends and in between; always below the count."""
    rng = np.random.default_rng(1)
    row = np.concatenate([[0, 1, 2**32 - 1, 2**31], rng.integers(0, 2**32, 500)]).astype(np.uint32)
    for count in (0, 1, 2, 3, 100, 65_535, 65_536, 320_001, 2**31 - 1):
        drawn = to_index(jnp.asarray(row), jnp.full(len(row), count, jnp.int32))
        assert drawn.tolist() == [int(word) * count >> 32 for word in row]


def test_uniforms_and_exponentials_stay_in_range_and_have_their_laws():
    row = jnp.asarray(np.concatenate([words("lane"), [0, 2**32 - 1]]).astype(np.uint32))
    uniforms, waits = np.asarray(to_uniform(row), float), np.asarray(to_exponential(row), float)
    assert uniforms.min() == 0.0 and uniforms.max() < 1.0
    assert waits.min() > 0.0 and np.isfinite(waits).all()
    assert stats.kstest(uniforms, "uniform").pvalue > FALSE_ALARM
    assert stats.kstest(waits, "expon").pvalue > FALSE_ALARM


def test_results_with_threefry_have_the_same_law():
    """The tiny system by global balance (cutting its queues at 6 costs less than 1e-4)."""
    cluster = oracles.tiny_cluster()
    instance = cluster.instance()
    given = {"horizon": 160.0, "warmup": 10.0, "replications": 1024, "generator": "threefry"}
    measured = averages(run(instance, "sarathi", 2, **given), instance)
    law = oracles.stationary(cluster, "sarathi", 2, queue_limit=6)
    assert not disagreements(measured, {name: getattr(law, name) for name in NAMES}, perturbation=2e-4)
