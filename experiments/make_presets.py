"""Writes experiments/presets/*.flags, one for every setting of the paper (arXiv:2310.15890).

    python -m experiments.make_presets

It needs a checkout: an installed package is no place to write to.

Five sets with their networks, on the authors' four graphs, at two alphas. A file opens with the command
that runs it, what that costs as far as it follows from the setting (steps, what is sent, and the
arithmetic of the network; no time, which depends on the machine), and what came out, where it was run.
"""

import functools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax import graphs, models
from ccl_jax.models.convolution import as_defined
from experiments import cli
from experiments.workload import count_flop

FOLDER = Path(__file__).with_name("presets")
EPOCHS, BATCH_SIZE = 200, 32


class Setting(NamedTuple):
    """Attributes:
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
        "LeNet-5 has no normalisation: the model-variant loss can run away at these weights; with\n"
        "# --lambda_m=0.01 --lambda_d=0.01 --lr=0.03 it did not in three epochs on a ring of 16.",
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

# Name, agents, graph, neighbours, averaging rate; the authors' "torus" is a circulant graph.
GRAPHS = (
    ("ring", 16, "ring", 1.0),
    ("ring", 32, "ring", 1.0),
    ("dyck", 32, "dyck", 0.9),
    ("torus", 32, "circulant-torus", 0.9),
)
ALPHAS = (0.1, 0.01)


def presets() -> dict[str, str]:
    """All presets: file name -> content."""
    return {
        f"{setting.main}_{name}{agents}_alpha{alpha}.flags": preset(
            setting, name, agents, topology, gamma, alpha
        )
        for setting in SETTINGS
        for name, agents, topology, gamma in GRAPHS
        for alpha in ALPHAS
    }


def preset(
    setting: Setting, name: str, agents: int, topology: str, gamma: float, alpha: float
) -> str:
    """One preset's content."""
    degree = int(graphs.make(topology, agents).adjacency[0].sum(axis=1).max())
    steps = -(-(setting.train_images // agents) // BATCH_SIZE)
    sent = degree * message_bytes(setting)
    images = steps * agents * BATCH_SIZE
    forward = forward_flop(setting)
    gflop = (3 + degree) * images * forward / 1e9
    file = f"experiments/presets/{setting.main}_{name}{agents}_alpha{alpha}.flags"
    note = f"# {setting.note}\n" if setting.note else ""
    return f"""\
# CCL on QG-DSGDm-N, {setting.model}, {agents} agents, {name}, alpha {alpha} (arXiv:2310.15890).
#   python -m experiments.{setting.main} --data_dir=DIR --flagfile={file}
# Cost: {EPOCHS * steps:,} steps; each agent sends {sent:,} bytes a step to {degree} neighbours,
#   {EPOCHS * steps * sent / 1e6:,.2f} MB in all (bytes_sent_per_agent in summary.json).
#   An epoch is {steps:,} steps of {agents} x {BATCH_SIZE} images, {images:,} with the filled last batch.
#   Each goes forward and backward through its agent's model, and forward through {degree} neighbours':
#   {gflop:,.0f} GFLOP an epoch. Counted in the traced network: {forward:,} FLOP for an image
#   forward (two for a multiply-add of convolutions and matrix products), twice that backward.
#   Evaluation comes on top. experiments.benchmark measures what a machine makes of it.
# Result: it has not been run.
{note}--agents={agents}
--topology={topology}
--alpha={alpha}
--algorithm=qg-dsgdm-n
--lambda_m=0.1
--lambda_d=0.1
--gossip_rate={gamma}
--momentum=0.9
--weight_decay=1e-4
--model={setting.model}
--lr=0.1
--schedule=step
--batch_size={BATCH_SIZE}
--epochs={EPOCHS}
"""


@functools.cache
def message_bytes(setting: Setting) -> int:
    """What an agent sends a neighbour in a step: its model, class sums and counts, as float32."""
    model = models.make(setting.model, setting.classes)
    params, _ = models.shapes(model, setting.image_shape)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    features = params["head"]["kernel"].shape[0]
    return 4 * (parameters + setting.classes * (features + 1))


@functools.cache
def forward_flop(setting: Setting) -> int:
    """FLOP of one image's forward pass, as `workload.count_flop` counts them."""
    # With any norm but "none", LeNet-5 spells its convolutions out.
    model = models.make(setting.model, setting.classes, norm="group")
    shapes = models.shapes(model, setting.image_shape)
    image = jax.ShapeDtypeStruct((1, *setting.image_shape), jnp.float32)
    forward = lambda params, state, image: models.apply_eval(model, params, state, image)
    with as_defined():
        return count_flop(jax.make_jaxpr(forward)(*shapes, image).jaxpr)


def write() -> None:
    """Writes all presets.

    Raises:
      ValueError: This is an installed package, not a checkout.
    """
    checkout = FOLDER.parents[1]
    if not (checkout / "setup.cfg").is_file():
        raise ValueError(
            f"presets are written into a checkout, and {checkout} is none; run this in the root of one"
        )
    FOLDER.mkdir(exist_ok=True)
    for name, content in presets().items():
        (FOLDER / name).write_text(content)
    print(f"{len(presets())} presets in {FOLDER}")


if __name__ == "__main__":
    sys.exit(cli.guard(write))
