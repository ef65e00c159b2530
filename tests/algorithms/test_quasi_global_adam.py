"""QG-Adam: a second moment from the way the mixed model moved."""

import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network

NETWORK = Network(graphs.make("ring", 3))


def test_the_first_step_is_adam():
    x = {"w": jnp.ones((3, 2))}
    grads = {"w": jnp.array([[1.0, -2.0], [0.5, 0.1], [-3.0, 4.0]])}
    steps = []
    for name in ("qg-adam", "adam"):
        algorithm = algorithms.make(name, weight_decay=0.0)
        state = algorithm.init(x, NETWORK.round(0))
        own = lambda at, _: (grads, None)
        lr = jnp.float32(0.1)
        new = algorithms.advance(algorithm, x, state, NETWORK.round(0), lr, own)
        steps.append(new.params["w"])
    np.testing.assert_allclose(*steps, rtol=1e-5)


def test_the_displacement_has_one_norm_over_all_tensors_of_an_agent():
    algorithm = algorithms.make("qg-adam", b2=0.5)
    x = {"a": jnp.zeros((3, 1)), "b": jnp.zeros((3, 1))}
    state = algorithm.init(x, NETWORK.round(0))._replace(step=jnp.int32(1))
    moved = {"a": jnp.full((3, 1), 3.0), "b": jnp.full((3, 1), 4.0)}
    _, state, _ = algorithm.communicate(moved, state, NETWORK.round(1), 0.1)
    # (3, 4) has length 5: half of (3/5)^2 and of (4/5)^2.
    np.testing.assert_allclose(state.second["a"], np.full((3, 1), 0.18), rtol=1e-5)
    np.testing.assert_allclose(state.second["b"], np.full((3, 1), 0.32), rtol=1e-5)
