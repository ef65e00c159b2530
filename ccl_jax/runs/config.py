"""The settings of a run: one frozen Config, from which flags, help text and config.json are made.

Values that fit one dataset only (its model, its learning rate) are given by the main of that dataset,
as a Config of its own. Everything that can be checked without data is checked here, so that a wrong
value is reported before anything is read or written.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from ccl_jax import algorithms, graphs, losses, models, ranges
from ccl_jax.data import augment
from ccl_jax.devices import parallel
from ccl_jax.names import nearest
from ccl_jax.network import compression
from ccl_jax.network.faults import Faults, parse_pair
from ccl_jax.runs import paths
from ccl_jax.runs.data_settings import DataSettings
from ccl_jax.runs.settings import (
    AUTO,
    DEVICES,
    METHOD,
    NETWORK,
    OUTPUT,
    TRAINING,
    check_ranges,
    check_types,
    count_or_auto,
    feature_loss,
    named_values,
    names,
    number_or_schedule,
    setting,
)
from ccl_jax.training import schedules
from ccl_jax.training.objective import LAMBDAS


@dataclasses.dataclass(frozen=True)
class Config(DataSettings):
    """All settings of one run: what `python -m experiments.digits --help` shows as flags.

    Its own defaults are 16 agents and 200 epochs, as in the paper, but on digits; mains have others for
    their data.

    Raises:
      TypeError: There is no such setting; the message has the one that was likely meant.
      ValueError: A value out of its range; the message names it, what is allowed and what to do.
    """

    agents: int = setting(16, NETWORK, "number of agents", ranges.at_least(1))
    topology: str = setting(
        "ring", NETWORK, "graph: see `python -m experiments.topologies` for all names"
    )
    weights: str = setting("uniform", NETWORK, f"mixing weights: {names(graphs.WEIGHTS)}")
    compression: str = setting(
        "none",
        NETWORK,
        f"compress messages, with memory: {names(compression.NAMES)}:FRACTION (a small one diverges "
        "unless --gossip_rate is small, too: try it at 3 times the fraction)",
    )
    compression_start: str = setting(
        "model", NETWORK, "what is known before compressed messages: model (the start) or zero"
    )
    local_steps: int = setting(
        1, NETWORK, "steps from one exchange to the next; with proxskip their mean, by chance"
    )
    gossip_steps: int = setting(1, NETWORK, "how often models are mixed in one step")
    drop: float = setting(
        0.0, NETWORK, "probability that a link loses its messages in a step, in both directions"
    )
    drop_burst: float | None = setting(
        None, NETWORK, "mean number of steps that a bad link stays bad; default: independent steps"
    )
    drop_one_way: bool = setting(
        False, NETWORK, "let the two directions of a link fail independently"
    )
    offline: str | None = setting(
        None,
        NETWORK,
        "SHARE:LENGTH, as 0.1:20: agents are offline that share of the time, for so many steps on "
        "average, and neither train nor talk",
    )
    straggle: str | None = setting(
        None,
        NETWORK,
        "PROBABILITY:ROUNDS, as 0.2:3: how often an agent sends what it had so many exchanges ago",
    )
    message_noise: float = setting(
        0.0,
        NETWORK,
        "standard deviation of Gaussian noise that senders add to every number of every message, the "
        "same for all receivers",
    )

    algorithm: str = setting(
        "qg-dsgdm-n",
        METHOD,
        f"base method, see `python -m experiments.methods`: {names(algorithms.REGISTRY)}",
    )
    lambda_m: float = setting(
        0.0, METHOD, "weight of the model-variant contrastive loss; 0 leaves it out"
    )
    lambda_d: float = setting(
        0.0, METHOD, "weight of the data-variant contrastive loss; 0 leaves it out"
    )
    feature_loss: tuple[str, ...] = setting(
        (),
        METHOD,
        "another loss on features, NAME:WEIGHT as prototype:0.1, with options of its own as "
        "moon:1:temperature=0.2; may be repeated. Names: "
        + names(name for name in losses.REGISTRY if name not in LAMBDAS),
    )
    lambda_warmup_epochs: int = setting(
        0,
        METHOD,
        "epochs over which all weights of feature losses rise linearly from 0",
        ranges.at_least(0),
    )
    distance: str = setting("mse", METHOD, f"distance of features: {names(losses.DISTANCES)}")
    momentum: float | None = setting(None, METHOD, "momentum beta; default: the method's own")
    weight_decay: float | None = setting(
        None, METHOD, "weight decay, added to the gradient; default: the method's own"
    )
    gossip_rate: str | float | None = setting(
        None, METHOD, "gossip rate gamma, in (0, 1] or ars:START:GROWTH; default: the method's own"
    )
    hparam: tuple[str, ...] = setting(
        (), METHOD, "other hyper-parameter of the method, NAME=VALUE; may be repeated"
    )
    clip_norm: float | None = setting(
        None, METHOD, "clip each agent's gradient to this l2 norm; default: no clipping"
    )

    sam_rho: float = setting(
        0.0,
        METHOD,
        "SAM: gradients are taken where an ascent of this length leads; 0 for plain ones",
    )
    sam_adaptive: bool = setting(False, METHOD, "scale that ascent by parameters' sizes (ASAM)")

    model: str = setting("digits-cnn", TRAINING, f"network: {names(models.MODELS)}")
    norm: str | None = setting(
        None, TRAINING, f"normalisation: {names(models.NORMS)}; default: the model's own"
    )
    dtype: str = setting(
        "float32",
        TRAINING,
        "compute type of the network: float32 or bfloat16; parameters and losses are float32",
        ranges.one_of(("float32", "bfloat16")),
    )
    precision: str = setting(
        "default",
        TRAINING,
        "of products with --dtype=float32 on accelerators: default is JAX's, where a TPU rounds factors "
        "to bfloat16 and a GPU may use TF32; highest is float32, and slower. Gossip always has it",
        ranges.one_of(("default", "highest")),
    )
    gossip_batch_stats: bool = setting(
        False,
        TRAINING,
        "mix the statistics of batch norm, by the graph's weights; default: each keeps its own",
    )
    final_merge: bool = setting(
        False, TRAINING, "replace all models by their exact average at the end, by an all-reduce"
    )
    merge_at: int | None = setting(
        None,
        TRAINING,
        "from this epoch on, 1 to --epochs, agents take exact averages over all, by an all-reduce, in "
        "place of gossip",
    )
    lr: float = setting(0.1, TRAINING, "learning rate at its highest", ranges.POSITIVE)
    schedule: str = setting(
        "step",
        TRAINING,
        f"learning-rate schedule: {names(schedules.SCHEDULES)}; step is /10 at 50% and 75%",
    )
    warmup_epochs: int = setting(
        0, TRAINING, "epochs over which the learning rate rises linearly from 0", ranges.at_least(0)
    )
    batch_size: int = setting(32, TRAINING, "samples per agent and step", ranges.at_least(1))
    epochs: int = setting(200, TRAINING, "passes over the data", ranges.at_least(1))
    augment: str = setting("none", TRAINING, f"augmentation: {names(augment.NAMES)}")
    seed: int = setting(0, TRAINING, "seed of everything random", ranges.SEED)
    seeds: int = setting(
        1,
        TRAINING,
        "how many runs to make, of seeds SEED, SEED + 1 ..., each in its own directory seed-N",
        ranges.between(1, 1000),
        may_differ=True,
    )
    pack_seeds: str = setting(
        AUTO,
        TRAINING,
        "train them as one program: yes, no, or auto, which is no on CPUs, where nothing is gained",
        ranges.one_of((AUTO, "yes", "no")),
        may_differ=True,
    )

    devices: int = setting(
        0,
        DEVICES,
        "devices over which the agents are spread; 0 takes as many as divide the agents",
        ranges.at_least(0),
    )
    batch_devices: int = setting(
        1,
        DEVICES,
        "devices that share each agent's batch, so that few agents can fill many",
        ranges.at_least(1),
    )
    spmd: str = setting("shard_map", DEVICES, f"how devices are driven: {names(parallel.FORMS)}")
    coordinator: str | None = setting(
        None,
        DEVICES,
        "HOST:PORT of process 0, to train with several processes, which need one --workdir that all "
        "see; with --num_processes and --process_id",
    )
    num_processes: int | None = setting(None, DEVICES, "how many processes there are")
    process_id: int | None = setting(None, DEVICES, "which of them this is, from 0")
    distributed: bool = setting(
        False, DEVICES, "let JAX find the other processes by itself (Slurm, Cloud TPU ...)"
    )
    join_seconds: int = setting(
        300, DEVICES, "how long to wait for the other processes", ranges.at_least(1)
    )

    chunk_steps: int = setting(
        0,
        TRAINING,
        "steps that run as one program, with their metrics fetched together; 0 for 1 on a CPU and "
        "with streamed data, 50 elsewhere",
        ranges.at_least(0),
        may_differ=True,
    )
    compile_cache: str | None = setting(
        AUTO,
        TRAINING,
        "directory where compiled programs are kept for later runs; auto: JAX's own if it is set, else "
        "~/.cache/ccl_jax (or $XDG_CACHE_HOME); none: nowhere",
        may_differ=True,
    )

    workdir: str | None = setting(
        None, OUTPUT, "directory of this run's files; default: a new one under runs/"
    )
    eval_every: int | str = setting(
        AUTO,
        OUTPUT,
        "epochs between evaluations on the test set; auto: so many of 1, 2, 5, 10 ... that they take "
        "less than a tenth of training, counted in forward passes, and the first and the last besides",
        may_differ=False,
    )
    measure_heterogeneity: bool = setting(
        False,
        OUTPUT,
        "record CCL's two losses even where their weight is 0 (costs time, not traffic)",
        may_differ=False,
    )
    progress: bool = setting(True, OUTPUT, "say on stderr what is trained and how far it is")
    quiet: bool = setting(False, OUTPUT, "say nothing but warnings, errors and the result")
    figures: bool = setting(
        True, OUTPUT, "draw the split, accuracies and, of cross-features, those of two neighbours"
    )
    tensorboard: bool = setting(
        False, OUTPUT, "write the metrics for TensorBoard, too (pip install '.[tensorboard]')"
    )
    resume: bool = setting(
        False,
        OUTPUT,
        "go on with the run in --workdir, to the bit, from its last checkpoint; one that has ended goes "
        "on with more --epochs",
    )
    checkpoint_every: int = setting(
        0,
        OUTPUT,
        "save after every so many epochs; 0 for never (the end is always saved)",
        ranges.at_least(0),
    )
    checkpoint_minutes: float = setting(
        5.0,
        OUTPUT,
        "save every so many minutes, also within an epoch; 0 for never",
        ranges.NOT_NEGATIVE,
    )
    keep: int = setting(
        2, OUTPUT, "newest checkpoints to keep, beside the best one", ranges.at_least(1)
    )
    on_divergence: str = setting(
        "stop",
        OUTPUT,
        "when a number is no longer finite: stop, skip the step, or rollback (to the last "
        "checkpoint with a tenth of the learning rate, up to 3 times)",
        ranges.one_of(("stop", "skip", "rollback")),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "eval_every", count_or_auto("eval_every", self.eval_every))
        check_types(self)
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), (str, tuple)):
                each = paths.local(value) if isinstance(value, str) else map(paths.local, value)
                object.__setattr__(self, field.name, type(value)(each))
        object.__setattr__(self, "gossip_rate", number_or_schedule(self.gossip_rate))
        check_ranges(self)
        for name in ("warmup_epochs", "lambda_warmup_epochs"):
            _check(
                self, name, getattr(self, name) <= self.epochs, f"at most {self.epochs}, the epochs"
            )
        merges = self.merge_at is None or 1 <= self.merge_at <= self.epochs
        _check(self, "merge_at", merges, f"1 to {self.epochs}, the epochs")
        whole = self.batch_size % self.batch_devices == 0
        _check(self, "batch_devices", whole, f"a divisor of batch_size {self.batch_size}")
        self.faults()
        self.feature_losses()
        plain = self.sam_rho == 0
        _check(self, "sam_adaptive", not (plain and self.sam_adaptive), "given with --sam_rho > 0")
        _check(self, "resume", not self.resume or self.workdir is not None, "given with --workdir")

    def replace(self, **changes: Any) -> "Config":
        """A Config that differs in some settings."""
        return dataclasses.replace(self, **changes)

    def faults(self) -> Faults:
        """How the network fails, perhaps not at all.

        Raises:
          ValueError: A number is out of range.
        """
        share, length = parse_pair("offline", self.offline)
        probability, delay = parse_pair("straggle", self.straggle)
        _check(self, "straggle", delay.is_integer(), "PROBABILITY:ROUNDS with whole rounds")
        return Faults(
            drop=self.drop,
            drop_burst=self.drop_burst,
            one_way=self.drop_one_way,
            offline=share,
            offline_length=length,
            straggle=probability,
            delay=int(delay),
            seed=self.seed,
        )

    def feature_losses(self) -> tuple[tuple[str, float], ...]:
        """Names and weights of `feature_loss`; a ValueError where one is not of its form."""
        return tuple(feature_loss(text)[:2] for text in self.feature_loss)

    def loss_options(self) -> dict[str, dict[str, Any]]:
        """Options of feature losses that were given, by the name of the loss."""
        return {name: given for name, _, given in map(feature_loss, self.feature_loss) if given}

    def hyperparameters(self, epoch_steps: int = 1) -> dict[str, Any]:
        """Those of the method that were given, with `epoch_steps` for a gossip rate that grows.

        Raises:
          ValueError: An `hparam` is not NAME=VALUE, or is given twice.
        """
        flags = ("momentum", "weight_decay", "gossip_rate")
        given = {name: getattr(self, name) for name in flags if getattr(self, name) is not None}
        if isinstance(self.gossip_rate, str):
            given["gossip_rate"] = schedules.gossip_rate(self.gossip_rate, epoch_steps)
        return given | named_values(self.hparam, flags)

    @property
    def label(self) -> str:
        """What tables and figures call this method."""
        ccl = ["CCL"] if self.lambda_m or self.lambda_d else []
        others = [name for name, weight in self.feature_losses() if weight]
        others += ["SAM"] if self.sam_rho else []
        return " + ".join([*ccl, *others, self.algorithm])


def _name_what_was_meant(init: Callable[..., None]) -> Callable[..., None]:
    """Lets a setting that there is not be answered with the one that was likely meant."""
    known = {field.name: field.metadata["help"] for field in dataclasses.fields(Config)}

    @functools.wraps(init)
    def checked(self: Config, *values: Any, **settings: Any) -> None:
        for name in settings.keys() - known.keys():
            meant = nearest(name, known)
            hint = f"did you mean {meant!r}?" if meant else "`--help` of a command lists all"
            raise TypeError(f"there is no setting {name!r}; {hint}")
        init(self, *values, **settings)

    return checked


Config.__init__ = _name_what_was_meant(Config.__init__)


def _check(config: Config, name: str, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {getattr(config, name)}; it must be {allowed}")


# Settings that a resumed run may be given others of.
MAY_DIFFER = frozenset(f.name for f in dataclasses.fields(Config) if f.metadata["may_differ"])
