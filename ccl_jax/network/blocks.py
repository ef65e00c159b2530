"""Blocks: which agents a device holds, and how it comes by the values of the others.

The agents axis is cut into equal blocks, one a device. A step works on its block; where it needs
values of agents on other devices it collects them into a buffer: all of them (all-gather), or, where
the graph is sparse, only those that some edge needs, each device passing rows to the device `shift`
places on (ppermute). Both are computed from the graph, and the one that moves fewer bytes is taken.

With one block that holds everybody, nothing moves.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.graphs.topology import Topology

PyTree = Any

AXIS = "agents"


class Shift(NamedTuple):
    """Rows that every device passes to the device `distance` places on.

    Attributes:
      distance: 1 to devices - 1.
      rows: `[devices, count]` int32: which of its own rows each device passes on; padding repeats
        its row 0.
    """

    distance: int
    rows: np.ndarray


class Schedule(NamedTuple):
    """How the buffer of every device is filled.

    Attributes:
      devices: Number of blocks.
      shifts: What is passed; None for an all-gather.
      members: `[devices, buffer]` int32: the agent in each row of a device's buffer.
      valid: `[devices, buffer]` bool: False where the row is padding.
      place: `[devices, agents]` int32: the row of each agent; 0 for agents that are not there.
    """

    devices: int
    shifts: Sequence[Shift] | None
    members: np.ndarray
    valid: np.ndarray
    place: np.ndarray

    @property
    def rows_moved(self) -> int:
        """Rows that each device receives from others for every collected value."""
        return self.members.shape[1] - self.place.shape[1] // self.devices


def make_schedule(topology: Topology, devices: int) -> Schedule:
    """The cheaper of an all-gather and passing what edges need, over all rounds of a graph.

    Args:
      topology: The graph.
      devices: Number of blocks.

    Raises:
      ValueError: The agents cannot be divided evenly among the devices.
    """
    agents = topology.agents
    if devices < 1 or agents % devices:
        raise ValueError(
            f"{agents} agents cannot be divided evenly among {devices} devices; take a number of "
            f"devices that divides {agents}"
        )
    gathered = _all_gather(agents, devices)
    passed = _passing(topology, devices)
    return passed if passed.rows_moved < gathered.rows_moved else gathered


class Block:
    """The agents that this device holds; made inside the step.

    Args:
      schedule: How values are collected; with one device nothing is.

    Attributes:
      ids: `[block]` int32, the agents here.
      members: `[buffer]` int32, the agent in each row of what `collect` returns.
      valid: `[buffer]` bool, which of these rows are real.
      place: `[agents]` int32, the row of each agent in what `collect` returns.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        size = schedule.place.shape[1] // schedule.devices
        here = jax.lax.axis_index(AXIS) if schedule.devices > 1 else 0
        self._here = here
        self.ids = here * size + jnp.arange(size, dtype=jnp.int32)
        self.members = jnp.asarray(schedule.members)[here]
        self.valid = jnp.asarray(schedule.valid)[here]
        self.place = jnp.asarray(schedule.place)[here]

    def collect(self, tree: PyTree) -> PyTree:
        """`[block, ...]` here -> `[buffer, ...]` with the rows that agents here need, leaf by leaf.

        All leaves of a dtype cross together: a network has many small ones, and each crossing costs
        more to start than to move.
        """
        return tree if self._schedule.devices == 1 else _together(self._collect, tree)

    def _collect(self, x: jax.Array) -> jax.Array:
        schedule = self._schedule
        if schedule.shifts is None:
            return jax.lax.all_gather(x, AXIS, tiled=True)
        received = [x]
        for shift in schedule.shifts:
            ring = [(d, (d + shift.distance) % schedule.devices) for d in range(schedule.devices)]
            received.append(jax.lax.ppermute(x[jnp.asarray(shift.rows)[self._here]], AXIS, ring))
        return jnp.concatenate(received)

    def mean(self, x: jax.Array) -> jax.Array:
        """The mean over all agents of `[block, ...]`."""
        mean = x.mean(axis=0)
        return mean if self._schedule.devices == 1 else jax.lax.pmean(mean, AXIS)


def _together(move: Callable[[jax.Array], jax.Array], tree: PyTree) -> PyTree:
    """Moves leaves `[rows, ...]` as one buffer per dtype; `move` may change the number of rows."""
    leaves, structure = jax.tree.flatten(tree)
    moved = list(leaves)
    for dtype in dict.fromkeys(x.dtype for x in leaves):
        places = [place for place, x in enumerate(leaves) if x.dtype == dtype]
        flat = [leaves[place].reshape(len(leaves[place]), -1) for place in places]
        ends = np.cumsum([x.shape[1] for x in flat])[:-1]
        parts = jnp.split(move(jnp.concatenate(flat, axis=1)), ends, axis=1)
        for place, part in zip(places, parts, strict=True):
            moved[place] = part.reshape(len(part), *leaves[place].shape[1:])
    return jax.tree.unflatten(structure, moved)


def _all_gather(agents: int, devices: int) -> Schedule:
    everyone = np.tile(np.arange(agents, dtype=np.int32), (devices, 1))
    return Schedule(devices, None, everyone, np.ones_like(everyone, bool), everyone)


def _passing(topology: Topology, devices: int) -> Schedule:
    """Device d needs the rows of all agents that its own agents hear or are heard by, ever."""
    agents, size = topology.agents, topology.agents // devices
    heard = topology.adjacency.sum(axis=0) > 0
    needed = (heard | heard.T).reshape(devices, size, agents).any(axis=1)
    owner = np.arange(agents) // size

    shifts, filled = [], [[list(range(d * size, (d + 1) * size))] for d in range(devices)]
    for distance in range(1, devices):
        # What device d passes on is what the device `distance` further needs of d's rows.
        passed = [
            np.flatnonzero(needed[(d + distance) % devices] & (owner == d)) for d in range(devices)
        ]
        count = max(len(rows) for rows in passed)
        if count == 0:
            continue
        rows = np.zeros((devices, count), np.int32)
        for d, agents_passed in enumerate(passed):
            rows[d, : len(agents_passed)] = agents_passed - d * size
            received = list(agents_passed) + [-1] * (count - len(agents_passed))
            filled[(d + distance) % devices].append(received)
        shifts.append(Shift(distance, rows))

    members = np.array([np.concatenate(parts) for parts in filled], np.int32)
    place = np.zeros((devices, agents), np.int32)
    for d in range(devices):
        rows = np.flatnonzero(members[d] >= 0)
        place[d, members[d, rows]] = rows
    return Schedule(devices, shifts, np.maximum(members, 0), members >= 0, place)
