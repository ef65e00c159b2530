"""Topologies: who hears whom, and how much weight each voice has.

A `Topology` is a frozen value made of NumPy arrays. It says everything about a communication graph
that the rest of the package needs: the mixing matrix W of every round and the edges in table form.
Graphs with a name (ring, torus, Dyck ...) are built in `ccl_jax.graphs`.

Convention: `weights[r, i, j]` is what agent i gives to the value of agent j in round r, so a gossip
round is x_i <- sum_j W[i, j] x_j, and an edge (i, j) means that *i receives from j*. A graph that
does not change has one round; one that does is repeated after its last round.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import sparse

Stochastic = Literal["row", "column"]


class Edges(NamedTuple):
    """The edges of every agent in one direction, as padded tables.

    Attributes:
      peers: `[rounds, agents, degree]` int32, the agent at the other end; padding is the agent.
      slots: `[rounds, agents, degree]` int32, the position this edge has in the table of that peer
        in the other direction; padding is 0.
      mask: `[rounds, agents, degree]` bool, False where the table is padded.
    """

    peers: np.ndarray
    slots: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """A communication graph with mixing weights, static or changing from round to round.

    Build one with `from_neighbors`, `from_matrix` or a function of `ccl_jax.graphs`.

    Attributes:
      name: What to call it in results.
      weights: `[rounds, agents, agents]` float64 mixing matrices W.
      incoming: Edges over which each agent receives; `incoming.peers` is the neighbour table N_i.
      outgoing: The same edges seen from the sender. In an undirected graph both are equal, as
        tables list peers in increasing order.
      stochastic: Whether the rows of W sum to 1 (averaging) or its columns (push-sum).

    Raises:
      ValueError: W is not square, has a negative or non-finite entry, or a row (column) that does
        not sum to 1.
    """

    name: str
    weights: np.ndarray
    incoming: Edges
    outgoing: Edges
    stochastic: Stochastic = "row"

    def __post_init__(self) -> None:
        _check_weights(self.name, self.weights, self.stochastic)

    @property
    def rounds(self) -> int:
        """Number of rounds after which the graph repeats; 1 when it is static."""
        return self.weights.shape[0]

    @property
    def agents(self) -> int:
        """Number of agents N."""
        return self.weights.shape[1]

    @property
    def neighbors(self) -> np.ndarray:
        """`[rounds, agents, degree]` int32: whom each agent receives from, padded with itself."""
        return self.incoming.peers

    @property
    def mask(self) -> np.ndarray:
        """`[rounds, agents, degree]` bool: which entries of `neighbors` are edges."""
        return self.incoming.mask

    @property
    def degree(self) -> int:
        """The largest number of neighbours that any agent receives from in a round."""
        return self.incoming.peers.shape[2]

    @functools.cached_property
    def directed(self) -> bool:
        """Whether some agent hears another that does not hear it in the same round."""
        support = self.adjacency > 0
        return not np.array_equal(support, support.transpose(0, 2, 1))

    @functools.cached_property
    def doubly_stochastic(self) -> bool:
        """Whether rows and columns of every W sum to 1, so that gossip keeps the mean."""
        return bool(
            np.allclose(self.weights.sum(axis=1), 1, atol=1e-6)
            and np.allclose(self.weights.sum(axis=2), 1, atol=1e-6)
        )

    @functools.cached_property
    def adjacency(self) -> np.ndarray:
        """`[rounds, agents, agents]` int: how many edges lead from j (last axis) to i."""
        count = np.zeros(self.weights.shape, np.int32)
        r, i, d = np.nonzero(self.mask)
        np.add.at(count, (r, i, self.neighbors[r, i, d]), 1)
        return count

    @functools.cached_property
    def connected(self) -> bool:
        """Whether news of every agent reaches every other over the rounds together."""
        reach = (self.adjacency.sum(axis=0) > 0) | np.eye(self.agents, dtype=bool)
        for _ in range(max(1, int(np.ceil(np.log2(max(2, self.agents)))))):
            reach = (reach.astype(np.float64) @ reach.astype(np.float64)) > 0
        return bool(reach.all())

    @functools.cached_property
    def spectral_gap(self) -> float:
        """1 minus the second largest eigenvalue modulus of W (of the product over all rounds)."""
        if self.agents == 1:
            return 1.0
        product = functools.reduce(lambda done, w: w @ done, self.weights)
        moduli = np.sort(np.abs(np.linalg.eigvals(product)))
        return float(1 - moduli[-2])

    @functools.cached_property
    def smallest_eigenvalue(self) -> float:
        """The smallest real part of an eigenvalue of W, over all rounds. D2 needs over -1/3."""
        return float(min(np.linalg.eigvals(w).real.min() for w in self.weights))


def from_neighbors(
    name: str,
    neighbors: np.ndarray,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    *,
    stochastic: Stochastic = "row",
) -> Topology:
    """Builds a topology from a neighbour table.

    Args:
      name: What to call it.
      neighbors: `[agents, degree]` or `[rounds, agents, degree]` integers, the agents that each
        agent receives from. A neighbour listed twice counts twice, in the weights and in
        everything that is summed over neighbours. Entries of -1 or of the agent itself are padding.
      mask: Booleans of the same shape; False marks more padding.
      weights: Mixing matrices, `[agents, agents]` or `[rounds, agents, agents]`, zero where there
        is no edge. Default: every agent gives 1 / (neighbours + 1) to itself and to each entry of
        its row; with stochastic="column" neighbours are counted at the sender.
      stochastic: "row", or "column" for push-sum.

    Raises:
      ValueError: A neighbour that is no agent, weights that are not stochastic or lie off the
        edges, or types or shapes that do not fit.
    """
    neighbors = _array(name, "the neighbour table", neighbors)
    neighbors = neighbors[None] if neighbors.ndim == 2 else neighbors
    if neighbors.ndim != 3 or 0 in neighbors.shape[:2]:
        raise ValueError(
            f"{name}: the neighbour table has shape {neighbors.shape}; it must be [agents, degree] "
            "or [rounds, agents, degree] with at least one agent"
        )
    if neighbors.size and neighbors.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: the neighbour table is {neighbors.dtype}; it must hold whole numbers, the agents "
            "that each agent receives from"
        )
    rounds, agents, degree = neighbors.shape
    strangers = neighbors[(neighbors < -1) | (neighbors >= agents)]
    if strangers.size:
        raise ValueError(
            f"{name}: the neighbour table names agent {strangers[0]}, but agents are 0 to "
            f"{agents - 1} (-1 for none)"
        )
    neighbors = neighbors.astype(np.int32)
    own = np.broadcast_to(np.arange(agents, dtype=np.int32)[None, :, None], neighbors.shape)
    present = (neighbors >= 0) & (neighbors != own)
    if mask is not None:
        mask = _array(name, "the mask", mask)
        if mask.shape not in (neighbors.shape, neighbors.shape[1:] if rounds == 1 else None):
            raise ValueError(
                f"{name}: the mask has shape {mask.shape}, the neighbour table {neighbors.shape}; both "
                "must have one shape"
            )
        present &= mask.astype(bool)
    # Tables are sorted, padding last: in an undirected graph both directions then read alike.
    order = np.argsort(np.where(present, neighbors, agents), axis=2, kind="stable")
    present = np.take_along_axis(present, order, axis=2)
    peers = np.where(present, np.take_along_axis(neighbors, order, axis=2), own)
    # Nobody listens to anybody: keep one (empty) slot, so that tables never have an axis of size 0.
    if degree == 0:
        peers, present = own_column(rounds, agents), np.zeros((rounds, agents, 1), bool)
    # Columns of nothing but padding go, as the senders' tables have none either.
    used = max(1, int(present.sum(axis=2).max()))
    peers, present = peers[:, :, :used], present[:, :, :used]

    incoming, outgoing = _link(peers, present)
    voices = np.zeros((rounds, agents, agents)) + np.eye(agents)
    r, i, d = np.nonzero(present)
    np.add.at(voices, (r, i, peers[r, i, d]), 1)
    if weights is None:
        weights = voices / voices.sum(axis=2 if stochastic == "row" else 1, keepdims=True)
    weights = _real(name, weights)
    if weights.shape not in [(agents, agents), (rounds, agents, agents)]:
        raise ValueError(
            f"{name}: mixing weights have shape {weights.shape}; with this neighbour table they "
            f"must be {(agents, agents)} or {(rounds, agents, agents)}"
        )
    weights = np.broadcast_to(weights, voices.shape)
    if ((weights != 0) & (voices == 0)).any():
        r, i, j = np.argwhere((weights != 0) & (voices == 0))[0]
        raise ValueError(
            f"{name}: agent {i} gives agent {j} the weight {weights[r, i, j]:.6g} in round {r} but "
            "does not receive from it; give weights to neighbours only"
        )
    return Topology(name, weights, incoming, outgoing, stochastic)


def from_matrix(name: str, weights: np.ndarray, *, stochastic: Stochastic = "row") -> Topology:
    """Builds a topology from mixing matrices: agent i receives from j where W[i, j] is not 0.

    Args:
      name: What to call it.
      weights: `[agents, agents]` or `[rounds, agents, agents]` real numbers; a sparse matrix of
        SciPy, too.
      stochastic: "row", or "column" for push-sum.

    Raises:
      ValueError: They are no array of real numbers, or as `Topology`.
    """
    weights = _real(name, weights)
    weights = weights[None] if weights.ndim == 2 else weights
    _check_weights(name, weights, stochastic)
    edges = (weights != 0) & ~np.eye(weights.shape[1], dtype=bool)
    degree = max(1, int(edges.sum(axis=2).max()))
    # A stable sort of "not an edge" lists each row's neighbours first, in increasing order.
    neighbors = np.argsort(~edges, axis=2, kind="stable")[:, :, :degree]
    mask = np.take_along_axis(edges, neighbors, axis=2)
    return from_neighbors(name, neighbors, mask, weights, stochastic=stochastic)


def own_column(rounds: int, agents: int) -> np.ndarray:
    """`[rounds, agents, 1]` int32: a neighbour table in which everyone has only itself."""
    return np.broadcast_to(np.arange(agents, dtype=np.int32)[None, :, None], (rounds, agents, 1))


def _array(name: str, what: str, values: Any) -> np.ndarray:
    """What was given, as an array."""
    try:
        return np.asarray(values.toarray() if sparse.issparse(values) else values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f"{name}: {what} is no array ({error}); give rows of one length"
        ) from error


def _real(name: str, weights: Any) -> np.ndarray:
    """Mixing weights as float64; complex ones would lose a part, texts would be read."""
    weights = _array(name, "the mixing matrix", weights)
    if weights.dtype.kind not in "biuf":
        raise ValueError(
            f"{name}: mixing weights are {weights.dtype} {weights.shape}; they must be real numbers "
            "[agents, agents] or [rounds, agents, agents]"
        )
    return weights.astype(np.float64)


def _link(peers: np.ndarray, mask: np.ndarray) -> tuple[Edges, Edges]:
    """Gives both directions of the edges, each knowing its place in the other's table."""
    rounds, agents, _ = peers.shape
    slots = np.zeros(peers.shape, np.int32)
    back: list[list[list[tuple[int, int]]]] = [[[] for _ in range(agents)] for _ in range(rounds)]
    for r, i, d in zip(*np.nonzero(mask), strict=True):
        slots[r, i, d] = len(back[r][peers[r, i, d]])
        back[r][peers[r, i, d]].append((i, d))
    fan_out = max(1, max(len(edges) for row in back for edges in row))
    out = Edges(
        np.repeat(own_column(rounds, agents), fan_out, axis=2),
        np.zeros((rounds, agents, fan_out), np.int32),
        np.zeros((rounds, agents, fan_out), bool),
    )
    for r, row in enumerate(back):
        for j, edges in enumerate(row):
            for o, (i, d) in enumerate(edges):
                out.peers[r, j, o], out.slots[r, j, o], out.mask[r, j, o] = i, d, True
    return Edges(peers, slots, mask), out


def _check_weights(name: str, weights: np.ndarray, stochastic: Stochastic) -> None:
    if stochastic not in ("row", "column"):
        raise ValueError(f"{name}: stochastic is {stochastic!r}; it must be 'row' or 'column'")
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or 0 in weights.shape:
        raise ValueError(
            f"{name}: mixing weights have shape {weights.shape}; they must be "
            "[rounds, agents, agents]"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        r, i, j = np.argwhere(~np.isfinite(weights) | (weights < 0))[0]
        raise ValueError(
            f"{name}: agent {i} gives agent {j} the weight {weights[r, i, j]} in round {r}; "
            "weights must be finite and not negative"
        )
    sums = weights.sum(axis=2 if stochastic == "row" else 1)
    if not np.allclose(sums, 1, atol=1e-6):
        r, i = np.argwhere(~np.isclose(sums, 1, atol=1e-6))[0]
        raise ValueError(
            f"{name}: {stochastic} {i} of the mixing matrix of round {r} sums to {sums[r, i]:.6g}; "
            f"every {stochastic} must sum to 1"
        )
