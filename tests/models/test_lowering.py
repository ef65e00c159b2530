"""Agents side by side in the channels: the same models, whatever platform is compiled for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import models, trees
from ccl_jax.models import convolution, lowering
from ccl_jax.models.resnet import ResNet
from tests.support.tiny import spread

AGENTS, BATCH, IMAGE = 4, 3, (8, 8, 3)


def everything(model, params, state, images, foreign):
    """Features, gradients, and features of others' images in one larger batch."""

    def loss(params, state, images):
        features, logits = models.apply_eval(model, params, state, images)
        return jnp.sin(features).sum() + jnp.square(logits).mean()

    features = lambda *args: models.apply_eval(model, *args)[0]
    return (
        jax.vmap(features)(params, state, images),
        jax.vmap(jax.grad(loss))(params, state, images),
        jax.vmap(features)(params, state, foreign),
        jax.vmap(jax.vmap(jax.grad(loss), (None, None, 0)))(params, state, foreign[:, None]),
    )


def lowered(platform, *args):
    with lowering.compiled_for(platform):
        # A function of its own, so that JAX traces it anew.
        return jax.jit(lambda *arrays: everything(args[0], *arrays)).lower(*args[1:])


@pytest.mark.parametrize("norm", ["evonorm", "batch", "none"])
def test_a_resnet_is_the_same_on_all_platforms(norm):
    model = ResNet(10, blocks=(1, 1, 1), width=16, norm=norm)
    params, state = models.init(model, jax.random.key(0), IMAGE)
    params = spread(trees.stack(params, AGENTS), scale=0.05)
    state = trees.stack(state, AGENTS)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(AGENTS, BATCH, *IMAGE)).astype(np.float32)
    foreign = rng.normal(size=(AGENTS, 2 * BATCH, *IMAGE)).astype(np.float32)
    programs = {
        platform: lowered(platform, model, params, state, images, foreign)
        for platform in ("cpu", "gpu", "tpu")
    }
    # Four agents' stems, and blocks of 32 channels, as one block-diagonal kernel.
    wide = {"12x64", "128x128"}
    widths = lambda text: wide & set(re.findall(r"tensor<3x3x(\d+x\d+)xf32>", text))
    assert widths(programs["tpu"].as_text()) == wide
    assert not widths(programs["gpu"].as_text()) | widths(programs["cpu"].as_text())
    expected = programs["cpu"].compile()(params, state, images, foreign)
    for platform in ("gpu", "tpu"):
        found = programs[platform].compile()(params, state, images, foreign)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max()),
            found,
            expected,
        )


@pytest.mark.parametrize(
    "agents, inputs, outputs, expected",
    [
        (16, 16, 16, 8),
        (16, 32, 32, 4),
        (16, 16, 32, 8),  # as wide as what it reads
        (16, 64, 64, 1),
        (16, 3, 16, 8),  # the colours of a picture do not count
        (6, 16, 16, 6),
        (7, 16, 16, 7),
        (9, 16, 16, 3),
    ],
)
def test_how_many_lie_side_by_side(agents, inputs, outputs, expected):
    assert lowering.together(agents, inputs, outputs) == expected


@pytest.mark.parametrize(
    "platform, inputs, outputs, groups, expected",
    [
        ("tpu", 16, 16, 1, "folded"),
        ("tpu", 3, 16, 1, "folded"),
        ("tpu", 1, 6, 1, "batched"),  # sixes do not fit
        ("tpu", 6, 16, 1, "batched"),
        ("tpu", 16, 16, 16, "batched"),  # depthwise
        ("gpu", 16, 16, 1, "batched"),
        ("cpu", 16, 16, 1, "unrolled"),
    ],
)
def test_what_is_folded(platform, inputs, outputs, groups, expected):
    with lowering.compiled_for(platform):
        assert lowering.of_convolution(16, groups, 10**6, inputs, outputs) == expected
        apart = lowering.of_convolution(16, groups, 10**6, inputs, outputs, side_by_side=False)
        assert apart == expected.replace("folded", "batched")


def test_gradients_of_kernels_keep_the_kernels_window_on_a_gpu():
    """A batch of transposed convolutions would have windows as large as the images."""
    images, kernels = jnp.ones((4, 2, 9, 9, 8)), jnp.ones((4, 3, 3, 8, 8))
    loss = lambda kernel, x: jnp.sin(
        convolution.convolve(x, kernel, (1, 1), ((1, 1), (1, 1)))
    ).sum()
    with lowering.compiled_for("gpu"):
        text = jax.jit(jax.vmap(jax.grad(loss))).lower(kernels, images).as_text()
    assert "batch_group_count = 4" in text


def test_to_a_rule_the_agents_of_several_runs_are_as_many_more():
    """Two runs of three agents; the rule lays agents last, and values are in their places."""
    asked = []

    def rule(agents, axes, x, y):
        asked.append((agents, tuple(axes)))
        x, y = (lowering.stacked(agents, at, v) for at, v in zip(axes, (x, y), strict=True))
        return (jnp.moveaxis(x * y, 0, -1),), (x.ndim - 1,)

    op = jax.vmap(lowering.with_rule(lambda x, y: (x * y,), rule))
    x = jnp.arange(30.0).reshape(2, 3, 5)
    (found,) = jax.vmap(op)(x, x + 1)
    assert (found == x * (x + 1)).all() and asked == [(3, (0, 0)), (6, (0, 0))]
    asked.clear()
    # What all runs share is not copied for each: JAX's own way.
    (found,) = jax.vmap(op, (0, None))(x, x[1])
    assert (found == x * x[1:2]).all() and asked == [(3, (0, 0))]
