"""Every setting of the paper (arXiv:2310.15890) by name.

    python -m experiments.presets                                  # all names
    python -m experiments.presets --preset=cifar10/ring16/0.1      # what it sets, and what it costs
    python -m experiments.cifar10 --preset=ring16/0.1 --data_dir=DIR

Five datasets with their networks, on the authors' four graphs, at two alphas. Flags beside --preset are
stronger. What a preset costs is said as far as it follows from the setting: steps, what is sent, and the
arithmetic of the network; no time, which depends on the machine.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from ccl_jax import graphs, models
from ccl_jax.names import look_up
from experiments import cli, flops
from experiments.flag_values import FlagValues

EPOCHS, BATCH_SIZE = 200, 32


class Setting(NamedTuple):
    """A dataset of the paper and its network.

    Attributes:
      main: Main and dataset.
      model: Its network.
      train_images: Number of training images.
      classes: Number of classes.
      image_shape: (H, W, C).
      note: What else is to be known.
    """

    main: str
    model: str
    train_images: int
    classes: int
    image_shape: tuple[int, int, int]
    note: str = ""


SETTINGS = (
    Setting("cifar10", "resnet20", 50_000, 10, (32, 32, 3)),
    Setting("cifar100", "resnet20", 50_000, 100, (32, 32, 3)),
    Setting(
        "fmnist",
        "lenet5",
        60_000,
        10,
        (28, 28, 1),
        "LeNet-5 has no normalisation: the model-variant loss can run away at these weights; with "
        "--lambda_m=0.01 --lambda_d=0.01 --lr=0.03 it did not in three epochs on a ring of 16.",
    ),
    Setting("imagenette", "mobilenetv2", 9_469, 10, (32, 32, 3)),
    Setting(
        "imagenet",
        "resnet18",
        1_281_167,
        1000,
        (224, 224, 3),
        "The authors' code has no command for ImageNet; epochs and weights are those of the others.",
    ),
)

# Agents, graph and averaging rate; the authors' "torus" is a circulant graph.
GRAPHS = {
    "ring16": (16, "ring", 1.0),
    "ring32": (32, "ring", 1.0),
    "dyck32": (32, "dyck", 0.9),
    "torus32": (32, "circulant-torus", 0.9),
}
ALPHAS = (0.1, 0.01)


PRESETS = {
    f"{setting.main}/{graph}/{alpha}": (setting, graph, alpha)
    for setting in SETTINGS
    for graph in GRAPHS
    for alpha in ALPHAS
}


def load(name: str, main: str) -> dict[str, Any]:
    """The settings of a preset, by the names of the flags.

    Args:
      name: As cifar10/ring16/0.1; the dataset may be left out.
      main: The main that asks, as cifar10.

    Raises:
      ValueError: There is no such preset, or it is another main's.
    """
    own = [preset for preset in PRESETS if preset.startswith(f"{main}/")]
    if not own:
        raise ValueError(f"there are no presets for {main}; leave out --preset")
    full = name if name.count("/") == 2 else f"{main}/{name}"
    setting, graph, alpha = look_up("preset", full, PRESETS)
    if setting.main != main:
        raise ValueError(f"preset {name} is for python -m experiments.{setting.main}")
    agents, topology, gamma = GRAPHS[graph]
    return {
        "agents": agents,
        "topology": topology,
        "alpha": alpha,
        "algorithm": "qg-dsgdm-n",
        "lambda_m": 0.1,
        "lambda_d": 0.1,
        "gossip_rate": gamma,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "model": setting.model,
        "lr": 0.1,
        "schedule": "step",
        "batch_size": BATCH_SIZE,
        "epochs": EPOCHS,
    }


def describe(name: str) -> str:
    """What a preset sets, and what it costs."""
    setting, graph, alpha = look_up("preset", name, PRESETS)
    agents, topology, _ = GRAPHS[graph]
    degree = int(graphs.make(topology, agents).adjacency[0].sum(axis=1).max())
    steps = -(-(setting.train_images // agents) // BATCH_SIZE)
    sent = degree * message_bytes(setting)
    images = steps * agents * BATCH_SIZE
    forward = flops.forward(setting.model, setting.classes, setting.image_shape)
    gflop = (3 + degree) * images * forward / 1e9
    settings = " ".join(f"--{flag}={value}" for flag, value in load(name, setting.main).items())
    note = f"\nNote: {setting.note}" if setting.note else ""
    return f"""\
CCL on QG-DSGDm-N, {setting.model}, {agents} agents, {graph}, alpha {alpha} (arXiv:2310.15890).
  python -m experiments.{setting.main} --preset={graph}/{alpha} --data_dir=DIR
It stands for {settings}
Cost: {EPOCHS * steps:,} steps; each agent sends {sent:,} bytes a step to {degree} neighbours,
  {EPOCHS * steps * sent / 1e6:,.2f} MB in all (bytes_sent_per_agent in summary.json).
  An epoch is {steps:,} steps of {agents} x {BATCH_SIZE} images, {images:,} with the filled last batch.
  Each goes forward and backward through its agent's model, and forward through {degree} neighbours':
  {gflop:,.0f} GFLOP an epoch. Counted in the traced network: {forward:,} FLOP for an image
  forward (two for a multiply-add of convolutions and matrix products), twice that backward.
  Evaluation comes on top. experiments.benchmark measures what a machine makes of it.
Result: it has not been run.{note}"""


@functools.cache
def message_bytes(setting: Setting) -> int:
    """What an agent sends a neighbour in a step: its model, class sums and counts, as float32."""
    model = models.make(setting.model, setting.classes)
    params, _ = models.shapes(model, setting.image_shape)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    features = params["head"]["kernel"].shape[0]
    return 4 * (parameters + setting.classes * (features + 1))


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the presets, or describes one; returns the exit code."""
    values = FlagValues()
    flags.DEFINE_string("preset", None, "describe this one", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)

    def body() -> None:
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
        elif values["preset"].value is not None:
            print(describe(values["preset"].value))
        else:
            print("\n".join(PRESETS))

    return cli.guard(body)


if __name__ == "__main__":
    sys.exit(main())
