"""Every method with CCL is lowered for TPUs and GPUs, where there are none.

Nothing without a lowering there slips in, and no float64 where it is not declared: TPUs have none.
A step computes the same, however it is lowered.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from ccl_jax import algorithms, graphs, training
from ccl_jax.devices.parallel import Plan
from ccl_jax.models import layers, lowering, norm
from ccl_jax.models.resnet import ResNet
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.devices.test_parallel import SUITABLE
from tests.support.tiny import CLASSES, IMAGE, batch, spread

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


@pytest.mark.parametrize("devices", [1, 4])
def test_two_steps_of_ccl_end_in_the_same_models_on_all_platforms(devices):
    agents, image = 8, (8, 8, 3)
    model = ResNet(CLASSES, blocks=(1, 1, 1), width=16)
    network = Network(graphs.make("ring", agents), devices=devices)
    parts = (algorithms.make("qg-dsgdm-n"), network, Objective(CLASSES, 0.1, 0.1))
    plan = Plan(devices)
    start = training.init_state(model, *parts, image, jax.random.key(0))
    start = plan.put(start._replace(params=spread(start.params, 0.05)))
    batches = plan.put(batch(agents, 2, image=image))
    programs, ends = {}, {}
    for platform in ("cpu", "gpu", "tpu"):
        step = plan.wrap(training.make_step(model, *parts, lambda t: jnp.float32(0.05)))
        with lowering.compiled_for(platform):
            lowered = jax.jit(step).lower(start, batches)
        programs[platform], compiled = lowered.as_text(), lowered.compile()
        middle, _ = compiled(start, batches)
        ends[platform] = plan.fetch(compiled(middle, batches)[0].params)

    # The agents' stems as one block-diagonal kernel; their kernels' gradients as one convolution.
    here = agents // devices
    found = lambda words: [name for name, text in programs.items() if words in text]
    assert found(f"tensor<3x3x{3 * here}x{16 * here}xf32>") == ["tpu"]
    assert found(f"batch_group_count = {here} :") == ["gpu"]

    def close(end, expected, before):
        """To a part of how far it has moved, of which the last bit of a parameter of 1 is 2e-6."""
        bound = 1e-4 * np.abs(expected - before).max()
        np.testing.assert_allclose(end, expected, rtol=0, atol=bound)

    for platform in ("gpu", "tpu"):
        jax.tree.map(close, ends[platform], ends["cpu"], plan.fetch(start.params))
