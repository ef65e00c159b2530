"""Any optax optimizer as the local step: every agent has its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network


def two_steps(name, grads, x, **hyper):
    """Of agents that are equal to begin with, so that the first mix changes nothing."""
    network = Network(graphs.make("ring", len(x))).round(0)
    algorithm = algorithms.make(name, **hyper)
    x = {"w": jnp.asarray(x, jnp.float32)}
    state = algorithm.init(x, network)
    for _ in range(2):
        x, state = algorithm.update({"w": jnp.asarray(grads)}, x, state, network, 0.1)
    return x["w"]


@pytest.mark.parametrize(
    "name, hyper, optimizer",
    [
        ("adam", {"weight_decay": 0.0}, optax.adam(0.1)),
        ("adamw", {"weight_decay": 0.2}, optax.adamw(0.1, weight_decay=0.2)),
        ("optax", {"optimizer": "rmsprop", "decay": 0.8}, optax.rmsprop(0.1, decay=0.8)),
        # Its step is scaled by norms of the whole model: one for each agent.
        ("optax", {"optimizer": "lamb"}, optax.lamb(0.1)),
    ],
)
def test_agents_do_not_see_each_other(name, hyper, optimizer):
    rng = np.random.default_rng(0)
    x, grads = np.float32(rng.normal(size=(2, 3, 4)) * np.array([[1], [50], [3]]))
    got = two_steps(name, grads, x, **hyper)
    with_optax = []
    for one, grad in zip(jnp.asarray(x), jnp.asarray(grads), strict=True):
        params = {"w": one}
        state = optimizer.init(params)
        for _ in range(2):
            # optax raises floats to integer powers.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update({"w": grad}, state, params)
            params = optax.apply_updates(params, updates)
        with_optax.append(params["w"])
    np.testing.assert_allclose(got, np.stack(with_optax), rtol=1e-5, atol=1e-6)


def test_weight_decay_inside_the_gradient_and_beside_it_differ():
    x, grads = np.full((3, 2), 5.0, np.float32), np.ones((3, 2), np.float32)
    first = 5 - 2 * 0.1  # Adam's steps have length 1 whatever the gradient, decay included
    np.testing.assert_allclose(two_steps("adam", grads, x, weight_decay=0.1), first, rtol=1e-3)
    decayed = (5 - 0.1 * (1 + 0.5)) * (1 - 0.01) - 0.1
    np.testing.assert_allclose(two_steps("adamw", grads, x, weight_decay=0.1), decayed, rtol=1e-3)


def test_refuses():
    with pytest.raises(ValueError, match="no optimizer 'lyon'; try lion"):
        algorithms.make("optax", optimizer="lyon")
    with pytest.raises(ValueError, match="no optimizer 'apply_updates'"):
        algorithms.make("optax", optimizer="apply_updates")
    with pytest.raises(ValueError, match="lion does not take eps"):
        algorithms.make("optax", optimizer="lion", eps=1.0)
    with pytest.raises(ValueError, match=r"learning rate of optax\.lion is that of the run"):
        algorithms.make("optax", optimizer="lion", learning_rate=0.1)
    with pytest.raises(
        ValueError, match=r"nesterov of optax\.sgd is 'no'; it must be true or false"
    ):
        algorithms.make("optax", optimizer="sgd", momentum=0.9, nesterov="no")
    algorithms.make("optax", optimizer="sgd", momentum=0.9, nesterov=True)
    for options in ({"optimizer": "lbfgs"}, {"optimizer": "lion", "mu_dtype": "abc"}):
        with pytest.raises(ValueError, match="cannot be the local step"):
            algorithms.make("optax", **options)
    with pytest.raises(ValueError, match="not proportional to the learning rate"):
        algorithms.make("optax", optimizer="fromage")
