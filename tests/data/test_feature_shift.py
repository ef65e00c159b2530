"""Feature shifts against plain references, and the feed that applies them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ccl_jax.data import feature_shift, partition
from ccl_jax.data.base import Dataset
from ccl_jax.data.feature_shift import Shift
from ccl_jax.data.feeds import InMemory

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 2)).astype(np.float32)


def test_rotation_by_quarters_is_exact_and_else_as_scipy():
    quarter = feature_shift.rotate(jnp.float32(np.pi / 2), IMAGES)
    np.testing.assert_allclose(quarter, np.rot90(IMAGES, 1, (1, 2)), atol=1e-3)
    half = feature_shift.rotate(jnp.float32(np.pi), IMAGES)
    np.testing.assert_allclose(half, IMAGES[:, ::-1, ::-1], atol=2e-3)
    turned = feature_shift.rotate(jnp.float32(np.deg2rad(25)), IMAGES)
    expected = ndimage.rotate(IMAGES, 25, axes=(2, 1), reshape=False, order=1)
    # At the border the two treat half-covered pixels differently.
    np.testing.assert_allclose(turned[:, 2:7, 2:7], expected[:, 2:7, 2:7], atol=1e-2)


def test_blur_is_scipys_gaussian():
    blur = jax.jit(feature_shift._blur(1.5))
    for sigma in (1.5, 0.7):
        ours = blur(jnp.float32(sigma), IMAGES)
        expected = ndimage.gaussian_filter(
            IMAGES, (0, sigma, sigma, 0), mode="nearest", radius=(0, 5, 5, 0)
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(blur(jnp.float32(0), IMAGES), IMAGES)


def test_noise_depends_on_image_and_agent_only():
    noise = jax.jit(feature_shift.noise, static_argnums=2)
    same = noise(jnp.float32(0.1), IMAGES, 255.0)
    np.testing.assert_array_equal(same[1], noise(jnp.float32(0.1), IMAGES[[2, 1, 1]], 255.0)[2])
    other = noise(jnp.float32(0.2), IMAGES, 255.0)
    drawn, other = (same - IMAGES) / 25.5, (other - IMAGES) / 51
    assert abs(drawn - other).min() > 0
    assert abs(drawn[0] - drawn[1]).min() > 0
    big = np.zeros((1, 200, 200, 1), np.float32)
    z = noise(jnp.float32(0.1), big, 255.0) / 25.5
    assert abs(float(z.mean())) < 0.02 and abs(float(z.std()) - 1) < 0.02


def test_degrees_cover_what_is_asked():
    shifts = [feature_shift.parse(t) for t in ("rotation:1", "colour:0.5", "blur:2", "noise:0.1")]
    angle, factors, sigma, std = feature_shift.degrees(shifts, 4, 3, seed=0)
    np.testing.assert_allclose(np.sort(angle), np.array([0, 1, 2, 3]) * np.pi / 2, rtol=1e-6)
    np.testing.assert_allclose(np.sort(sigma), [0, 2 / 3, 4 / 3, 2], rtol=1e-6)
    np.testing.assert_allclose(np.sort(std), [0, 0.1 / 3, 0.2 / 3, 0.1], rtol=1e-6)
    assert factors.shape == (4, 3) and factors.min() >= 0.5 and factors.max() <= 1.5
    again = feature_shift.degrees(shifts, 4, 3, seed=0)
    jax.tree.map(np.testing.assert_array_equal, again, (angle, factors, sigma, std))
    assert feature_shift.degrees(shifts[2:3], 1, 3, 0)[0] == [2]


@pytest.mark.parametrize("text", ["rotation", "rotation:", "blur:-1", "noise:lots", "blur:1e9"])
def test_unclear_shifts_are_named(text):
    with pytest.raises(ValueError, match="is not of the form"):
        feature_shift.parse(text)
    with pytest.raises(ValueError, match="unknown feature_shift 'rotate': did you mean 'rotation'"):
        feature_shift.parse("rotate:1")


def test_shifted_feed():
    count = 8
    images = np.random.default_rng(1).integers(0, 256, (count, 6, 6, 3), np.uint8)
    labels = np.arange(count, dtype=np.int32) % 2
    dataset = Dataset(
        "toy", images, labels, images, labels, 2, (0.5,) * 3, (0.5,) * 3, 255.0, ("a", "b")
    )
    feed = InMemory(dataset, partition.iid(labels, 2, 0), 3, seed=0)
    shifts = (Shift("rotation", 1.0), Shift("colour", 0.3))
    degrees = (np.array([0, np.pi], np.float32), np.array([[1, 1, 1], [2, 1, 0]], np.float32))
    shifted = feature_shift.Shifted(feed, shifts, degrees, dataset.scale)
    assert (shifted.agents, shifted.steps) == (2, 2)
    fetch = jax.jit(shifted.fetch)
    for plain_item, item in zip(feed.epoch(3), shifted.epoch(3), strict=True):
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), item)
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), shifted.item)
        before, labels, mask = feed.fetch(feed.constants, plain_item)
        after, labels_after, mask_after = fetch(shifted.constants, item)
        assert after.dtype == jnp.uint8
        np.testing.assert_array_equal(labels, labels_after)
        np.testing.assert_array_equal(mask, mask_after)
        np.testing.assert_array_equal(after[0], before[0])
        turned = np.asarray(before[1], int)[:, ::-1, ::-1] * [2, 1, 0]
        assert abs(np.asarray(after[1], int) - np.clip(turned, 0, 255)).max() <= 1
    tail = [item[0] for item in shifted.epoch(3, start=1)]
    np.testing.assert_array_equal(tail, list(feed.epoch(3, start=1)))
