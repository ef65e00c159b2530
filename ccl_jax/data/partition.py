"""Partitions: which agent holds which training samples.

A `Partition` is a frozen value: a list of sample indices for every agent, no sample twice. `make`
builds one by name:

  dirichlet        the split of the published experiments (Lin et al. 2021, arXiv 2102.04761, and
                   what builds on it), index for index. Equal sizes.
  dirichlet-clean  class proportions over agents really drawn from a Dirichlet distribution (Hsu et
                   al. 2019, arXiv 1909.06335), no re-cut; sizes differ, with a guaranteed minimum.
  iid              shuffled and dealt out evenly.
  shards           sorted by class, cut into shards, each agent gets a few (McMahan et al. 2017,
                   arXiv 1602.05629).
  classes          each agent holds a given number of classes.
  users            each agent holds whole users, where it is known whose a sample is (`users`).

For both Dirichlet splits a small alpha is heterogeneous and a large one nearly IID.
How different the agents are is measured by `class_counts` and `label_divergence`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ccl_jax.data import published_dirichlet
from ccl_jax.data import users as dealing
from ccl_jax.names import look_up
from ccl_jax.randomness import Stream, check_seed, generator


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Who holds which samples.

    Attributes:
      name: What to call it in results.
      indices: For each agent an integer array `[n_i]` of positions in the training set.

    Raises:
      ValueError: An agent holds nothing, or a sample is held twice.
    """

    name: str
    indices: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for agent, held in enumerate(self.indices):
            if len(held) == 0:
                raise ValueError(
                    f"{self.name}: agent {agent} of {self.agents} would hold no samples: take "
                    "fewer agents, more samples or a less heterogeneous split."
                )
        values, counts = np.unique(np.concatenate(self.indices), return_counts=True)
        if counts.max() > 1 or values[0] < 0:
            raise ValueError(
                f"{self.name}: index {values[counts.argmax()]} is held {counts.max()} times and "
                f"the lowest is {values[0]}: every sample may be held once, from index 0 on."
            )

    @property
    def agents(self) -> int:
        """Number of agents."""
        return len(self.indices)

    @property
    def sizes(self) -> np.ndarray:
        """`[agents]` number of samples of each agent."""
        return np.array([len(held) for held in self.indices])


def dirichlet_authors(labels: np.ndarray, agents: int, alpha: float, seed: int) -> Partition:
    """The Dirichlet split of the published experiments, index for index.

    `published_dirichlet` describes it: sizes are equal, neighbouring ranks share a class, and up to
    agents - 1 samples are left out.

    Args:
      labels: `[n]` classes of the training samples, from 0 on.
      agents: Number of agents, 1 to n.
      alpha: Concentration, above 0; small is heterogeneous.
      seed: 0 to 2**32 - 1.

    Returns:
      A partition with floor(n / agents) samples for each agent.

    Raises:
      ValueError: An argument out of range, or no deal gives every agent enough (alpha too small).
    """
    labels = _check(labels, agents)
    check_alpha(alpha)
    check_seed(seed)
    return _partition("dirichlet", published_dirichlet.deal(labels, agents, alpha, seed))


