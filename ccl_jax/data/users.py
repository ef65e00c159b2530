"""The natural split of data that users made: an agent holds whole users."""

import heapq

import numpy as np

from ccl_jax.randomness import Stream, generator


def deal(users: np.ndarray | None, samples: int, agents: int, seed: int) -> list[np.ndarray]:
    """Deals users to agents, those with most samples first, each to the agent that holds least.

    Sizes are as even as this greedy deal gives (Graham 1969: the largest is at most 4/3 of what the
    best deal has). The seed decides between users, and between agents, of equal size.

    Args:
      users: `[n]` whose sample each is, integers or texts; None for data without users.
      samples: n.
      agents: Number of agents, from 1 to the number of users.
      seed: 0 to 2**32 - 1.

    Returns:
      For each agent the positions of its samples, in increasing order.

    Raises:
      ValueError: There are no users, fewer than agents, or not one a sample.
    """
    if users is None:
        raise ValueError(
            "partition users needs the user of each training image, which these data do not have: "
            "give them as an array users in an .npz (--dataset=npz, without --domain), or take "
            "another partition."
        )
    if np.shape(users) != (samples,):
        raise ValueError(f"users are {np.shape(users)}, expected one a sample, ({samples},).")
    _, number, sizes = np.unique(users, return_inverse=True, return_counts=True)
    if len(sizes) < agents:
        raise ValueError(
            f"{len(sizes)} users cannot be dealt to {agents} agents: take at most {len(sizes)} agents."
        )
    rng = generator(Stream.PARTITION, seed)
    largest_first = np.lexsort((rng.random(len(sizes)), -sizes))
    held = [(0, tie, agent) for agent, tie in enumerate(rng.permutation(agents))]
    heapq.heapify(held)
    owners = np.empty(len(sizes), int)
    for user in largest_first:
        size, tie, owners[user] = held[0]
        heapq.heapreplace(held, (size + sizes[user], tie, owners[user]))
    return [np.flatnonzero(owners[number] == agent) for agent in range(agents)]
