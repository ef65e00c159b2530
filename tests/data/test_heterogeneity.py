"""Quantity skew, label noise and domains: what they keep, what they change, and their errors."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax.data import heterogeneity, partition
from ccl_jax.data.base import Dataset

LABELS = np.arange(400, dtype=np.int32) % 5


def toy(name, shape, count=40, classes=2, scale=255.0, value=0):
    images = np.full((count, *shape), value, np.uint8)
    labels = np.arange(count, dtype=np.int32) % classes
    constants = ((0.5,) * shape[2], (0.5,) * shape[2], scale)
    names = tuple("abcdefg"[:classes])
    return Dataset(name, images, labels, images[:4], labels[:4], classes, *constants, names)


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(partition.NAMES),
    agents=st.integers(1, 12),
    alpha=st.floats(0.05, 10),
    quantity=st.floats(0.01, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_quantity_skew_on_every_split_keeps_samples_at_most_once(
    name, agents, alpha, quantity, seed
):
    try:
        users = np.arange(len(LABELS)) % 15
        split = partition.make(name, LABELS, agents, alpha=alpha, seed=seed, users=users)
    except ValueError:
        return  # A combination that the split itself refuses; see test_partition.
    skewed = heterogeneity.quantity_skew(split, quantity, seed, min_samples=3)
    held = np.concatenate(skewed.indices)
    assert len(np.unique(held)) == len(held)
    for before, after in zip(split.indices, skewed.indices, strict=True):
        assert set(after) <= set(before) and len(after) >= min(3, len(before))
    # Whoever drew most keeps everything.
    assert (skewed.sizes == split.sizes).any()


def test_quantity_skew_follows_its_draw_and_keeps_the_mixture():
    split = partition.iid(np.arange(80_000, dtype=np.int32) % 5, 8, seed=1)
    sizes = np.array(
        [heterogeneity.quantity_skew(split, 1.0, seed, 1).sizes / 10_000 for seed in range(400)]
    )
    # For q ~ Dir(1 ...) the q_i are exponentials over their sum, so q_i / max q are exponentials
    # over their maximum.
    draws = np.random.default_rng(5).exponential(size=(200_000, 8))
    expected = (draws / draws.max(axis=1, keepdims=True)).mean()
    assert abs(sizes.mean() - expected) < 0.02
    nearly_equal = heterogeneity.quantity_skew(split, 1e6, 0, 1).sizes
    assert nearly_equal.min() > 0.98 * nearly_equal.max()
    skewed = heterogeneity.quantity_skew(split, 1.0, 0, 1)
    counts = partition.class_counts(skewed, np.arange(80_000) % 5, 5)
    big = counts.sum(axis=1) > 2000
    assert np.all(abs(counts[big] / counts[big].sum(axis=1, keepdims=True) - 0.2) < 0.04)


def test_quantity_skew_errors():
    split = partition.iid(LABELS, 4, 0)
    for alpha in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="quantity_alpha must be above 0"):
            heterogeneity.quantity_skew(split, alpha, 0, 1)
    with pytest.raises(ValueError, match="min_samples must be 1"):
        heterogeneity.quantity_skew(split, 1.0, 0, 0)
    with pytest.raises(
        ValueError, match=r"quantity_alpha must be .* at most 1e\+09, got 1\.7e\+308"
    ):
        heterogeneity.quantity_skew(split, 1.7e308, 0, 1)
    assert np.ptp(heterogeneity.quantity_skew(split, 1e9, 0, 1).sizes) <= 1


def test_label_noise_has_the_asked_rate_and_never_the_true_class():
    split = partition.dirichlet(LABELS, 4, 0.5, seed=3)
    rates = np.array([0.0, 0.25, 0.5, 1.0])
    noisy = heterogeneity.label_noise(LABELS, split, rates, 5, seed=7)
    for held, rate in zip(split.indices, rates, strict=True):
        assert (noisy[held] != LABELS[held]).sum() == round(rate * len(held))
    assert noisy.dtype == np.int32 and noisy.min() >= 0 and noisy.max() <= 4
    again = heterogeneity.label_noise(LABELS, split, rates, 5, seed=7)
    np.testing.assert_array_equal(noisy, again)
    assert (noisy != heterogeneity.label_noise(LABELS, split, rates, 5, seed=8)).any()
    np.testing.assert_array_equal(LABELS, np.arange(400) % 5)
    # Wrong classes are equally likely: 100 wrong 0s among 4 others.
    many = np.zeros(8000, np.int32)
    wrong = heterogeneity.label_noise(many, partition.iid(many, 1, 0), [1.0], 5, 0)
    assert abs(np.bincount(wrong, minlength=5) - [0, 2000, 2000, 2000, 2000]).max() < 200


def test_noise_rates():
    np.testing.assert_allclose(heterogeneity.noise_rates("0.1", 3), [0.1, 0.1, 0.1])
    np.testing.assert_allclose(heterogeneity.noise_rates("0:0.4", 3), [0, 0.2, 0.4])
    for text in ("", "much", "1.5", "0:2", "nan", "0.1:0.2:0.3"):
        with pytest.raises(ValueError, match="label_noise is"):
            heterogeneity.noise_rates(text, 3)
    with pytest.raises(ValueError, match="rate in"):
        heterogeneity.label_noise(LABELS, partition.iid(LABELS, 2, 0), [0.1, 1.1], 5, 0)
    with pytest.raises(ValueError, match="2 classes"):
        heterogeneity.label_noise(LABELS * 0, partition.iid(LABELS, 1, 0), [0.1], 1, 0)


def test_join_brings_all_to_the_first_ones_shape():
    first = toy("first", (8, 8, 3), value=10)
    grey = toy("grey", (4, 6, 1), count=10, scale=16.0, value=8)
    whole, domains = heterogeneity.join([first, grey])
    assert whole.train_images.shape == (50, 8, 8, 3) and whole.test_images.shape == (8, 8, 8, 3)
    np.testing.assert_array_equal(whole.train_images[:40], 10)
    # 8 of 16 is 127.5 of 255, rounded to even.
    np.testing.assert_array_equal(whole.train_images[40:], 128)
    np.testing.assert_array_equal(domains, [0] * 40 + [1] * 10)
    assert whole.name == "first + grey" and whole.scale == 255

    colours = toy("colours", (8, 8, 3), count=2)
    colours.train_images[:] = [30, 60, 90]
    whole, _ = heterogeneity.join([toy("grey", (8, 8, 1)), colours])
    np.testing.assert_array_equal(whole.train_images[40:], 60)
    with pytest.raises(ValueError, match="must be square"):
        heterogeneity.join([grey, first])
    with pytest.raises(
        ValueError, match="alpha: its images have 4 channels, those of first 3; only"
    ):
        heterogeneity.join([first, toy("alpha", (8, 8, 4))])


def named(name, classes, **options):
    """A set whose images show the place of their class's name in the alphabet."""
    made = toy(name, (8, 8, 1), classes=len(classes), **options)
    for images, labels in (
        (made.train_images, made.train_labels),
        (made.test_images, made.test_labels),
    ):
        images[:] = np.array([ord(c[-1]) for c in classes], np.uint8)[labels][:, None, None, None]
    return dataclasses.replace(made, class_names=tuple(classes))


