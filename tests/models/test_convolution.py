"""The convolution that knows of agents, against JAX's own, in every way in which it is batched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.models import convolution
from ccl_jax.models import lowering as lowerings

AGENTS, NEIGHBOURS = 3, 2

# Strides, padding, groups, channels, features, size of the kernel.
WINDOWS = [
    ((1, 1), ((1, 1), (1, 1)), 1, 3, 4, 3),
    ((1, 1), ((0, 3), (3, 1)), 1, 8, 8, 3),  # more zeros than the kernel reaches; ten outputs a row
    ((2, 2), ((1, 1), (1, 1)), 4, 4, 8, 3),
    pytest.param((2, 1), ((0, 2), (1, 0)), 1, 2, 4, 5, marks=pytest.mark.slow),
    pytest.param((2, 2), ((0, 0), (0, 0)), 1, 3, 4, 1, marks=pytest.mark.slow),
]


def everything(convolve, images, kernels):
    """Each agent's own images, its gradients, and its model on the images of others."""
    loss = lambda kernel, x: jnp.sin(convolve(x, kernel)).sum()
    return {
        "forward": jax.vmap(convolve)(images[:, 0], kernels),
        "gradients": jax.vmap(jax.grad(loss, (0, 1)))(kernels, images[:, 0]),
        "cross-features": jax.vmap(jax.vmap(convolve, (0, None)))(images, kernels),
        "cross-gradients": jax.vmap(jax.vmap(jax.grad(loss), (None, 0)))(kernels, images),
        "one model for all": jax.vmap(convolve, (0, None))(images[:, 0], kernels[0]),
        "one image for all": jax.vmap(convolve, (None, 0))(images[0, 0], kernels),
    }


@pytest.mark.parametrize("lowering", ["patches", "unrolled", "batched", "folded"])
@pytest.mark.parametrize("strides, padding, groups, channels, features, size", WINDOWS)
def test_equals_jax(lowering, strides, padding, groups, channels, features, size, monkeypatch):
    if lowering in ("patches", "folded") and groups > 1:
        pytest.skip(f"{lowering} is for one group")
    platform = "tpu" if lowering == "folded" else "cpu"
    asked = []
    monkeypatch.setattr(lowerings, "of_convolution", lambda *args: asked.append(args) or lowering)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(AGENTS, NEIGHBOURS, 2, 9, 8, channels)).astype(np.float32)
    kernels = rng.normal(size=(AGENTS, size, size, channels // groups, features))
    kernels = kernels.astype(np.float32)

    def ours(x, kernel):
        return convolution.convolve(x, kernel, strides, padding, groups)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    with lowerings.compiled_for(platform):
        found = jax.jit(everything, static_argnums=0)(ours, images, kernels)
    expected = jax.jit(everything, static_argnums=0)(theirs, images, kernels)
    assert asked
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    jax.tree.map(close, found, expected)


def test_cross_features_are_one_larger_convolution():
    """One model on the images of two neighbours: four images in one convolution."""
    images, kernel = jnp.ones((NEIGHBOURS, 2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
    text = jax.jit(jax.vmap(convolution.convolve, (0, None))).lower(images, kernel).as_text()
    (line,) = (line for line in text.splitlines() if "stablehlo.convolution" in line)
    assert "tensor<4x5x5x3xf32>" in line


@pytest.mark.parametrize(
    "agents, groups, numbers, expected",
    [
        (16, 1, 18_432, "patches"),
        (16, 1, 4_718_592, "unrolled"),
        (16, 16, 18_432, "unrolled"),
        (1, 1, 18_432, "unrolled"),  # the plain convolution
        (65, 1, 18_432, "patches"),
        (65, 1, 4_718_592, "batched"),
    ],
)
def test_what_is_chosen_on_a_cpu(agents, groups, numbers, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert lowerings.of_convolution(agents, groups, numbers, 16, 16) == expected


@pytest.mark.parametrize(
    "strides, groups, width, kernel, expected",
    [
        ((1, 1), 1, 28, (3, 3, 1, 16), 4),  # the first convolution of a ResNet
        ((1, 1), 1, 28, (3, 3, 16, 16), 2),
        ((1, 1), 1, 27, (3, 3, 16, 16), 1),  # an odd row
        ((1, 1), 1, 27, (3, 3, 1, 16), 3),
        ((1, 1), 1, 14, (3, 3, 32, 32), 1),  # enough features
        ((1, 1), 1, 32, (3, 3, 3, 64), 1),
        ((1, 1), 1, 32, (3, 3, 3, 128), 1),
        ((1, 1), 1, 28, (1, 1, 16, 16), 1),  # would only be more arithmetic
        ((2, 2), 1, 28, (3, 3, 16, 16), 1),
        ((1, 1), 16, 28, (3, 3, 1, 16), 1),
    ],
)
def test_outputs_computed_at_once(strides, groups, width, kernel, expected, monkeypatch):
    window = convolution._Window(strides, ((1, 1), (1, 1)), groups)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert convolution._outputs_at_once(window, width, kernel) == expected
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert convolution._outputs_at_once(window, width, kernel) == 1


def test_few_features_are_computed_for_several_outputs_at_once(monkeypatch):
    """In the forward pass and by image; by kernel the plain way is the faster one."""
    seen = []
    real = convolution._widened
    monkeypatch.setattr(convolution, "_widened", lambda *a: seen.append(a[1]) or real(*a))

    def trace():
        convolve = lambda x, k: convolution.convolve(x, k, padding=((1, 1), (1, 1))).sum()
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 4, 4, 16), (3, 3, 16, 16))]
        jax.eval_shape(jax.grad(convolve, (0, 1)), *shapes)

    trace()
    assert seen == [2, 2]
    with convolution.as_defined():
        trace()
    assert seen == [2, 2]


@pytest.mark.parametrize(
    "image, strides, numbers",
    [
        ((8, 4, 4, 16), (1, 1), 8 * 16 * 9 * 16),  # digits: 18,432
        ((32, 32, 32, 16), (1, 1), 32 * 1024 * 9 * 16),  # ResNet-20: 4,718,592
        ((32, 32, 32, 16), (2, 2), 32 * 256 * 9 * 16),
    ],
)
def test_patches_are_counted_alike_in_all_three(image, strides, numbers, monkeypatch):
    seen = []
    monkeypatch.setattr(
        lowerings, "of_convolution", lambda *given: seen.append(given) or "unrolled"
    )
    convolve = lambda x, k: convolution.convolve(x, k, strides, ((1, 1), (1, 1))).sum()
    shapes = [jax.ShapeDtypeStruct((2, *s), jnp.float32) for s in (image, (3, 3, 16, 32))]
    jax.eval_shape(jax.vmap(jax.grad(convolve, (0, 1))), *shapes)
    assert set(seen) == {(2, 1, numbers, 16, 32, True)} and len(seen) >= 3