def dirichlet(
    labels: np.ndarray, agents: int, alpha: float, seed: int, min_samples: int = 10
) -> Partition:
    """The clean Dirichlet split: every class is shared out by its own p ~ Dir(alpha 1_agents).

    Every sample is used exactly once. If an agent gets fewer than `min_samples`, the whole split is
    drawn again, up to 10 times. If the last draw still falls short, samples picked at random from
    the agent that holds most move, one by one, to those that hold too few: only what is needed.

    Args:
      labels: `[n]` classes of the training samples, from 0 on.
      agents: Number of agents, 1 to n.
      alpha: Concentration, above 0; small is heterogeneous.
      seed: 0 to 2**32 - 1.
      min_samples: What every agent holds at least, 1 to n / agents. The default and the number of
        draws are those of Flower's DirichletPartitioner (flwr-datasets).

    Returns:
      A partition of all samples, in increasing order within an agent.

    Raises:
      ValueError: An argument out of range.
    """
    labels = _check(labels, agents)
    check_alpha(alpha)
    if not 1 <= min_samples <= len(labels) // agents:
        raise ValueError(
            f"min_samples must be 1 to {len(labels) // agents} ({len(labels)} samples / {agents} "
            f"agents), got {min_samples}: lower it or take fewer agents."
        )
    rng = generator(Stream.PARTITION, seed)
    owners = np.empty(len(labels), int)
    for _ in range(_DRAWS):
        for k in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == k))
            p = rng.dirichlet(np.full(agents, alpha))
            cuts = (np.cumsum(p)[:-1] * len(members)).astype(int)
            owners[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
        sizes = np.bincount(owners, minlength=agents)
        if sizes.min() >= min_samples:
            break
    for agent in np.flatnonzero(sizes < min_samples):
        while sizes[agent] < min_samples:
            richest = sizes.argmax()
            owners[rng.choice(np.flatnonzero(owners == richest))] = agent
            sizes[[richest, agent]] += [-1, 1]
    return _partition("dirichlet-clean", [np.flatnonzero(owners == a) for a in range(agents)])


_DRAWS = 11  # The first one and 10 retries.


def iid(labels: np.ndarray, agents: int, seed: int) -> Partition:
    """Shuffled and dealt out evenly: every sample once, sizes differ by at most 1.

    Args:
      labels: `[n]` classes of the training samples.
      agents: Number of agents, 1 to n.
      seed: 0 to 2**32 - 1.

    Raises:
      ValueError: An argument out of range.
    """
    labels = _check(labels, agents)
    order = generator(Stream.PARTITION, seed).permutation(len(labels))
    return _partition("iid", np.array_split(order, agents))


def shards(labels: np.ndarray, agents: int, seed: int, shards_per_agent: int = 2) -> Partition:
    """By-class shards: samples sorted by class, cut into equal shards, dealt at random.

    Every sample is used once. An agent holds few classes, usually at most `shards_per_agent`.

    Args:
      labels: `[n]` classes of the training samples.
      agents: Number of agents, 1 to n.
      seed: 0 to 2**32 - 1.
      shards_per_agent: Shards each agent gets, 1 to n / agents; 2 as in the paper.

    Raises:
      ValueError: An argument out of range.
    """
    labels = _check(labels, agents)
    if not 1 <= shards_per_agent <= len(labels) // agents:
        raise ValueError(
            f"shards_per_agent must be 1 to {len(labels) // agents} ({len(labels)} samples / "
            f"{agents} agents), got {shards_per_agent}."
        )
    rng = generator(Stream.PARTITION, seed)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_class, agents * shards_per_agent)
    hands = rng.permutation(len(pieces)).reshape(agents, shards_per_agent)
    return _partition("shards", [np.concatenate([pieces[s] for s in hand]) for hand in hands])