def test_classes_are_joined_by_their_names():
    sets = [named("first", ["ant", "bed", "cow"]), named("second", ["cow", "ant", "bed"], count=30)]
    whole, _ = heterogeneity.join(sets)
    assert whole.class_names == ("ant", "bed", "cow") and whole.train_labels.dtype == np.int32
    shown = np.array([ord("t"), ord("d"), ord("w")])
    np.testing.assert_array_equal(whole.train_images[:, 0, 0, 0], shown[whole.train_labels])
    np.testing.assert_array_equal(whole.test_images[:, 0, 0, 0], shown[whole.test_labels])
    # 0, 1, 2, 0 ... of the second are a cow, an ant and a bed.
    assert whole.train_labels[40:44].tolist() == [2, 0, 1, 2]
    assert whole.test_labels.tolist() == [0, 1, 2, 0, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ["ant", "bed"],
            "first has ant, bed, cow and other has ant, bed, only one has cow: rename",
        ),
        (["ant", "bed", "elk"], "only one has cow, elk: "),
        (["ant", "bed", "cow", "elk"], "only one has elk: "),
        (["ant", "bed", "bed"], "only one has cow: "),
        (["ant", "bed", "cow", "cow"], "a name is there twice: "),
    ],
)
def test_classes_of_other_names_are_not_joined(classes, message):
    first, other = named("first", ["ant", "bed", "cow"]), named("other", classes)
    with pytest.raises(ValueError, match=message):
        heterogeneity.join([first, other])
    with pytest.raises(
        ValueError, match="domains need the same classes by name: other has ant, bed"
    ):
        heterogeneity.join([other, first])


def test_agents_hold_one_domain_each():
    domains = np.array([0] * 200 + [1] * 120 + [2] * 80)
    split = heterogeneity.by_domain(LABELS, domains, 7, lambda y, n, _: partition.iid(y, n, 0))
    assert [set(domains[held]) for held in split.indices] == [{0}, {1}, {2}, {0}, {1}, {2}, {0}]
    assert sorted(np.concatenate(split.indices)) == list(range(400))
    assert split.name == "iid by domain"
    with pytest.raises(ValueError, match="3 domains need at least 3 agents, there are 2"):
        heterogeneity.by_domain(LABELS, domains, 2, lambda y, n, _: partition.iid(y, n, 0))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(partition.NAMES),
    sizes=st.lists(st.integers(30, 120), min_size=1, max_size=3),
    agents=st.integers(1, 9),
    alpha=st.floats(0.05, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_split_by_domain_holds_a_sample_at_most_once(name, sizes, agents, alpha, seed):
    domains = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).integers(0, 4, len(domains)).astype(np.int32)
    parts = lambda y, n, _=0: partition.make(
        name, y, n, alpha=alpha, seed=seed, min_samples=1, users=np.arange(len(y)) % 15
    )
    try:
        split = heterogeneity.by_domain(labels, domains, agents, parts)
    except ValueError:
        return  # Too few agents, or a combination that the split itself refuses.
    held = np.concatenate(split.indices)
    assert len(np.unique(held)) == len(held) and held.max() < len(labels)
    for agent, own in enumerate(split.indices):
        assert set(domains[own]) == {agent % len(sizes)}
    # What the split of a domain alone leaves out, and no more, is held by nobody.
    for domain in range(len(sizes)):
        members = np.flatnonzero(domains == domain)
        alone = parts(labels[members], len(range(domain, agents, len(sizes))))
        assert set(members[np.concatenate(alone.indices)]) == set(held) & set(members)
