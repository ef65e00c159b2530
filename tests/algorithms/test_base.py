"""The registry of algorithms, its errors, and the arithmetic that methods share."""

import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms import base
from ccl_jax.network import Network


def test_the_base_methods_have_names_and_say_what_they_are():
    names = {"dsgd", "dsgdm", "dsgdm-n", "qg-dsgdm", "qg-dsgdm-n"}
    assert names | {"qg-dsgdm-ema", "qg-dsgdm-n-ema"} <= set(algorithms.REGISTRY)
    for name, method in algorithms.REGISTRY.items():
        assert method.name == name
        assert method.summary and method.reference and method.graph
        assert "\n" not in method.summary
        assert isinstance(algorithms.make(name), algorithms.Algorithm)


def test_a_name_fixes_what_it_stands_for():
    assert algorithms.get("dsgdm-n").fixed == {"nesterov": True}
    assert "nesterov" not in algorithms.get("dsgdm-n").hyperparameters
    assert algorithms.get("dsgdm").hyperparameters["momentum"] == 0.9
    with pytest.raises(ValueError, match="dsgd has no hyper-parameter momentum; it takes weight"):
        algorithms.make("dsgd", momentum=0.5)


@pytest.mark.parametrize(
    "wrong, right",
    [("dsgdm_n", "dsgdm-n"), ("qg-dsgdmn", "qg-dsgdm-n"), ("DSGD", "dsgd"), ("dgsd", "dsgd")],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"unknown algorithm '{wrong}': did you mean '{right}'"):
        algorithms.make(wrong)


@pytest.mark.parametrize("name", ["ccl", "CCL"])
def test_ccl_is_explained(name):
    with pytest.raises(ValueError, match=r"loss on top of any .* lambda_m and lambda_d"):
        algorithms.make(name)


def test_an_unknown_hyper_parameter_is_named_with_those_there_are():
    with pytest.raises(
        ValueError, match="no hyper-parameter betta; it takes momentum, weight_decay"
    ):
        algorithms.make("dsgdm-n", betta=0.9)


def test_gossip_moves_by_the_rate_times_what_the_others_differ():
    x = {"w": jnp.array([[0.0], [3.0], [6.0], [9.0]])}
    talk = Network(graphs.make("ring", 4)).round(0)
    mixed, r = base.gossip(talk, talk.send("x", x), 0.5)
    # Agent 0 hears 3 and 9: its mean is 4, of which it goes half the way.
    np.testing.assert_allclose(mixed["w"][:, 0], [2.0, 3.0, 6.0, 7.0], rtol=1e-6)
    np.testing.assert_allclose(r["w"][:, 0], [2.0, 0.0, 0.0, -2.0], rtol=1e-6, atol=1e-6)


def test_sgd_direction_is_pytorchs():
    direction = base.sgd_direction(momentum=0.5, nesterov=True, weight_decay=0.1)
    x = jnp.array([[1.0, -2.0], [0.0, 4.0]])
    state = direction.init(x)
    d, state = direction.update(jnp.ones((2, 2)), state, x)
    u = np.array([[1.1, 0.8], [1.0, 1.4]])  # g + 0.1 x
    np.testing.assert_allclose(d, u + 0.5 * u, rtol=1e-6)
    d, state = direction.update(jnp.zeros((2, 2)), state, x)
    u_next = np.array([[0.1, -0.2], [0.0, 0.4]])
    np.testing.assert_allclose(d, u_next + 0.5 * (0.5 * u + u_next), rtol=1e-6, atol=1e-7)


def test_the_rate_to_divide_by_is_never_zero():
    safe = lambda previous, now: float(base.safe_previous(jnp.float32(previous), jnp.float32(now)))
    assert safe(0.1, 0.01) == pytest.approx(0.1)
    assert safe(0.0, 0.01) == pytest.approx(0.01)  # the first step
    assert safe(0.0, 1e-9) == pytest.approx(1e-8)
    assert safe(0.0, 0.0) == np.inf  # a warm-up's first step


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("dsgdm-n", {"momentum": "abc"}),
        ("qg-dsgdm-n-ema", {"ema_factor": -1.0}),
        ("qg-dsgdm-n-ema", {"ema_factor": float("nan")}),
        ("ngc", {"quasi_global_momentum": 1}),
        ("relaysgd", {"fill": 3}),
        ("dsgdm", {"momentum": 1.0}),
        ("adam", {"b2": 1.0}),
        ("qg-dsgdm-n-ema", {"ema_factor": 1.5}),
        ("dsgd", {"gossip_rate": 0.0}),
        ("led", {"correction_rate": 0.0}),
        ("k-gt", {"server_step_size": -0.5}),
        ("relaysgd", {"overlap": 1}),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(name, wrong):
    (key,) = wrong
    with pytest.raises(ValueError, match=f"{key} of {name} is .* it must be"):
        algorithms.make(name, **wrong)
