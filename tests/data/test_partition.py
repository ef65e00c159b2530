"""Partitions: the published split index for index, and the promises of every split."""

import itertools
import math
import pathlib
import re
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ccl_jax.data import partition, published_dirichlet

# Recorded from the authors' PyTorch code: labels and, for six settings, the indices of every agent.
RECORDED = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "partition_dirichlet.npz")
SETTINGS = [name for name in RECORDED.files if name.startswith("indices_")]


@pytest.mark.parametrize("setting", SETTINGS)
def test_published_split_is_reproduced_index_for_index(setting):
    labels, agents, alpha, seed = re.fullmatch(
        r"indices_(\w)_n(\d+)_alpha([\d.]+)_seed(\d+)", setting
    ).groups()
    split = partition.make(
        "dirichlet", RECORDED[f"labels_{labels}"], int(agents), alpha=float(alpha), seed=int(seed)
    )
    np.testing.assert_array_equal(np.stack(split.indices), RECORDED[setting])
    assert {held.dtype for held in split.indices} == {np.dtype(np.int32)}


def test_all_recorded_settings_are_tested():
    assert len(SETTINGS) == 6


def published_reference(labels, agents, alpha, seed, max_deals):
    """The published split, slow and with its NaN left in; None where it needs too many deals."""
    rng = np.random.RandomState(seed)
    pairs = list(enumerate(labels))
    rng.shuffle(pairs)
    result, remaining, begin = [], agents, 0
    for _ in range(math.ceil(agents / 10)):
        end = begin + int(10 / agents * len(pairs)) if remaining > 10 else len(pairs)
        chunk, workers = pairs[begin:end], min(10, remaining)
        begin, remaining = end, remaining - 10
        for _ in range(max_deals):
            lists = [[] for _ in range(workers)]
            for k in range(max(labels) + 1):
                members = [i for i, label in chunk if label == k]
                p = rng.dirichlet([alpha] * workers)
                p = np.array(
                    [
                        q * (len(have) < len(chunk) / workers)
                        for q, have in zip(p, lists, strict=True)
                    ]
                )
                p = p / p.sum()
                cuts = (np.cumsum(p) * len(members)).astype(int)[:-1]
                for have, piece in zip(lists, np.split(np.array(members), cuts), strict=True):
                    have += piece.tolist()
            if min(map(len, lists)) >= int(0.5 * len(chunk) / workers):
                break
        else:
            return None
        result += itertools.chain(*lists)
    size = len(labels) // agents
    return np.array(result)[: agents * size].reshape(agents, size)


