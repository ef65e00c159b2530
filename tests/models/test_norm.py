"""Normalisation: EvoNorm-S0 against a slow reference and numerical gradients; batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from ccl_jax import models
from ccl_jax.models.norm import EvoNormS0, activation, evonorm_s0, group_moments, norm


def slow_evonorm(x, groups, scale, shift):
    """EvoNorm-S0 in float64, one sample and one group at a time."""
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    width = x.shape[-1] // groups
    for n in range(x.shape[0]):
        for g in range(groups):
            own = slice(g * width, (g + 1) * width)
            group = x[n, :, :, own]
            std = np.sqrt(((group - group.mean()) ** 2).mean() + 1e-5)
            y[n, :, :, own] = group * np.clip(group / 6 + 0.5, 0, 1) / std
    return y * np.asarray(scale, np.float64) + np.asarray(shift, np.float64)


def images(*shape, mean=0.0, seed=0):
    return (2.5 * np.random.default_rng(seed).standard_normal(shape) + mean).astype(np.float32)


# 12 and 6 channels are not divisible by 8: the greatest common divisors are 4 and 2.
@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (6, 2)])
def test_evonorm_equals_the_slow_reference(channels, groups):
    x = images(3, 5, 4, channels)
    scale, shift = images(channels, seed=1), images(channels, seed=2)
    y = jax.jit(EvoNormS0().apply)({"params": {"scale": scale, "bias": shift}}, x)
    np.testing.assert_allclose(y, slow_evonorm(x, groups, scale, shift), rtol=2e-5, atol=2e-5)


def test_evonorm_of_one_pixel_by_hand():
    """Two channels 1 and 3 in two groups: variances are 0, so y = x * (x/6 + 1/2) / sqrt(1e-5)."""
    x = jnp.array([1.0, 3.0]).reshape(1, 1, 1, 2)
    y, _ = EvoNormS0().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y.ravel(), [210.81851, 948.68330], rtol=1e-5)


def test_group_variance_is_stable_far_from_zero():
    """Mean 1000, standard deviation 2.5: E[x^2] - E[x]^2 would keep no digit in float32."""
    x = images(2, 8, 8, 16, mean=1000.0)
    expected = x.astype(np.float64).reshape(2, 64, 8, 2).var(axis=(1, 3)).repeat(2, axis=-1)
    np.testing.assert_allclose(group_moments(x, 8)[1][:, 0, 0], expected, rtol=1e-4)


def test_evonorm_gradient():
    x = jnp.asarray(images(2, 3, 3, 4))
    # The clamp has kinks at -3 and 3; keep a finite difference away from them.
    x = jnp.where(jnp.abs(jnp.abs(x) - 3) < 0.1, 2.0, x)
    params = {"scale": jnp.asarray(images(4, seed=1)), "bias": jnp.asarray(images(4, seed=2))}
    apply = lambda params, x: EvoNormS0(groups=2).apply({"params": params}, x)
    check_grads(jax.jit(apply), (params, x), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


def plain_evonorm(x, scale, shift, groups):
    """The formula, with automatic differentiation."""
    wide = x.astype(jnp.float32)
    grouped = wide.reshape(*wide.shape[:3], groups, -1)
    std = jnp.sqrt(grouped.var(axis=(1, 2, 4), keepdims=True) + 1e-5)
    std = jnp.broadcast_to(std, grouped.shape).reshape(wide.shape)
    y = wide * jnp.clip(wide / 6 + 0.5, 0, 1) / std * scale[None, None, None]
    return (y + shift[None, None, None]).astype(x.dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_evonorm_derivative_equals_automatic_differentiation(dtype):
    """Under vmap over three agents; inputs reach beyond the clamp on both sides."""
    x, gradient = (jnp.asarray(images(3, 2, 5, 4, 12, seed=k), dtype) for k in (0, 3))
    x = jnp.where(jnp.abs(x) == 3, 2, x)  # Not on a kink, where the derivative is a choice.
    scale, shift = (jnp.asarray(images(3, 12, seed=k)) for k in (1, 2))
    assert float(x.min()) < -3 < 3 < float(x.max())

    def pull_back(fn):
        one = lambda x, scale, shift, g: jax.vjp(lambda *a: fn(*a, 4), x, scale, shift)[1](g)
        return jax.jit(jax.vmap(one))(x, scale, shift, gradient)

    ours, expected = pull_back(evonorm_s0), pull_back(plain_evonorm)
    tolerance = 2e-5 if dtype == jnp.float32 else 1e-2
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def test_evonorm_at_the_kinks():
    """PyTorch's choice: slopes -1/2 and 3/2 of x clamp(x / 6 + 1/2, 0, 1), which is (0, 3). The mean
    is 0 and the std 3, so the derivative of sum(y) is slope / 3 - x * 3 / (2 * 3^3).
    """
    x = jnp.array([-3.0, 3.0]).reshape(1, 2, 1, 1)
    one, zero = jnp.ones(1), jnp.zeros(1)
    by_x = jax.grad(lambda x: evonorm_s0(x, one, zero, 1).sum())(x)
    np.testing.assert_allclose(by_x.ravel(), [-1 / 6 + 1 / 6, 1 / 2 - 1 / 6], atol=1e-5)


def test_evonorm_keeps_x_in_its_own_type_for_the_derivative():
    kept = jax.eval_shape(
        lambda x, s: jax.vjp(lambda x: evonorm_s0(x, s, s, 2), x)[1],
        jax.ShapeDtypeStruct((2, 3, 3, 4), jnp.bfloat16),
        jax.ShapeDtypeStruct((4,), jnp.float32),
    )
    large = [leaf.dtype for leaf in jax.tree.leaves(kept) if leaf.shape == (2, 3, 3, 4)]
    assert large == [jnp.bfloat16]


class Normalised(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        return norm(self.kind, train=True, dtype=jnp.float32, name="norm1")(x)


def test_group_norm_has_two_groups():
    x = images(2, 4, 4, 6)
    y, variables = Normalised("group").init_with_output(jax.random.key(0), x)
    assert set(variables["params"]["norm1"]) == {"scale", "bias"}
    halves = x.reshape(2, 16, 2, 3)
    centred = halves - halves.mean(axis=(1, 3), keepdims=True)
    expected = centred / np.sqrt(halves.var(axis=(1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_activation():
    x = jnp.array([-1.0, 2.0])
    np.testing.assert_array_equal(activation("evonorm")(x), x)
    for kind in ("group", "batch", "none"):
        np.testing.assert_array_equal(activation(kind)(x), [0.0, 2.0])


def test_batch_norm_records_in_training_and_uses_in_evaluation(quick_init):
    model = models.make("digits-cnn", 10, norm="batch")
    params, state = quick_init(model, (8, 8, 1))
    x = images(16, 8, 8, 1)
    evaluate = jax.jit(lambda state, x: models.apply_eval(model, params, state, x))
    (_, logits), new_state = jax.jit(lambda: models.apply_train(model, params, state, x))()

    kernel, bias = params["conv1"]["kernel"], params["conv1"]["bias"]
    out = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    batch_mean = np.mean(out, axis=(0, 1, 2)) + bias
    np.testing.assert_allclose(
        new_state["batch_stats"]["norm1"]["mean"], 0.1 * batch_mean, rtol=1e-4, atol=1e-6
    )

    _, before = evaluate(state, x)
    _, after = evaluate(new_state, x)
    assert not np.allclose(before, after, atol=1e-3)
    assert not np.allclose(logits, after, atol=1e-3)
    # In evaluation one image's result does not depend on the others.
    _, alone = evaluate(new_state, x[:1])
    np.testing.assert_allclose(alone[0], after[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["evonorm", "group", "none"])
def test_other_norms_have_no_state(kind):
    model = models.make("digits-cnn", 10, norm=kind)

    def run(x):
        params, state = models.init(model, jax.random.key(0), (8, 8, 1))
        return state, models.apply_train(model, params, state, x)[1]

    assert jax.eval_shape(run, images(2, 8, 8, 1)) == ({}, {})


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm 'layer' is unknown; choose one of evonorm, group"):
        norm("layer", train=True, dtype=jnp.float32, name="norm1")
