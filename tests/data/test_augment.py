"""Augmentations, each against a plain reference, and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ccl_jax.data import augment

KEY = jax.random.key(0)
random_boxes = jax.jit(augment.random_boxes, static_argnums=(1, 2, 3))


def random_images(*shape):
    return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)


def test_normalize():
    images = jnp.array([0, 51, 255], jnp.uint8).reshape(1, 1, 1, 3)
    normalised = augment.normalize(images, (0.5, 0.0, 0.2), (0.5, 0.1, 0.4), 255.0)
    assert normalised.dtype == jnp.float32
    np.testing.assert_allclose(normalised.ravel(), [-1.0, 2.0, 2.0], rtol=1e-6)
    digits = augment.normalize(jnp.full((2, 3, 8, 8, 1), 12, jnp.uint8), (0.25,), (0.5,), 16.0)
    np.testing.assert_array_equal(digits, np.ones((2, 3, 8, 8, 1)))


def test_flip_mirrors_half_of_the_images():
    images = random_images(1000, 2, 3, 1)
    flipped = np.asarray(jax.jit(augment.flip)(KEY, images))
    mirrored = 0
    for before, after in zip(images, flipped, strict=True):
        mirror = np.array([[row[2], row[1], row[0]] for row in before])
        assert np.array_equal(after, before) or np.array_equal(after, mirror)
        mirrored += np.array_equal(after, mirror)
    assert abs(mirrored - 500) < 80  # 5 standard deviations of sqrt(1000 / 4) = 16.


def test_padded_crop_is_a_window_of_the_padded_image():
    # The pixel at (row, column) holds 1 + 10 row + column, so a crop tells where it was taken.
    pixels = 1 + 10 * np.arange(9)[:, None] + np.arange(9)
    images = np.broadcast_to(pixels[None, :, :, None], (3000, 9, 9, 1)).astype(np.float32)
    crops = np.asarray(jax.jit(augment.padded_crop)(KEY, images))
    padded = np.zeros((17, 17))
    padded[4:13, 4:13] = pixels
    seen = np.zeros((9, 9), int)
    for crop in crops[..., 0]:
        # The middle pixel of a crop is never padding.
        top, left = np.divmod(int(crop[4, 4]) - 1, 10)
        np.testing.assert_array_equal(crop, padded[top : top + 9, left : left + 9])
        seen[top, left] += 1
    # 37 expected at each of the 81 places, standard deviation 6.
    assert seen.sum() == 3000 and seen.min() > 5 and seen.max() < 70


def reference_box(rng, height, width):
    """torchvision's rule for RandomResizedCrop, for one image."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def test_random_boxes_have_the_reference_distribution():
    count, height, width = 4000, 24, 32
    boxes = np.stack(random_boxes(KEY, count, height, width)).T
    rng = np.random.default_rng(0)
    expected = np.array([reference_box(rng, height, width) for _ in range(count)])
    top, left, h, w = boxes.T
    assert boxes.min() >= 0 and h.min() > 0 and w.min() > 0
    assert np.all(top + h <= height) and np.all(left + w <= width)
    area = np.stack([h * w, expected[:, 2] * expected[:, 3]])
    for ours, theirs in [*zip(boxes.T, expected.T, strict=True), area]:
        # Two-sample Kolmogorov-Smirnov distance; 1.95 sqrt(2 / n) is passed once in 1,000 times.
        grid = np.unique(np.concatenate([ours, theirs]))
        below = [np.searchsorted(np.sort(x), grid, side="right") / count for x in (ours, theirs)]
        assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(2 / count)


def test_random_boxes_fall_back_to_the_centre():
    # With a ratio of at most 4/3, no box of 8% of 4x400 pixels is only 4 high: 4 x round(16/3).
    wide = random_boxes(KEY, 2, 4, 400)
    assert [field.tolist() for field in wide] == [[0, 0], [197, 197], [4, 4], [5, 5]]
    tall = random_boxes(KEY, 2, 400, 4)
    assert [field.tolist() for field in tall] == [[197, 197], [0, 0], [5, 5], [4, 4]]


