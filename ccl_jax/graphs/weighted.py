"""Graphs over time that come with their own mixing weights, all doubly stochastic.

Builders return float64 mixing matrices, `[rounds, agents, agents]` or `[agents, agents]`, entry
(r, i, j) the weight that i gives to j. The network repeats them after the last round.

Base-(k+1) and Simple Base-(k+1): Takezawa et al., NeurIPS 2023, https://arxiv.org/abs/2305.11420. At
most k neighbours a round; the product of a period is the exact mean for any number of agents.
EquiStatic and EquiDyn: Song et al., NeurIPS 2022, https://arxiv.org/abs/2210.07881. Every offset
1..n-1 is one directed ring; a few random ones mix at a rate that does not depend on n.
"""

import math
from collections.abc import Sequence

import numpy as np

from ccl_jax.graphs.over_time import ROUNDS


def base(agents: int, k: int) -> np.ndarray:
    """Base-(k+1): the (k+1)-smooth part of the agents' number is mixed by itself, if that is shorter.

    Args:
      agents: Number of agents n, 1 or more.
      k: Most neighbours an agent has in a round, 1 or more.

    Raises:
      ValueError: k is below 1.
    """
    simple = simple_base(agents, k)
    smooth = math.gcd(agents, math.prod(b ** _log(b, agents) for b in range(2, k + 2)))
    rest = agents // smooth
    inside = [np.kron(np.eye(smooth), w) for w in simple_base(rest, k)]
    across = [np.kron(w, np.eye(rest)) for w in _matrices(_hypercuboid(range(smooth), k), smooth)]
    return simple if len(simple) < len(inside) + len(across) else np.stack(inside + across)


def simple_base(agents: int, k: int) -> np.ndarray:
    """Simple Base-(k+1): blocks by the digits of n in base k + 1; arguments as `base`.

    First every block finds its own mean; then block t balances its mean with that of all later
    blocks, in round t, and spreads the result inside itself, while the others do the same.
    """
    if k < 1:
        raise ValueError(f"base-graph: {k} neighbours a round are too few; give 1 or more")
    whole = _hypercuboid(range(agents), k)
    if whole is not None:
        return np.stack(_matrices(whole, agents))
    blocks = _blocks(agents, k)
    last = len(blocks) - 1
    nodes = [[i for part in block for i in part] for block in blocks]
    alone = [_hypercuboid(block, k) for block in nodes]
    spread = [
        alone[b] if len(nodes[b]) <= k else _side_by_side([_hypercuboid(p, k) for p in block])
        for b, block in enumerate(blocks)
    ]
    own = [[g for rounds in alone for g in rounds[r % len(rounds)]] for r in range(len(alone[0]))]
    matrices = _matrices(own, agents)
    done = [0] * len(blocks)
    t = 0
    while done[0] < len(spread[0]):
        w = np.eye(agents)
        if t < last:
            _balance(w, blocks, t, k)
        for b in range(len(blocks)):
            if b < t or (b == last and t >= last):
                _average(w, spread[b][done[b] % len(spread[b])])
                done[b] += 1
        matrices.append(w)
        t += 1
    return np.stack(matrices)


def _balance(w: np.ndarray, blocks: list[list[list[int]]], t: int, k: int) -> None:
    """Block t and all later ones get the same mean; unused nodes of block t average in groups."""
    parts = [list(part) for part in blocks[t]]
    size = sum(map(len, parts))
    later = [[i for part in block for i in part] for block in blocks[t + 1 :]]
    total = size + sum(map(len, later))
    for block in reversed(later):
        for i in block:
            w[i, i] = 1 - size / total
            for part in parts:
                j = part.pop()
                w[i, j] = w[j, i] = size / (total * len(parts))
                w[j, j] = 1 - w[i, j]
    unused = [j for part in parts for j in part]
    _average(w, [unused[a : a + k + 1] for a in range(0, len(unused), k + 1)])


def _blocks(agents: int, k: int) -> list[list[list[int]]]:
    """Consecutive blocks, largest first; block l has a_l parts of (k+1)^p_l nodes."""
    blocks, first = [], 0
    for power in range(_log(k + 1, agents), -1, -1):
        size = (k + 1) ** power
        count = (agents - first) // size
        if count:
            blocks.append(
                [list(range(first + a * size, first + (a + 1) * size)) for a in range(count)]
            )
            first += count * size
    return blocks


