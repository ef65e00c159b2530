"""Kinds of heterogeneity beside who holds which classes; each can be put on top of the others.

  quantity_skew   agents hold very different numbers of samples.
  label_noise     part of an agent's labels is wrong.
  join, by_domain datasets put together, each agent holding samples of one of them only.

What images look like to an agent is changed by `feature_shift`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ccl_jax.data import images
from ccl_jax.data.base import Dataset
from ccl_jax.data.partition import Partition, check_alpha
from ccl_jax.randomness import Stream, generator


def quantity_skew(partition: Partition, alpha: float, seed: int, min_samples: int) -> Partition:
    """Agents keep a part of what they hold: q_i / max q, with q ~ Dir(alpha 1_agents).

    The agent with the largest q keeps everything; what is kept is picked at random, so an agent's
    mixture of classes stays what it was. Samples that nobody keeps are not used.

    Args:
      partition: The split to thin out.
      alpha: Concentration, above 0 and at most 1e9; small makes sizes differ much.
      seed: 0 to 2**32 - 1.
      min_samples: What every agent keeps at least (or all, if it holds fewer), from 1 on.

    Returns:
      A partition with the same agents.

    Raises:
      ValueError: An argument out of range, or an alpha so small that the draws underflow.
    """
    check_alpha(alpha, "quantity_alpha")
    if min_samples < 1:
        raise ValueError(f"min_samples must be 1 or more, got {min_samples}.")
    rng = generator(Stream.HETEROGENEITY, seed, 0)
    q = rng.dirichlet(np.full(partition.agents, alpha))
    if not np.isfinite(q).all() or q.max() <= 0:
        raise ValueError(
            f"quantity_alpha {alpha} is too small to be drawn from: take a larger one."
        )
    wanted = np.maximum(np.round(partition.sizes * q / q.max()).astype(int), min_samples)
    kept = [
        np.sort(rng.permutation(held)[:number])
        for held, number in zip(partition.indices, wanted, strict=True)
    ]
    return Partition(f"{partition.name} + quantity", tuple(kept))


def label_noise(
    labels: np.ndarray, partition: Partition, rates: Sequence[float], num_classes: int, seed: int
) -> np.ndarray:
    """Gives part of every agent's samples a wrong label, once and for all (symmetric noise).

    Args:
      labels: `[n]` int32, the true classes.
      partition: Who holds which samples.
      rates: `[agents]` part of the labels that are wrong, 0 to 1; the number is rounded.
      num_classes: Number of classes, at least 2; a wrong one is any of the others with equal
        probability.
      seed: 0 to 2**32 - 1.

    Returns:
      `[n]` int32.

    Raises:
      ValueError: A rate out of range, or too few classes.
    """
    rates = np.asarray(rates, float)
    if rates.shape != (partition.agents,) or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"label noise needs a rate in [0, 1] for each agent, got {rates}.")
    if num_classes < 2:
        raise ValueError("label noise needs at least 2 classes.")
    noisy = np.array(labels)
    for agent, (held, rate) in enumerate(zip(partition.indices, rates, strict=True)):
        rng = generator(Stream.HETEROGENEITY, seed, 1, agent)
        wrong = rng.permutation(held)[: round(rate * len(held))]
        offsets = rng.integers(1, num_classes, len(wrong), dtype=np.int32)
        noisy[wrong] = (noisy[wrong] + offsets) % num_classes
    return noisy


def noise_rates(text: str, agents: int) -> np.ndarray:
    """Reads rates: "0.1" for all agents, "0:0.4" for rates that grow evenly from agent to agent.

    Returns:
      `[agents]` rates.

    Raises:
      ValueError: It reads otherwise, or a rate is not in [0, 1].
    """
    try:
        low, _, high = text.partition(":")
        first, last = float(low), float(high or low)
    except ValueError:
        first = last = np.nan
    if not (0 <= first <= 1 and 0 <= last <= 1):
        raise ValueError(
            f"label_noise is {text!r}; it must be a rate in [0, 1] such as 0.1, or two such as "
            "0:0.4, for the first and the last agent."
        )
    return np.linspace(first, last, agents)


def join(datasets: Sequence[Dataset]) -> tuple[Dataset, np.ndarray]:
    """Puts datasets together: classes of one name are one class, numbered as the first set has it.

    Images of the others are brought to the first one's size (by `images.square`, so the middle of
    what is not square), its number of channels and its scale; they are normalised as the first is.
    The test set has the test images of all.

    Args:
      datasets: At least one, all with classes of the same names, in any order.

    Returns:
      The whole, and for each training sample `[n]` the number of the dataset it comes from.

    Raises:
      ValueError: The names of classes differ, or two have one name, or the first one's images are not
        square.
    """
    first = datasets[0]
    numbers = [_numbers_of_classes(first, other) for other in datasets]
    train = [_like(first, other, other.train_images) for other in datasets]
    test = [_like(first, other, other.test_images) for other in datasets]
    whole = Dataset(
        " + ".join(dataset.name for dataset in datasets),
        np.concatenate(train),
        np.concatenate([n[d.train_labels] for n, d in zip(numbers, datasets, strict=True)]),
        np.concatenate(test),
        np.concatenate([n[d.test_labels] for n, d in zip(numbers, datasets, strict=True)]),
        first.num_classes,
        first.mean,
        first.std,
        first.scale,
        first.class_names,
    )
    return whole, np.repeat(np.arange(len(datasets)), [len(part) for part in train])


def by_domain(
    labels: np.ndarray,
    domains: np.ndarray,
    agents: int,
    split: Callable[[np.ndarray, int, int], Partition],
) -> Partition:
    """Gives each agent samples of one domain: agent i those of domain i mod number of domains.

    Args:
      labels: `[n]` classes of the training samples.
      domains: `[n]` the domain of each, from 0 on.
      agents: Number of agents, at least one for each domain.
      split: Splits one domain among its agents: `split(labels, agents, domain) -> Partition`. Neighbours
        in rank hold other domains, so domains that were all split by one draw would make them alike.

    Raises:
      ValueError: There are fewer agents than domains, or a domain cannot be split.
    """
    number = int(domains.max()) + 1
    if agents < number:
        raise ValueError(f"{number} domains need at least {number} agents, there are {agents}.")
    indices = [np.empty(0, np.int32)] * agents
    for domain in range(number):
        members = np.flatnonzero(domains == domain)
        own = range(domain, agents, number)
        part = split(labels[members], len(own), domain)
        for agent, held in zip(own, part.indices, strict=True):
            indices[agent] = members[held].astype(np.int32)
    return Partition(f"{part.name} by domain", tuple(indices))


def _numbers_of_classes(first: Dataset, other: Dataset) -> np.ndarray:
    """`[classes]` int32: which class of the first set each class of the other is, by its name."""
    names = {name: number for number, name in enumerate(first.class_names)}
    if sorted(names) != sorted(other.class_names):
        odd = sorted(set(first.class_names) ^ set(other.class_names))
        wrong = f"only one has {_listed(odd)}" if odd else "a name is there twice"
        raise ValueError(
            f"domains need the same classes by name: {first.name} has {_listed(first.class_names)} and "
            f"{other.name} has {_listed(other.class_names)}, {wrong}: rename the class folders, or give "
            "class_names in the .npz."
        )
    return np.array([names[name] for name in other.class_names], np.int32)


def _listed(names: Sequence[str]) -> str:
    """As many names as fit into a line."""
    return ", ".join(names[:12]) + (f" ... ({len(names)} in all)" if len(names) > 12 else "")


def _like(first: Dataset, other: Dataset, pixels: np.ndarray) -> np.ndarray:
    """`[n, H, W, C]` images of another dataset, with the size, channels and scale of the first."""
    if other is first:
        return pixels
    height, width, channels = first.image_shape
    if height != width:
        raise ValueError(
            f"{first.name}: its images must be square to have other domains beside it."
        )
    if pixels.shape[3] != channels:
        if {pixels.shape[3], channels} != {1, 3}:
            raise ValueError(
                f"{other.name}: its images have {pixels.shape[3]} channels, those of {first.name} "
                f"{channels}; only grey and colour, 1 and 3, are made alike."
            )
        # Grey is the mean of the colours; a grey image has all colours alike.
        mean = pixels.mean(axis=3, keepdims=True).round().astype(np.uint8)
        pixels = np.repeat(mean, channels, axis=3)
    if pixels.shape[1:3] != (height, width):
        resize = lambda plane: np.asarray(images.square(Image.fromarray(plane), height))
        planes = [
            np.stack([resize(image[..., c]) for c in range(channels)], -1) for image in pixels
        ]
        pixels = np.stack(planes)
    if other.scale != first.scale:
        scaled = pixels.astype(np.float32) * (first.scale / other.scale)
        pixels = np.clip(scaled.round(), 0, 255).astype(np.uint8)
    return pixels
