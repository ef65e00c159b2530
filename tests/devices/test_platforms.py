"""Every method with CCL is lowered for TPUs and GPUs, where there are none.

Nothing without a lowering there slips in, and no float64 where it is not declared: TPUs have none.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import export

from ccl_jax import algorithms, graphs, training
from ccl_jax.models import layers, lowering, norm
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.devices.test_parallel import SUITABLE
from tests.support.tiny import CLASSES, IMAGE, batch

AGENTS = 4
# What JAX calls the backend that programs for a platform are made on.
BACKENDS = {"tpu": "tpu", "cuda": "gpu"}


class Small(nn.Module):
    """One layer of each kind."""

    @nn.compact
    def __call__(self, images):
        x = layers.conv(images, 8, 3, dtype=jnp.float32, name="conv")
        x = norm.norm("evonorm", train=True, dtype=jnp.float32, name="norm")(x)
        features = x.mean(axis=(1, 2))
        return features, layers.dense(features, CLASSES, dtype=jnp.float32, name="head")


@pytest.mark.parametrize("name", sorted(algorithms.REGISTRY))
def test_every_method_with_ccl_is_lowered(name):
    method = algorithms.get(name)
    graph = graphs.make(SUITABLE.get(name, "ring"), AGENTS, stochastic=method.stochastic)
    parts = (algorithms.make(name), Network(graph), Objective(CLASSES, 0.1, 0.1))
    state = training.init_state(Small(), *parts, IMAGE, jax.random.key(0))
    for platform, backend in BACKENDS.items():
        step = training.make_step(Small(), *parts, lambda t: jnp.float32(0.1))
        with lowering.compiled_for(backend):
            exported = export.export(jax.jit(step), platforms=[platform])(state, batch(AGENTS, 2))
        text = exported.mlir_module()
        assert exported.platforms == (platform,)
        assert "stablehlo.convolution" in text
        declared = method.capabilities is not None and method.capabilities.float64
        assert ("xf64>" in text) == declared