def _hypercuboid(nodes: Sequence[int], k: int) -> list[list[list[int]]] | None:
    """Rounds of groups that average; None where the number of nodes is not (k+1)-smooth."""
    factors, rest = [], len(nodes)
    for b in range(k + 1, 1, -1):
        while rest % b == 0:
            factors.append(b)
            rest //= b
    if rest > 1:
        return None
    rounds, stride = [], 1
    for factor in sorted(factors):
        firsts = [i for i in range(len(nodes)) if i // stride % factor == 0]
        rounds.append([[nodes[i + d * stride] for d in range(factor)] for i in firsts])
        stride *= factor
    return rounds or [[list(nodes)]]


def _side_by_side(parts: list[list[list[list[int]]]]) -> list[list[list[int]]]:
    return [
        [group for groups in together for group in groups] for together in zip(*parts, strict=True)
    ]


def _matrices(rounds: list[list[list[int]]], agents: int) -> list[np.ndarray]:
    matrices = []
    for groups in rounds:
        matrices.append(np.eye(agents))
        _average(matrices[-1], groups)
    return matrices


def _average(w: np.ndarray, groups: list[list[int]]) -> None:
    for group in groups:
        w[np.ix_(group, group)] = 1 / len(group)


def _log(base: int, n: int) -> int:
    """The largest power p with base^p <= n."""
    power = 0
    while base ** (power + 1) <= n:
        power += 1
    return power


def equi_static(agents: int, offsets: int, directed: bool, seed: int = 0) -> np.ndarray:
    """D-EquiStatic or U-EquiStatic with so many offsets drawn with replacement from 1..n-1.

    Raises:
      ValueError: Fewer than 1 offset.
    """
    if offsets < 1:
        raise ValueError(f"equistatic: {offsets} offsets are too few; give 1 or more")
    if agents == 1:
        return np.ones((1, 1))
    drawn = np.random.default_rng(seed).integers(1, agents, offsets)
    return equi_static_matrix(agents, drawn, directed)


def equi_static_matrix(agents: int, offsets: Sequence[int], directed: bool) -> np.ndarray:
    """W = mean over offsets a of (n-1)/n P_a + I/n, [P_a x]_i = x_{i+a}; undirected (W + W^T)/2."""
    w = np.mean([_basis(agents, a) for a in offsets], axis=0)
    return w if directed else (w + w.T) / 2


def equi_dynamic(
    agents: int, directed: bool, eta: float = 0.5, rounds: int = ROUNDS, seed: int = 0
) -> np.ndarray:
    """OD-EquiDyn or OU-EquiDyn: one neighbour a round, at an offset drawn anew from 1..n-1.

    Args:
      agents: Number of agents n.
      directed: OD (a directed ring a round) or OU (pairs at the offset).
      eta: Step towards the round's matrix, above 0 and at most 1.
      rounds: Rounds after which the sequence repeats.
      seed: Of the draws.

    Raises:
      ValueError: eta or rounds out of range.
    """
    if not 0 < eta <= 1 or rounds < 1:
        raise ValueError(
            f"equidyn: eta {eta:g} must be above 0 and at most 1, and the {rounds} rounds 1 or more"
        )
    if agents == 1:
        return np.ones((1, 1))
    rng = np.random.default_rng(seed)
    draws = zip(rng.integers(1, agents, rounds), rng.integers(agents, size=rounds), strict=True)
    return np.stack(
        [equi_dynamic_matrix(agents, p, eta, None if directed else s) for p, s in draws]
    )


def equi_dynamic_matrix(agents: int, offset: int, eta: float, start: int | None) -> np.ndarray:
    """One round: (1 - eta) I + eta ((n-1)/n P + I/n).

    P shifts by the offset (start None), or swaps i and i + offset where both are still free, visited
    cyclically from start (counted from 0). Agents left alone keep all of their own.
    """
    q = None
    if start is not None:
        partner = np.arange(agents)
        for i in (start + np.arange(agents)) % agents:
            j = (i + offset) % agents
            if i != j and partner[i] == i and partner[j] == j:
                partner[i], partner[j] = j, i
        q = np.eye(agents)[partner]
    return (1 - eta) * np.eye(agents) + eta * _basis(agents, offset, q)


def _basis(agents: int, offset: int, q: np.ndarray | None = None) -> np.ndarray:
    shift = np.roll(np.eye(agents), offset, axis=1) if q is None else q
    return (agents - 1) / agents * shift + np.eye(agents) / agents
