"""Layers that compute something usual in an unusual way, against the usual way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.models.layers import ConvPool, max_pool_2x2


def convolve_and_pool(params, x, padding):
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (1, 1),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return max_pool_2x2(y + params["bias"][None, None, None])


# Even and odd results of the convolution; the pooling leaves out an odd last row or column.
@pytest.mark.parametrize(
    ("image", "size", "padding"), [((8, 8, 1), 5, 2), ((10, 7, 3), 3, 0), ((7, 9, 2), 5, 1)]
)
def test_conv_pool_equals_convolution_and_pooling(image, size, padding):
    """Values and derivatives, under vmap over two agents."""
    layer = ConvPool(4, size, padding, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, *image), np.float32))
    draw = jax.vmap(lambda key, x: layer.init(key, x)["params"])
    params = draw(jax.random.split(jax.random.key(0), 2), x)
    assert params["kernel"].shape == (2, size, size, image[-1], 4)

    def both(fn):
        value = jax.vmap(fn)(params, x)
        return value, jax.grad(lambda p, x: jnp.square(jax.vmap(fn)(p, x)).sum(), (0, 1))(params, x)

    ours = jax.jit(both, static_argnums=0)(lambda p, x: layer.apply({"params": p}, x))
    usual = jax.jit(both, static_argnums=0)(lambda p, x: convolve_and_pool(p, x, padding))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    jax.tree.map(close, ours, usual)
