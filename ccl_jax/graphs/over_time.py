"""Graphs that change from round to round, as matrices of edge counts.

Every builder returns `[rounds, agents, agents]` integers, repeated by the network after the last
round; entry (r, i, j) says how many edges lead from j to i in round r. Weights come later, from
`ccl_jax.graphs`, for every round by itself.

Exponential graphs are those of stochastic gradient push (Assran et al., ICML 2019,
https://arxiv.org/abs/1811.10792) and of Ying et al. (NeurIPS 2021, https://arxiv.org/abs/2110.13363).
"""

import random
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np

from ccl_jax.graphs import static

# Random sequences of graphs repeat after so many rounds.
ROUNDS = 64

Build = Callable[[str, int, int], np.ndarray]


def peer_exponential(agents: int, peers: int) -> np.ndarray:
    """In round t agent i hears i - j (p+1)^(t mod L) for j = 1..p: directed, p peers a round.

    L is the number of powers of p + 1 below the number of agents. Where that number is a power of
    p + 1, L rounds of gossip with uniform weights give the exact average.
    """
    if peers < 1:
        raise ValueError(f"p-peer-exponential: {peers} peers a round are too few; give 1 or more")
    if agents == 1:
        return np.zeros((1, 1, 1), np.int64)
    powers = [1]
    while powers[-1] * (peers + 1) < agents:
        powers.append(powers[-1] * (peers + 1))
    rounds = [[j * power for j in range(1, peers + 1)] for power in powers]
    for hops in rounds:
        for hop in hops:
            if hop % agents == 0:
                raise ValueError(
                    f"p-peer-exponential with {peers} peers on {agents} agents: the hop {hop} is a "
                    f"multiple of {agents} and leads an agent back to itself; use a power of "
                    f"{peers + 1} as number of agents, or another number of peers"
                )
    return np.stack([static.hear(agents, hops) for hops in rounds])


def random_matching(agents: int, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """In each round agents form random pairs; with an odd number of them one stays alone."""
    _check_rounds("random-matching", rounds)
    rng = np.random.default_rng(seed)
    counts = np.zeros((rounds, agents, agents), np.int64)
    for count in counts:
        order = rng.permutation(agents)
        one, other = order[: agents // 2], order[agents // 2 : 2 * (agents // 2)]
        count[one, other] = count[other, one] = 1
    return counts


def random_regular(agents: int, degree: int, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """In each round another random graph in which everyone has the same number of neighbours."""
    _check_rounds("random-regular", rounds)
    if not 1 <= degree < agents or degree * agents % 2:
        raise ValueError(
            f"random-regular: no graph of {agents} agents has degree {degree}; the degree must be "
            f"1 to {agents - 1}, and even if the number of agents is odd"
        )
    rng = random.Random(seed)
    graphs = [nx.random_regular_graph(degree, agents, rng) for _ in range(rounds)]
    return np.stack([static.edge_counts(graph) for graph in graphs])


def epidemic(agents: int, peers: int, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """In each round every agent sends to so many random others (epidemic learning).

    De Vos et al., NeurIPS 2023, https://arxiv.org/abs/2310.01972. Agents differ in how many they
    hear: with uniform weights each averages what it received and its own, so rows sum to 1.
    """
    _check_rounds("epidemic", rounds)
    if not 1 <= peers < agents:
        raise ValueError(
            f"epidemic: {peers} peers of {agents} agents cannot be drawn; give 1 to {agents - 1}"
        )
    rng = np.random.default_rng(seed)
    counts = np.zeros((rounds, agents, agents), np.int64)
    for r, j in np.ndindex(rounds, agents):
        others = rng.choice(agents - 1, peers, replace=False)
        counts[r, others + (others >= j), j] = 1
    return counts


def alternating(agents: int, graphs: Sequence[str], build: Build, seed: int = 0) -> np.ndarray:
    """One named graph after the other; those that change over time contribute all their rounds."""
    return np.concatenate([build(name, agents, seed) for name in graphs])


def edges_come_and_go(
    agents: int,
    graph: str,
    probability: float,
    build: Build,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> np.ndarray:
    """Each link of a named graph works with a probability, in each round anew and both ways alike.

    With Metropolis weights every round is doubly stochastic; with uniform ones it is not, as agents
    then differ in the number of neighbours they have left.
    """
    _check_rounds("edges-come-and-go", rounds)
    if not 0 < probability <= 1:
        raise ValueError(
            f"edges-come-and-go: {probability:g} is no probability of an edge to be there; give a "
            "number above 0 and at most 1"
        )
    base = build(graph, agents, seed)
    works = np.random.default_rng(seed).random((rounds, agents, agents)) < probability
    works = np.triu(works, 1) | np.triu(works, 1).transpose(0, 2, 1)
    return base[np.arange(rounds) % len(base)] * works


def _check_rounds(name: str, rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"{name}: {rounds} rounds are too few; give 1 or more")
