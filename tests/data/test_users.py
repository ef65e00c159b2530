"""Splits by user: whole users, as even as a greedy deal, and what runs say of them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax.data import partition, users
from experiments import cli, digits


def dealt(sizes, agents, seed=0):
    """Sizes of the agents where users hold so many samples each, in shuffled order."""
    whose = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return sorted(len(held) for held in users.deal(whose, len(whose), agents, seed))


@pytest.mark.parametrize(
    ("sizes", "agents", "expected"),
    [
        ([7], 1, [7]),
        ([9, 1, 1, 1], 2, [3, 9]),
        # By hand: 7 | 6 | 5 -> 5 + 4, 6 + 3 -> 7 + 2.
        ([2, 3, 4, 5, 6, 7], 3, [9, 9, 9]),
        # Where greedy is not the best, [9, 9, 9]: 5 5 | 4 4 3 3 3 gives 5 + 3, 5 + 3, 4 + 4 and 3 more.
        ([5, 5, 4, 4, 3, 3, 3], 3, [8, 8, 11]),
        ([4] * 6, 4, [4, 4, 8, 8]),
    ],
)
def test_the_largest_go_first_to_who_holds_least(sizes, agents, expected):
    for seed in range(5):
        assert dealt(sizes, agents, seed) == expected


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    agents=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_user_is_shared_and_every_sample_is_held(sizes, agents, seed):
    agents = min(agents, len(sizes))
    names = np.array([f"u{k}" for k in range(len(sizes))])
    whose = np.random.default_rng(seed).permutation(np.repeat(names, sizes))
    split = partition.make(
        "users", np.zeros(len(whose), int), agents, alpha=1, seed=seed, users=whose
    )
    held = [set(whose[own]) for own in split.indices]
    assert sum(map(len, held)) == len(set.union(*held)) == len(sizes)
    assert sorted(np.concatenate(split.indices)) == list(range(len(whose)))
    # Whoever holds most would hold less than everybody else without its last, smallest, user.
    most = split.indices[int(split.sizes.argmax())]
    smallest = np.unique(whose[most], return_counts=True)[1].min()
    assert split.sizes.max() - smallest <= split.sizes.min()


def test_the_seed_decides_between_equals():
    whose = np.arange(40) // 4
    splits = [users.deal(whose, 40, 5, seed) for seed in (0, 0, 1)]
    held = [[frozenset(whose[own]) for own in split] for split in splits]
    assert held[0] == held[1] != held[2]
    # Also which agent the largest user falls to.
    whose = np.repeat([0, 1, 2], [5, 1, 1])
    places = {np.argmax([len(own) for own in users.deal(whose, 7, 3, seed)]) for seed in range(20)}
    assert places == {0, 1, 2}


@pytest.fixture
def file(tmp_path):
    """An .npz of 48 images by six users, who hold 3 to 13 of them."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (48, 8, 8), np.uint8), np.arange(48) % 3
    arrays = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    whose = np.repeat(list("abcdef"), [3, 5, 7, 9, 11, 13])
    np.savez(tmp_path / "own.npz", **arrays, users=whose)
    np.savez(tmp_path / "without.npz", **arrays)
    return tmp_path / "own.npz"


def run(file, *flags):
    argv = ["digits", "--dataset=npz", f"--data_dir={file}", "--partition=users", *flags]
    argv += ["--algorithm=dsgd", "--batch_size=4", "--epochs=1", "--noprogress", "--nofigures"]
    return cli.run_main(digits.main, digits.DEFAULTS, digits.__doc__, argv)


def test_a_run_on_users(file, tmp_path):
    assert run(file, "--agents=3", f"--workdir={tmp_path / 'run'}") == 0
    report = json.loads((tmp_path / "run" / "partition.json").read_text())
    # 13 + 3, 11 + 5, 9 + 7.
    assert (report["partition"], report["samples_by_agent"]) == ("users", [16, 16, 16])


@pytest.mark.parametrize(
    ("name", "flags", "answer"),
    [
        ("own.npz", ["--agents=7"], "6 users cannot be dealt to 7 agents: take at most 6 agents"),
        ("without.npz", ["--agents=3"], "give them as an array users in an .npz"),
    ],
)
def test_what_users_cannot_do(file, tmp_path, capsys, name, flags, answer):
    assert run(file.with_name(name), *flags, f"--workdir={tmp_path / 'run'}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert answer in line
    assert not (tmp_path / "run").exists()
