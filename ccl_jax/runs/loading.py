"""A trained run as a value: its model, its parameters, and a function that predicts.

run = ccl_jax.load_run("runs/mine")
probabilities = run.predict(images)              # of the mean of all agents' models
probabilities = run.predict(images, agent=3)     # of one agent's
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ccl_jax import algorithms, models, trees
from ccl_jax.network import Network
from ccl_jax.runs import forward, inputs, reporter, runner
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import RunDirectory
from ccl_jax.runs.facts import Facts
from ccl_jax.training.evaluation import consensus
from ccl_jax.training.progress import Row

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run's model and parameters at one of its checkpoints.

    Attributes:
      directory: The run directory.
      config: Its settings.
      dataset: Names of the classes, shape of an image, normalisation.
      step: Steps done at the checkpoint.
      row: The metrics of the epoch that ended there; None within an epoch.
      model: A flax module, images -> (features, logits); `model.apply(run.consensus, normalised)`.
      agents: The agents' models: its variables ("params", perhaps "batch_stats"), leaves
        `[agents, ...]`.
      consensus: Their mean, leaves `[...]`.
    """

    directory: Path
    config: Config
    dataset: Facts
    step: int
    row: Row | None
    model: nn.Module
    agents: dict[str, PyTree]
    consensus: dict[str, PyTree]

    def variables(self, agent: int | None = None) -> dict[str, PyTree]:
        """One model's variables: an agent's, or of None the consensus model's.

        Raises:
          ValueError: There is no such agent.
        """
        if agent is None:
            return self.consensus
        if not 0 <= agent < self.config.agents:
            raise ValueError(
                f"agent is {agent}; {self.directory} has agents 0 to {self.config.agents - 1}"
            )
        return jax.tree.map(lambda x: x[agent], self.agents)

    def features_and_logits(
        self, images: jax.typing.ArrayLike, agent: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What `predict` makes probabilities of: `[n, F]` and `[n, classes]` float32."""
        images = jnp.asarray(images)
        self._check_shape(images.shape)
        with runner.precision(self.config):
            return forward.features_and_logits(
                self.model, self.dataset, self.variables(agent), images
            )

    def logits(self, images: jax.typing.ArrayLike, agent: int | None = None) -> jax.Array:
        """As `predict`, before the softmax: `[n, classes]` float32."""
        return self.features_and_logits(images, agent)[1]

    def predict(self, images: jax.typing.ArrayLike, agent: int | None = None) -> jax.Array:
        """Probabilities of the classes; compiled once for each number of images.

        Args:
          images: `[n, H, W, C]` pixels as the dataset has them, uint8 or float, 0 to
            `dataset.scale`; they are normalised here. H and W are those of `dataset.image_shape`, or
            both `dataset.side`, of which the middle is seen. A warning tells of pixels in another
            range.
          agent: Whose model; None for the consensus model.

        Returns:
          `[n, classes]` float32.

        Raises:
          ValueError: Images of another shape, or an agent that there is not.
        """
        images = jnp.asarray(images)
        logits = self.logits(images, agent)  # First, as it checks the shape.
        if images.size and not isinstance(images, jax.core.Tracer):
            self._check_range(float(images.min()), float(images.max()))
        return jax.nn.softmax(logits)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        height, width, channels = self.dataset.image_shape
        side = self.dataset.side
        sizes = dict.fromkeys([(height, width), (side, side)])
        if len(shape) != 4 or shape[1:3] not in sizes or shape[3] != channels:
            wanted = " or ".join(f"[n, {h}, {w}, {channels}]" for h, w in sizes)
            raise ValueError(
                f"images are {list(shape)}; {self.directory} was trained on {wanted}: bring them to "
                "that shape (`python -m experiments.predict --images=...` does it)"
            )

    def _check_range(self, low: float, high: float) -> None:
        """Warns of pixels that are none of the dataset's; a model would answer all the same."""
        scale = self.dataset.scale
        if low < 0 or high > scale or 0 < high <= 1 < scale:
            warnings.warn(
                f"pixels go from {low:g} to {high:g}, those of {self.directory} from 0 to {scale:g}: "
                "bring them there, or the answers mean little",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        """Without the parameters, which would fill the screen."""
        return (
            f"LoadedRun({str(self.directory)!r}: {self.config.label} on {self.dataset.name}, "
            f"{self.config.agents} agents, step {self.step})"
        )


def load_run(directory: str | os.PathLike, checkpoint: str | int = "last") -> LoadedRun:
    """Loads what a run has trained; its data are not needed.

    Args:
      directory: The run directory, of a run that has ended or not.
      checkpoint: "last", "best" (by consensus accuracy) or a step.

    Raises:
      ValueError: It is no run, it has no such checkpoint, or it does not fit this version.

    Example:
      >>> run = load_run("runs/mine", checkpoint="best")
      >>> run.predict(images).argmax(axis=-1)
    """
    files = RunDirectory(directory)
    config = _config(files)
    saved = Checkpoints(files.checkpoints)
    step = saved.choose(checkpoint)
    facts = _facts(files, config)
    _check_registered(files, config)
    model = runner.make_model(config, facts.num_classes)
    params, state = _agents(config, model, facts, saved.arrays(step))
    progress = saved.progress(step)
    agents = {"params": params, **state}
    return LoadedRun(
        files.path,
        config,
        facts,
        step,
        progress.rows[-1] if progress.position == 0 and progress.rows else None,
        model,
        agents,
        consensus(agents),
    )


def _config(files: RunDirectory) -> Config:
    """The settings of a run, of this version or an older one."""
    there = files.settings()
    made, names = there.pop("made_with", {}), {field.name for field in dataclasses.fields(Config)}
    if unknown := sorted(there.keys() - names):
        raise ValueError(
            f"{files.path} has settings that this version does not know ({', '.join(unknown)}); use "
            f"ccl_jax {made.get('ccl_jax', 'of the version that made it')}"
        )
    # No path of the machine that made it is asked for, and no processes are joined.
    there |= {"workdir": str(files.path), "resume": False}
    try:
        return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in there.items()})
    except ValueError as error:
        raise ValueError(
            f"{files.path}/config.json cannot be used: {error}{_made_with_files(made)}"
        ) from None