def classes_per_agent(labels: np.ndarray, agents: int, k: int, seed: int) -> Partition:
    """Every agent holds exactly k classes; a class is shared evenly by the agents that hold it.

    Agent after agent picks the k classes that were picked least so far, ties broken at random, so
    all classes are held by equally many agents, to within one. With fewer than one pick for every
    class (agents * k < number of classes), the samples of the classes left over are not used.

    Args:
      labels: `[n]` classes of the training samples.
      agents: Number of agents, 1 to n.
      k: Classes of each agent, 1 to the number of classes.
      seed: 0 to 2**32 - 1.

    Raises:
      ValueError: An argument out of range, or a class with fewer samples than agents to hold it.
    """
    labels = _check(labels, agents)
    classes = np.unique(labels)
    if not 1 <= k <= len(classes):
        raise ValueError(f"classes_per_agent must be 1 to {len(classes)} (classes), got {k}.")
    rng = generator(Stream.PARTITION, seed)
    holds = np.zeros((agents, len(classes)), bool)
    for agent in range(agents):
        least_picked = np.lexsort((rng.random(len(classes)), holds.sum(axis=0)))
        holds[agent, least_picked[:k]] = True
    held = [[] for _ in range(agents)]
    for column, label in enumerate(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        holders = np.flatnonzero(holds[:, column])
        if len(members) < len(holders):
            raise ValueError(
                f"class {label} has {len(members)} samples for {len(holders)} agents: take fewer "
                "agents or a smaller classes_per_agent."
            )
        pieces = np.array_split(members, max(1, len(holders)))
        for agent, piece in zip(holders, pieces, strict=False):
            held[agent].append(piece)
    return _partition("classes", [np.concatenate(pieces) for pieces in held])


def make(
    name: str,
    labels: np.ndarray,
    agents: int,
    *,
    alpha: float,
    seed: int,
    min_samples: int = 10,
    shards_per_agent: int = 2,
    classes_per_agent: int = 2,
    users: np.ndarray | None = None,
) -> Partition:
    """Builds a partition by name.

    Args:
      name: One of `NAMES`.
      labels: `[n]` classes of the training samples, from 0 on.
      agents: Number of agents, 1 to n.
      alpha: Concentration of "dirichlet" and "dirichlet-clean"; the others do not use it.
      seed: 0 to 2**32 - 1.
      min_samples: For "dirichlet-clean", see `dirichlet`.
      shards_per_agent: For "shards", see `shards`.
      classes_per_agent: For "classes", see `classes_per_agent`.
      users: For "users", `[n]` whose each sample is; see `users.deal`.

    Returns:
      The partition.

    Raises:
      ValueError: Unknown name (with the nearest right one) or an argument out of range.
    """
    options = {
        "alpha": alpha,
        "seed": seed,
        "min_samples": min_samples,
        "shards_per_agent": shards_per_agent,
        "classes_per_agent": classes_per_agent,
        "users": users,
    }
    return look_up("partition", name, _BUILDERS)(labels, agents, options)


_BUILDERS: dict[str, Callable[[np.ndarray, int, dict[str, Any]], Partition]] = {
    "dirichlet": lambda y, n, o: dirichlet_authors(y, n, o["alpha"], o["seed"]),
    "dirichlet-clean": lambda y, n, o: dirichlet(y, n, o["alpha"], o["seed"], o["min_samples"]),
    "iid": lambda y, n, o: iid(y, n, o["seed"]),
    "shards": lambda y, n, o: shards(y, n, o["seed"], o["shards_per_agent"]),
    "classes": lambda y, n, o: classes_per_agent(y, n, o["classes_per_agent"], o["seed"]),
    "users": lambda y, n, o: _by_user(y, n, o["users"], o["seed"]),
}

NAMES = tuple(_BUILDERS)
"""The names that `make` knows."""


def class_counts(partition: Partition, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Who holds which classes.

    Args:
      partition: The split.
      labels: `[n]` classes of the training samples, 0 to num_classes - 1.
      num_classes: Number of classes.

    Returns:
      `[agents, num_classes]` int, the number of samples.
    """
    labels = np.asarray(labels)
    held = [np.bincount(labels[i], minlength=num_classes) for i in partition.indices]
    return np.stack(held)


def label_divergence(counts: np.ndarray) -> float:
    """Mean over all pairs of agents of the total variation distance of their label distributions.

    TV(p, q) = 1/2 sum_c |p_c - q_c|: 0 where all agents have one distribution, 1 where no two
    share a class.

    Args:
      counts: `[agents, classes]` samples, every agent with at least one.

    Returns:
      The divergence, 0 to 1; 0 for a single agent.
    """
    agents = len(counts)
    if agents == 1:
        return 0.0
    p = counts / counts.sum(axis=1, keepdims=True)
    # With x sorted, the sum of |x_i - x_j| over all pairs is the sum of (2i - n + 1) x_i, i from 0.
    ranks = 2 * np.arange(agents) - agents + 1
    distances = ranks @ np.sort(p, axis=0) / 2
    return float(distances.sum() / (agents * (agents - 1) / 2))


class SizeSummary(NamedTuple):
    """How many samples agents hold.

    Attributes:
      total: Over all agents.
      min: Of the agent that holds least.
      mean: Over agents.
      max: Of the agent that holds most.
      std: Standard deviation over agents.
    """

    total: int
    min: int
    mean: float
    max: int
    std: float


def size_summary(partition: Partition) -> SizeSummary:
    """Sums up the sizes of a partition."""
    n = partition.sizes
    return SizeSummary(int(n.sum()), int(n.min()), float(n.mean()), int(n.max()), float(n.std()))


def _by_user(labels: np.ndarray, agents: int, users: np.ndarray | None, seed: int) -> Partition:
    labels = _check(labels, agents)
    return _partition("users", dealing.deal(users, len(labels), agents, seed))


def _partition(name: str, indices: Sequence[np.ndarray]) -> Partition:
    return Partition(name, tuple(np.asarray(held, np.int32) for held in indices))


def _check(labels: np.ndarray, agents: int) -> np.ndarray:
    labels = np.asarray(labels)
    if agents < 1:
        raise ValueError(f"agents must be 1 or more, got {agents}.")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers [n], got {labels.dtype} {labels.shape}.")
    if len(labels) < agents:
        raise ValueError(
            f"{agents} agents cannot share {len(labels)} samples: take at most {len(labels)} "
            "agents."
        )
    if labels.min() < 0:
        raise ValueError(f"labels must be 0 or more, the lowest is {labels.min()}.")
    return labels


def check_alpha(alpha: float, name: str = "alpha") -> None:
    """Raises ValueError, with the name of the setting, unless a concentration can be drawn from."""
    if not 0 < alpha <= _MAX_ALPHA:
        raise ValueError(
            f"{name} must be above 0 and at most {_MAX_ALPHA:g}, got {alpha}: small (0.1) is "
            "heterogeneous, large (100) nearly IID."
        )


_MAX_ALPHA = 1e9  # Equal shares for every purpose; far larger values overflow in NumPy.