def test_resize_boxes_equals_pillow():
    images = random_images(60, 24, 32, 2)
    boxes = augment.Boxes(*(field[:60] for field in random_boxes(KEY, 4000, 24, 32)))
    resized = np.asarray(jax.jit(augment.resize_boxes)(images, boxes))
    for image, after, (top, left, h, w) in zip(images, resized, np.stack(boxes).T, strict=True):
        crop = image[top : top + h, left : left + w]
        for channel in range(2):
            pillow = Image.fromarray(crop[..., channel]).resize((32, 24), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(after[..., channel], np.asarray(pillow), atol=1e-3)


def test_resize_of_the_whole_image_is_the_identity():
    images = jnp.asarray(random_images(2, 6, 7, 3))
    zero = jnp.zeros(2, jnp.int32)
    whole = augment.Boxes(zero, zero, jnp.full(2, 6), jnp.full(2, 7))
    np.testing.assert_allclose(jax.jit(augment.resize_boxes)(images, whole), images, atol=1e-3)


def test_resize_by_hand():
    # Columns 1 and 2 (values 10 and 20) stretched over 4: half-pixel centres, edges repeated.
    image = jnp.array([[5.0, 10.0, 20.0, 80.0]]).reshape(1, 1, 4, 1)
    field = lambda value: jnp.array([value], jnp.int32)
    box = augment.Boxes(top=field(0), left=field(1), height=field(1), width=field(2))
    resized = jax.jit(augment.resize_boxes)(image, box)
    np.testing.assert_allclose(resized.ravel(), [10.0, 12.5, 17.5, 20.0], rtol=1e-6)


def test_centre_crop():
    images = jnp.arange(6 * 7).reshape(1, 6, 7, 1)
    cropped = augment.centre_crop(images, (2, 3))[0, :, :, 0]
    np.testing.assert_array_equal(cropped, [[16, 17, 18], [23, 24, 25]])
    np.testing.assert_array_equal(augment.centre_crop(images, (6, 7)), images)


def test_resize_to_another_size():
    # Half the size, by hand: targets lie between two pixels each.
    image = jnp.array([[0.0, 10.0, 20.0, 40.0]]).reshape(1, 1, 4, 1)
    field = lambda value: jnp.array([value], jnp.int32)
    whole = augment.Boxes(top=field(0), left=field(0), height=field(1), width=field(4))
    np.testing.assert_allclose(
        augment.resize_boxes(image, whole, (1, 2)).ravel(), [5.0, 30.0], rtol=1e-6
    )


@pytest.mark.parametrize("name", augment.NAMES)
def test_every_augmentation_makes_the_size(name):
    # Every pixel of a constant image keeps its value unless a padded crop lets black in.
    images = jnp.full((3, 16, 12, 2), 9.0)
    after = jax.jit(augment.make(name, (10, 8)))(KEY, images)
    assert after.shape == (3, 10, 8, 2)
    if name != "flip-crop":
        np.testing.assert_allclose(after, 9.0, rtol=1e-5)


@pytest.mark.parametrize("name", augment.NAMES)
def test_every_augmentation(name):
    apply = jax.jit(augment.make(name))
    images = jnp.asarray(random_images(3, 4, 16, 16, 3))
    after = apply(KEY, images[0])
    assert after.shape == images[0].shape and after.dtype == jnp.float32
    np.testing.assert_array_equal(after, apply(KEY, images[0]))
    assert np.array_equal(after, apply(jax.random.key(1), images[0])) == (name == "none")
    # For all agents at once, the same as agent by agent.
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(augment.make(name)))(keys, images)
    for agent in range(3):
        alone = apply(keys[agent], images[agent])
        np.testing.assert_allclose(together[agent], alone, rtol=1e-5, atol=1e-4)


def test_combinations_use_independent_keys():
    # In a flip-crop, mirrored images are cropped where others are.
    images = jnp.broadcast_to(jnp.arange(1.0, 10.0)[None, None, :, None], (2000, 9, 9, 1))
    after = np.asarray(jax.jit(augment.make("flip-crop"))(KEY, images))[:, 4, :, 0]
    mirrored = after[:, 3] > after[:, 5]
    shift = after[:, 4]
    assert abs(shift[mirrored].mean() - 5) < 0.5 and abs(shift[~mirrored].mean() - 5) < 0.5
    assert abs(mirrored.mean() - 0.5) < 0.06


def test_unknown_name_gives_the_nearest():
    with pytest.raises(
        ValueError, match="unknown augmentation 'flipcrop': did you mean 'flip-crop'"
    ):
        augment.make("flipcrop")
