"""Holding out: a part of the training images, and none of the test images, is evaluated on."""

import numpy as np
import pytest

from ccl_jax.data import datasets
from ccl_jax.data.base import StreamedDataset, hold_out, take
from ccl_jax.runs import inputs
from ccl_jax.runs.config import Config


def test_the_two_parts_are_the_training_set():
    digits = datasets.load("digits")
    held = hold_out(digits, 0.25, seed=3)
    # 1437 / 4 = 359.25
    assert (len(held.train_labels), len(held.test_labels)) == (1078, 359)
    rows = lambda *parts: sorted(x.tobytes() for part in parts for x in part)
    assert rows(held.train_images, held.test_images) == rows(digits.train_images)
    pair = lambda images, labels: {
        (x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)
    }
    whole = pair(digits.train_images, digits.train_labels)
    assert pair(held.test_images, held.test_labels) <= whole
    assert pair(held.train_images, held.train_labels) <= whole
    np.testing.assert_array_equal(held.test_images, hold_out(digits, 0.25, 3).test_images)
    assert not np.array_equal(held.test_images, hold_out(digits, 0.25, 4).test_images)


class Store:
    labels = np.arange(10, dtype=np.int32)

    def read(self, index):
        return bytes([index])

    def name(self, index):
        return f"image {index}"


def test_streams_are_held_out_too():
    shape, constants = (2, 2, 1), ((0.5,), (0.5,), 255.0, tuple("abcdefghij"))
    held = hold_out(StreamedDataset("s", Store(), Store(), shape, 2, 10, *constants), 0.3, seed=0)
    assert (len(held.train.labels), len(held.test.labels)) == (7, 3)
    for store in (held.train, held.test):
        for index, label in enumerate(store.labels):
            assert store.read(index) == bytes([label]) and store.name(index) == f"image {label}"
    assert sorted([*held.train.labels, *held.test.labels]) == list(range(10))


def test_a_part_of_the_training_images_is_taken():
    digits = datasets.load("digits")
    part = take(digits, 100, seed=3)
    assert len(part.train_labels) == 100 and len(part.test_labels) == len(digits.test_labels)
    pair = lambda images, labels: {
        (x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)
    }
    whole = pair(digits.train_images, digits.train_labels)
    pairs = pair(part.train_images, part.train_labels)
    assert len(pairs) == 100 and pairs <= whole
    np.testing.assert_array_equal(part.train_images, take(digits, 100, 3).train_images)
    assert not np.array_equal(part.train_images, take(digits, 100, 4).train_images)
    shape, constants = (2, 2, 1), ((0.5,), (0.5,), 255.0, tuple("abcdefghij"))
    stream = take(StreamedDataset("s", Store(), Store(), shape, 2, 10, *constants), 4, seed=0)
    assert len(set(stream.train.labels)) == 4 and len(stream.test.labels) == 10
    assert [stream.train.read(i) for i in range(4)] == [bytes([n]) for n in stream.train.labels]
    with pytest.raises(ValueError, match="train_samples is 1438; digits has 1 to 1437 to take"):
        take(digits, 1438, seed=0)


def test_what_is_held_out_is_of_the_part_that_was_taken():
    config = Config(model="digits-cnn", agents=3, partition="iid", validation=0.25)
    found = inputs.load(config.replace(train_samples=400))
    assert (len(found.dataset.train_labels), len(found.dataset.test_labels)) == (300, 100)
    assert found.partition.sizes.sum() == 300
    with pytest.raises(ValueError, match="train_samples is 0; it must be at least 1"):
        config.replace(train_samples=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1e-6])
def test_nothing_to_train_or_evaluate_on(fraction):
    with pytest.raises(ValueError, match="both must be at least 1"):
        hold_out(datasets.load("digits"), fraction, seed=0)


def test_a_run_with_validation_leaves_the_test_set_alone():
    config = Config(model="digits-cnn", agents=3, partition="iid", validation=0.25)
    found = inputs.load(config)
    assert len(found.dataset.test_labels) == 359
    # Every training image that is left has an owner.
    assert found.partition.sizes.sum() == 1437 - 359
    with pytest.raises(ValueError, match=r"validation is 1; it must be in \[0, 1\)"):
        config.replace(validation=1)