@settings(deadline=None, max_examples=40)
@given(
    agents=st.integers(1, 23),
    alpha=st.sampled_from([1e-3, 3e-3, 0.01, 0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**32 - 1),
    samples_each=st.integers(1, 20),
)
def test_published_split_equals_a_plain_reference(agents, alpha, seed, samples_each):
    labels = np.random.default_rng(seed).integers(0, 5, agents * samples_each + agents // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The reference divides 0 by 0 and casts the NaN.
        expected = published_reference(labels, agents, alpha, seed, max_deals=100)
    assume(expected is not None)
    split = partition.dirichlet_authors(labels, agents, alpha, seed)
    np.testing.assert_array_equal(np.stack(split.indices), expected)


@pytest.mark.parametrize(("agents", "alpha", "seed"), [(1, 0.003, 835771), (3, 1e-3, 0)])
def test_published_split_where_draws_underflow(agents, alpha, seed):
    # In the first case the sum of the gamma draws is denormal and p infinite.
    labels = np.random.default_rng(seed).integers(0, 5, 7 * agents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = published_reference(labels, agents, alpha, seed, max_deals=10_000)
    split = partition.dirichlet_authors(labels, agents, alpha, seed)
    np.testing.assert_array_equal(np.stack(split.indices), expected)


def test_published_split_gives_up_with_a_clear_error():
    # So small an alpha underflows: every class would go to the last agent, for ever.
    with pytest.raises(
        ValueError,
        match=r"alpha 1e-05 with 4 agents and 2 classes.*agent 0 got 0 samples.*larger alpha",
    ):
        partition.dirichlet_authors(np.arange(100) % 2, 4, 1e-5, 0)
    assert published_dirichlet.MAX_DEALS >= 1000  # Published settings need up to a few hundred.


SMALL = {"min_samples": 1, "shards_per_agent": 1}


@st.composite
def problems(draw):
    """Labels, a number of agents that they can serve, and a seed."""
    agents = draw(st.integers(1, 25))
    samples = draw(st.integers(agents, agents + 300))
    num_classes = draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, num_classes, samples), agents, seed


@settings(deadline=None, max_examples=60)
@given(problem=problems(), alpha=st.floats(1e-3, 100))
def test_clean_dirichlet_uses_all_samples_and_keeps_the_minimum(problem, alpha):
    labels, agents, seed = problem
    minimum = max(1, len(labels) // agents // 2)
    split = partition.dirichlet(labels, agents, alpha, seed, min_samples=minimum)
    assert_each_once(split, len(labels))
    assert split.sizes.min() >= minimum


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_iid_uses_all_samples_in_equal_sizes(problem):
    labels, agents, seed = problem
    split = partition.iid(labels, agents, seed)
    assert_each_once(split, len(labels))
    assert split.sizes.max() - split.sizes.min() <= 1


@settings(deadline=None, max_examples=60)
@given(problem=problems(), data=st.data())
def test_shards_use_all_samples_and_few_classes(problem, data):
    labels, agents, seed = problem
    per_agent = data.draw(st.integers(1, min(5, len(labels) // agents)))
    split = partition.shards(labels, agents, seed, per_agent)
    assert_each_once(split, len(labels))
    # The sorted labels change class num_classes - 1 times, and each change adds a class to a shard.
    counts = partition.class_counts(split, labels, 12)
    assert (counts > 0).sum() <= agents * per_agent + len(np.unique(labels)) - 1


def test_shards_of_whole_classes():
    # 5 agents x 2 shards of 100 sorted samples of 10 classes: every shard is one class.
    split = partition.shards(np.arange(100) % 10, 5, 3)
    counts = partition.class_counts(split, np.arange(100) % 10, 10)
    np.testing.assert_array_equal((counts == 10).sum(axis=1), [2] * 5)
    assert split.sizes.tolist() == [20] * 5


@settings(deadline=None, max_examples=60)
@given(
    agents=st.integers(1, 20),
    num_classes=st.integers(1, 10),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_classes_per_agent_holds_exactly_k(agents, num_classes, seed, data):
    k = data.draw(st.integers(1, num_classes))
    labels = np.random.default_rng(seed).permutation(np.arange(num_classes * 41) % num_classes)
    split = partition.classes_per_agent(labels, agents, k, seed)
    held = partition.class_counts(split, labels, num_classes) > 0
    np.testing.assert_array_equal(held.sum(axis=1), [k] * agents)
    holders = held.sum(axis=0)
    assert holders.max() - holders.min() <= 1
    assert len(np.unique(np.concatenate(split.indices))) == split.sizes.sum()
    if agents * k >= num_classes:
        assert_each_once(split, len(labels))


def test_classes_per_agent_needs_a_sample_for_each_holder():
    with pytest.raises(ValueError, match="class 1 has 1 samples for 5 agents"):
        partition.classes_per_agent(np.array([0] * 9 + [1]), 5, 2, 0)


def test_clean_dirichlet_proportions_have_dirichlet_moments():
    # 300 classes of 200 samples over 4 agents. For p ~ Dir(0.5, 0.5, 0.5, 0.5):
    # E p = 1/4 and E p^2 = 0.5 * 1.5 / (2 * 3) = 1/8, p_j ~ Beta(0.5, 1.5).
    labels = np.arange(60_000) % 300
    counts = partition.class_counts(partition.dirichlet(labels, 4, 0.5, 0), labels, 300)
    p = counts / 200
    np.testing.assert_allclose(p.sum(axis=0), 1)
    np.testing.assert_allclose(p.mean(axis=1), 0.25, atol=0.05)
    assert abs((p**2).mean() - 0.125) < 0.012
    # P(Beta(0.5, 1.5) < 0.1) = (2 / pi) (asin(sqrt(0.1)) + sqrt(0.1 * 0.9)) = 0.3958.
    assert abs((p < 0.1).mean() - 0.3958) < 0.05


def test_clean_dirichlet_moves_no_more_than_needed():
    # So small an alpha gives each class to one agent: most agents only get samples that are moved.
    labels = np.arange(400) % 2
    split = partition.dirichlet(labels, 8, 1e-6, 5, min_samples=20)
    sizes = np.sort(split.sizes)
    assert sizes.sum() == 400
    np.testing.assert_array_equal(sizes[:6], [20] * 6)


@pytest.mark.parametrize("name", partition.NAMES)
def test_every_split_is_deterministic_and_depends_on_the_seed(name):
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    first, again, other = (
        partition.make(
            name, labels, 8, alpha=0.3, seed=seed, min_samples=20, users=np.arange(1000) // 20
        )
        for seed in (5, 5, 6)
    )
    assert first.name == name and first.agents == 8
    for a, b in zip(first.indices, again.indices, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        set(a.tolist()) != set(b.tolist())
        for a, b in zip(first.indices, other.indices, strict=True)
    )


@pytest.mark.parametrize("name", partition.NAMES)
def test_smallest_problems(name):
    one = partition.make(
        name, np.array([0]), 1, alpha=0.1, seed=0, classes_per_agent=1, users=np.array([7]), **SMALL
    )
    assert [held.tolist() for held in one.indices] == [[0]]
    labels = np.arange(12) % 3
    own = {"classes_per_agent": 1, "users": np.arange(12)}
    twelve = partition.make(name, labels, 12, alpha=100.0, seed=0, **own, **SMALL)
    assert sorted(np.concatenate(twelve.indices).tolist()) == list(range(12))


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet-clean"])
def test_small_alpha_is_heterogeneous(name):
    labels = np.random.default_rng(0).integers(0, 10, 2000)
    divergence = [
        partition.label_divergence(
            partition.class_counts(partition.make(name, labels, 8, alpha=a, seed=0), labels, 10)
        )
        for a in (0.05, 1.0, 1000.0)
    ]
    assert divergence[0] > 0.7 > divergence[1] > 0.15 > divergence[2]


LABELS = np.arange(100) % 10


@pytest.mark.parametrize(
    ("name", "labels", "agents", "options", "message"),
    [
        ("dirchlet", LABELS, 4, {}, "unknown partition 'dirchlet': did you mean 'dirichlet'"),
        ("dirichlet", LABELS, 4, {"alpha": 0.0}, "alpha must be above 0 .*got 0.0"),
        ("dirichlet", LABELS, 4, {"alpha": -1.0}, "got -1.0"),
        ("dirichlet", LABELS, 4, {"alpha": float("nan")}, "got nan"),
        ("dirichlet-clean", LABELS, 4, {"alpha": float("inf")}, "got inf"),
        ("iid", LABELS, 0, {}, "agents must be 1 or more, got 0"),
        ("iid", LABELS, 101, {}, "101 agents cannot share 100 samples"),
        ("iid", LABELS * 1.0, 4, {}, "labels must be integers"),
        ("iid", LABELS - 1, 4, {}, "lowest is -1"),
        ("iid", LABELS, 4, {"seed": -1}, "seed must be 0 to"),
        ("dirichlet", LABELS, 4, {"seed": 2**32}, "seed must be 0 to"),
        ("dirichlet-clean", LABELS, 11, {}, "min_samples must be 1 to 9 .*got 10"),
        ("shards", LABELS, 60, {}, r"shards_per_agent must be 1 to 1 \(100 samples"),
        ("classes", LABELS, 4, {"classes_per_agent": 11}, r"1 to 10 \(classes\), got 11"),
        ("users", LABELS, 4, {}, "an array users in an .npz"),
        ("users", LABELS, 4, {"users": LABELS % 3}, "3 users cannot be dealt to 4 agents: take at"),
        ("users", LABELS, 0, {"users": LABELS}, "agents must be 1 or more, got 0"),
        ("users", LABELS, 4, {"users": LABELS[1:]}, r"\(99,\), expected one a sample, \(100,\)"),
    ],
)
def test_bad_input(name, labels, agents, options, message):
    with pytest.raises(ValueError, match=message) as error:
        partition.make(name, labels, agents, **({"alpha": 0.1, "seed": 0} | options))
    assert "\n" not in str(error.value)


def test_partition_checks_itself():
    with pytest.raises(ValueError, match="agent 1 of 2 would hold no samples"):
        partition.Partition("mine", (np.array([0]), np.array([], int)))
    with pytest.raises(ValueError, match="index 3 is held 2 times"):
        partition.Partition("mine", (np.array([0, 3]), np.array([3])))


def test_class_counts_and_sizes():
    split = partition.Partition("mine", (np.array([0, 1, 2]), np.array([4])))
    labels = np.array([2, 0, 2, 1, 3])
    counts = partition.class_counts(split, labels, 5)
    np.testing.assert_array_equal(counts, [[1, 0, 2, 0, 0], [0, 0, 0, 1, 0]])
    assert partition.size_summary(split) == (4, 1, 2.0, 3, 1.0)


def test_label_divergence():
    assert partition.label_divergence(np.array([[7, 3]])) == 0
    assert partition.label_divergence(np.array([[2, 4], [1, 2], [5, 10]])) == pytest.approx(0)
    assert partition.label_divergence(np.array([[9, 0, 0], [0, 1, 0], [0, 0, 4]])) == 1
    # Pairs at distance 1, 1/2 and 1/2.
    assert partition.label_divergence(np.array([[4, 0], [0, 4], [2, 2]])) == pytest.approx(2 / 3)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 50), min_size=4, max_size=4), min_size=2, max_size=9))
def test_label_divergence_equals_the_pairwise_mean(counts):
    p = [np.array(row) / sum(row) for row in counts]
    pairs = [np.abs(a - b).sum() / 2 for a, b in itertools.combinations(p, 2)]
    assert partition.label_divergence(np.array(counts)) == pytest.approx(np.mean(pairs), abs=1e-12)


def assert_each_once(split: partition.Partition, samples: int) -> None:
    assert sorted(np.concatenate(split.indices).tolist()) == list(range(samples))
