"""Streams: the order and its resumption, unreadable images, and the evaluation of a streamed set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ccl_jax.data import augment, batches, datasets, partition, streaming
from ccl_jax.data.base import Dataset
from ccl_jax.data.feeds import InMemory
from ccl_jax.training.evaluation import Evaluator

SIDE = 14  # What the model sees; 16 is decoded.


@pytest.fixture
def folder(tmp_path, write_folder):
    write_folder(tmp_path, ("ant", "bee", "cat"), train=9, val=3, size=(16, 16))
    return tmp_path


def load(folder):
    """The streamed set and the same images in memory."""
    streamed = datasets.load("folder-full", folder, image_size=SIDE)
    assert streamed.stored_side == 16
    return streamed, datasets.load("folder", folder, image_size=16)


def test_stream_is_the_set_in_memory_and_resumes_exactly(folder):
    streamed, held = load(folder)
    split = partition.dirichlet(held.train_labels, 3, 0.5, seed=1, min_samples=4)
    feed = streaming.Streaming(streamed, split, 4, seed=5, workers=3)
    plain = InMemory(held, split, 4, seed=5)
    assert (feed.agents, feed.steps) == (3, plain.steps)
    for epoch in (1, 2):
        items = list(feed.epoch(epoch))
        assert len(items) == feed.steps
        for item, indices in zip(items, plain.epoch(epoch), strict=True):
            assert jax.tree.map(lambda x: (x.shape, x.dtype), item) == jax.tree.map(
                lambda x: (x.shape, x.dtype), feed.item
            )
            expected = plain.fetch(plain.constants, indices)
            pixels, labels, mask = feed.fetch((), item)
            np.testing.assert_array_equal(labels, expected[1])
            np.testing.assert_array_equal(mask, expected[2])
            held_some = mask.any(axis=1)  # What a batch without samples shows is of no account.
            np.testing.assert_array_equal(pixels[held_some], expected[0][held_some])
        for start in range(feed.steps + 1):
            tail = list(feed.epoch(epoch, start))
            jax.tree.map(np.testing.assert_array_equal, tail, items[start:])
    assert len(feed.unreadable) == 0


def test_unreadable_images_are_skipped_counted_and_in_the_end_an_error(folder):
    streamed, _ = load(folder)
    bad = [folder / "train" / "bee" / f"{k}.png" for k in (2, 5)]
    bad[0].write_bytes(b"not an image")
    bad[1].write_bytes(bad[1].read_bytes()[:200])
    split = partition.iid(streamed.train_labels, 3, seed=0)
    feed = streaming.Streaming(streamed, split, 9, seed=0, max_unreadable=2)
    for epoch in (1, 2):
        (pixels, labels, mask), *_ = feed.epoch(epoch)
        assert (~mask).sum() == 2 and np.all(labels[~mask] == 0)
        # In their place stands another image of the same batch.
        for agent, place in np.argwhere(~mask):
            repeated = (pixels[agent] == pixels[agent, place]).all(axis=(1, 2, 3))
            assert repeated[mask[agent]].any()
    # Nine images a class, in alphabetical order: the bees are 9 to 17.
    assert feed.unreadable == {9 + 2, 9 + 5}

    (folder / "train" / "cat" / "0.png").unlink()
    with pytest.raises(
        ValueError, match=r"\.png: .*number 3 that cannot be read, max_unreadable is 2"
    ):
        list(feed.epoch(3))


def test_a_stream_can_be_left_early(folder):
    streamed, _ = load(folder)
    split = partition.iid(streamed.train_labels, 3, seed=0)
    for _ in range(3):
        assert next(streaming.Streaming(streamed, split, 2, seed=0).epoch(1))[0].shape[1] == 2


def test_fill_gaps():
    pixels = np.arange(2 * 4, dtype=np.uint8).reshape(2, 4, 1, 1, 1)
    mask = np.array([[False, True, False, True], [False] * 4])
    batches.fill_gaps(pixels, mask)
    np.testing.assert_array_equal(pixels.reshape(2, 4), [[1, 1, 3, 3], [4, 5, 6, 7]])


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images):
        features = images.mean(axis=(1, 2))
        return features, nn.Dense(3)(features)


@pytest.mark.parametrize("batch_size", [4, 500])
def test_streamed_evaluation_is_that_of_the_centre_crops_in_memory(folder, batch_size):
    streamed, held = load(folder)
    crop = lambda images: np.ascontiguousarray(images[:, 1:15, 1:15])
    cropped = Dataset(
        "cropped",
        crop(held.train_images),
        held.train_labels,
        crop(held.test_images),
        held.test_labels,
        3,
        streamed.mean,
        streamed.std,
        255.0,
        held.class_names,
    )
    model = Linear()
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(lambda k: model.init(k, jnp.zeros((1, SIDE, SIDE, 3)))["params"])(keys)
    ours = Evaluator(model, streamed, batch_size, workers=2)(params, {})
    expected = Evaluator(model, cropped, 500)(params, {})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected)

    # An image that cannot be read leaves the sum and the count.
    (folder / "val" / "ant" / "0.png").write_bytes(b"")
    fewer = Evaluator(model, streamed, batch_size)(params, {})
    images = augment.normalize(cropped.test_images, cropped.mean, cropped.std, 255.0)
    logits = np.stack(
        [
            model.apply(
                {
                    "params": {
                        "Dense_0": {
                            "kernel": params["Dense_0"]["kernel"][i],
                            "bias": params["Dense_0"]["bias"][i],
                        }
                    }
                },
                images,
            )[1]
            for i in range(2)
        ]
    )
    hits = logits.argmax(axis=-1) == cropped.test_labels
    np.testing.assert_allclose(fewer.local_accuracy, hits[:, 1:].mean(axis=1))
    with pytest.raises(ValueError, match=r"val/ant/0\.png: "):
        Evaluator(model, streamed, batch_size, max_unreadable=0)(params, {})


def test_padding_is_not_read(folder):
    streamed, held = load(folder)
    indices = np.array([[0, batches.PADDING], [batches.PADDING, 26]])
    skipped = streaming.Skipped(0)
    (first, second) = streaming.decode_ahead(streamed.train, indices, 16, skipped, workers=1)
    np.testing.assert_array_equal(first[0][0], held.train_images[0])
    np.testing.assert_array_equal(second[0][1], held.train_images[26])
    np.testing.assert_array_equal(first[2], [True, False])
    assert first[0][1].sum() == 0 and second[1].tolist() == [0, 2]


def test_images_that_a_run_knew_of_count_when_it_goes_on(folder):
    streamed, _ = load(folder)
    for name in ("ant", "bee"):
        (folder / "train" / name / "0.png").write_bytes(b"")
    split = partition.iid(streamed.train_labels, 3, seed=0)
    make = lambda: streaming.Streaming(streamed, split, 9, seed=0, max_unreadable=2)
    first = make()
    list(first.epoch(1))
    assert first.unreadable == {0, 9}
    # What is met again counts once.
    again = make()
    again.unreadable.update(first.unreadable)
    list(again.epoch(2))
    assert again.unreadable == {0, 9}
    # A third one is too much, although this process has met no other.
    for name in ("ant", "bee"):
        (folder / "train" / name / "0.png").write_bytes(
            (folder / "train" / "cat" / "0.png").read_bytes()
        )
    (folder / "train" / "cat" / "1.png").write_bytes(b"")
    list(make().epoch(2))
    again = make()
    again.unreadable.update(first.unreadable)
    with pytest.raises(ValueError, match=r"cat/1\.png: .*number 3 that cannot be read"):
        list(again.epoch(2))