def _made_with_files(made: Mapping[str, Any]) -> str:
    """The files of a user's own that a run was made with, as the end of a message."""
    own = reporter.given_extensions(made.get("command", []))
    return f" It was made with {' '.join(own)}; give that again." if own else ""


def _check_registered(files: RunDirectory, config: Config) -> None:
    """A run of somebody's own method or model needs the file that registers it."""
    for kind, name, table in (
        ("algorithm", config.algorithm, algorithms.REGISTRY),
        ("model", config.model, models.MODELS),
    ):
        if name not in table:
            raise ValueError(
                f"{files.path} has the {kind} {name}, which is not registered here; import the file "
                "that registers it first, on a command line by --extension=FILE."
                + _made_with_files(files.made_with())
            )


def _facts(files: RunDirectory, config: Config) -> Facts:
    """From dataset.json; of a run that is older than that file, from its dataset."""
    file = files.path / "dataset.json"
    if not file.exists():
        return Facts.of(inputs.load(config).dataset)
    try:
        return Facts.from_json(json.loads(file.read_text()))
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{file} is damaged; it is not what a run writes there") from None


def _agents(
    config: Config, model: nn.Module, facts: Facts, arrays: dict[str, np.ndarray]
) -> tuple[PyTree, PyTree]:
    """The models in use and their other collections, leaves `[agents, ...]`."""
    shapes = models.shapes(model, facts.image_shape)
    like = jax.eval_shape(lambda: trees.stack(jax.tree.map(jnp.zeros_like, shapes), config.agents))
    params, state = _take(arrays, ".params", like[0]), _take(arrays, ".model_state", like[1])
    algorithm = algorithms.make(config.algorithm, **config.hyperparameters())
    if algorithm.models is algorithms.Algorithm._field_defaults["models"]:
        return params, state
    talk = Network(runner.make_topology(config)).round(0)
    held = jax.eval_shape(lambda x: algorithm.init(x, talk), params)
    return algorithm.models(params, _take(arrays, ".algorithm", held)), state


def _take(arrays: dict[str, np.ndarray], where: str, like: PyTree) -> PyTree:
    """A part of a checkpoint, by the names of its leaves."""

    def take(path, leaf):
        name = where + jax.tree_util.keystr(path)
        found = arrays.get(name)
        if found is None or found.shape != leaf.shape:
            raise ValueError(
                f"the checkpoint does not fit its settings: {name} is "
                f"{'missing' if found is None else found.shape} and should be {leaf.shape}; use the "
                "version of ccl_jax that made it, or register its model as it was"
            )
        return jnp.asarray(found)

    return jax.tree_util.tree_map_with_path(take, like)
