"""The model's objects: service rates against eq. 4 by hand, refusal of bad numbers, the fingerprint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxq import InputError, Instance, IterationTime, Pricing, Workload


def build(**changes):
    numbers = {
        "prompt_tokens": [300.0, 3000.0],
        "output_tokens": [1000.0, 400.0],
        "arrival_rate": [0.5, 0.5],
        "patience_rate": [0.1, 0.1],
        "names": ("decode-heavy", "prefill-heavy"),
        "alpha": 0.0174,
        "beta": 6.2e-5,
        "solo": 0.022,
        "prefill": 0.1,
        "decode": 0.2,
        "scheme": "bundled",
        "batch_size": 16,
        "chunk_size": 256,
        "name": "reference",
    } | changes

    def take(*keys):
        return {key: numbers[key] for key in keys}

    return Instance(
        workload=Workload(**take("prompt_tokens", "output_tokens", "arrival_rate", "patience_rate", "names")),
        iteration_time=IterationTime(**take("alpha", "beta", "solo")),
        pricing=Pricing(**take("prefill", "decode", "scheme")),
        **take("batch_size", "chunk_size", "name"),
    )


def test_service_rates_and_values_are_those_of_eq_4_and_21():
    instance = build()
    tau = 0.0174 + 6.2e-5 * 256
    assert float(instance.mixed_iteration_time) == pytest.approx(0.033272, rel=1e-12)
    np.testing.assert_allclose(instance.mu_prefill, [256 / (300 * tau), 256 / (3000 * tau)], rtol=1e-14)
    np.testing.assert_allclose(instance.mu_mixed, [1 / (1000 * tau), 1 / (400 * tau)], rtol=1e-14)
    np.testing.assert_allclose(instance.mu_solo, [1 / 22.0, 1 / 8.8], rtol=1e-14)
    np.testing.assert_allclose(instance.request_value, [230.0, 380.0], rtol=1e-14)
    np.testing.assert_allclose(instance.prefill_value + instance.decode_value, instance.request_value)


def test_a_calibrated_law_becomes_three_numbers():
    time = IterationTime.from_law(base=0.02, slope=5e-5, knee=100.0)
    assert float(time.mixed(356.0)) == pytest.approx(0.02 + 5e-5 * 256, rel=1e-14)
    assert float(time.solo) == 0.02


def test_numbers_are_float64_on_the_host():
    leaves = jax.tree.leaves(build())
    assert len(leaves) == 11
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in leaves)


def test_an_instance_can_be_batched_and_traced():
    instance = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf, jnp.float32)] * 3), build())
    rates = jax.jit(jax.vmap(lambda one: one.mu_prefill))(instance)
    assert rates.shape == (3, 2)
    np.testing.assert_allclose(rates[1], build().mu_prefill, rtol=1e-6)


def test_names_are_made_up_when_left_out():
    assert build(names=()).workload.names == ("class-0", "class-1")


@pytest.mark.parametrize(
    "changes, field, expected",
    [
        ({"arrival_rate": [0.5, -0.5]}, "classes.1.arrival_rate", "positive"),
        ({"arrival_rate": [0.5, 0.0]}, "classes.1.arrival_rate", "positive"),
        ({"arrival_rate": [0.5]}, "arrival_rate", "2 numbers"),
        ({"arrival_rate": ["fast", 0.5]}, "arrival_rate", "numbers"),
        ({"arrival_rate": [True, 0.5]}, "arrival_rate", "numbers"),
        ({"arrival_rate": [None, 0.5]}, "arrival_rate", "numbers"),
        ({"arrival_rate": [[0.5], [0.5, 1.0]]}, "arrival_rate", "numbers"),
        ({"prompt_tokens": [np.nan, 1.0]}, "classes.0.prompt_tokens", "positive finite"),
        ({"output_tokens": [1.0, np.inf]}, "classes.1.output_tokens", "positive finite"),
        ({"patience_rate": [0.1, -0.1]}, "classes.1.patience_rate", "at least 0"),
        ({"prompt_tokens": [1e-320, 1.0]}, "classes.0", "less extreme"),
        ({"names": ("a", "a")}, "classes.1.name", "its own name"),
        ({"names": ("a", "")}, "classes.1.name", "name"),
        ({"names": ("a",)}, "classes", "2 classes"),
        ({"alpha": np.nan}, "hardware.alpha", "finite"),
        ({"alpha": "fast"}, "hardware.alpha", "number"),
        ({"alpha": -1.0}, "hardware", "positive"),
        ({"beta": -1e-5}, "hardware.beta", "at least 0"),
        ({"solo": 0.0}, "hardware.solo_iteration_time", "positive"),
        ({"solo": True}, "hardware.solo_iteration_time", "number"),
        ({"batch_size": 0}, "hardware.batch_size", "whole number from 2 to 256"),
        ({"batch_size": 1}, "hardware.batch_size", "whole number from 2 to 256"),
        ({"batch_size": 16.5}, "hardware.batch_size", "whole number"),
        ({"batch_size": 257}, "hardware.batch_size", "256"),
        ({"batch_size": np.nan}, "hardware.batch_size", "whole number"),
        ({"batch_size": np.array([16, 16])}, "hardware.batch_size", "one number"),
        ({"chunk_size": 0}, "hardware.chunk_size", "at least 1"),
        ({"chunk_size": None}, "hardware.chunk_size", "number"),
        ({"prefill": -0.1}, "pricing.prefill", "at least 0"),
        ({"decode": np.inf}, "pricing.decode", "finite"),
        ({"decode": [0.2, 0.2]}, "pricing.decode", "number"),
        ({"prefill": 0.0, "decode": 0.0}, "pricing", "above 0"),
        ({"scheme": "bundle"}, "pricing.scheme", "bundled, separate"),
    ],
)
def test_bad_numbers_are_refused_by_field_in_one_line(changes, field, expected):
    with pytest.raises(InputError) as caught:
        build(**changes)
    message = str(caught.value)
    assert message.startswith(f"{field}: ")
    assert expected in message
    assert "\n" not in message


def test_no_classes_are_refused():
    with pytest.raises(InputError, match="at least one class"):
        Workload([], [], [], [])


def test_fingerprint_recognises_the_numbers_and_the_scheme_but_not_the_names():
    reference = build().fingerprint()
    assert len(reference) == 12
    assert reference == "a786a7ebbbb4"  # stable between versions: stored results carry it
    assert reference == build(name="other", names=("a", "b")).fingerprint()
    changed = [
        build(**change).fingerprint()
        for change in (
            {"scheme": "separate"},
            {"alpha": np.nextafter(0.0174, 1)},
            {"arrival_rate": [0.5, 0.51]},
            {"output_tokens": [300.0, 3000.0], "prompt_tokens": [1000.0, 400.0]},
            {"batch_size": 17},
            {"chunk_size": 255},
        )
    ]
    assert len({reference, *changed}) == 7
