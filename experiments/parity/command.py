"""Replays a recorded run of the authors' own code and reports how far ours is from it.

    python -m experiments.parity --trace=tests/fixtures/trajectories/ring5_lenet5_qg_ccl.npz

prints one JSON line and exits 0 when losses agree to 1e-5 (absolute) and norms to 1e-5 (relative),
1 when they do not, 2 when the file cannot be replayed. A trace is an .npz with `config` (JSON: arch,
gossip_rate, lr, momentum, nesterov, weight_decay, quasi_global, lambda_m, lambda_d), `images`,
`labels`, `neighbors`, the PyTorch parameters `init.<name>`, and the numbers to compare with.

Other kinds of recordings are known by what they have or by their method's name, and are replayed by
modules of their own, listed in `REPLAYERS`: optimizers on quadratics (entries `A` and `c`) and logistic
regression (`inputs`; method, variant, max_error; exit 0 within 1e-4), functions (losses and gradients
within 1e-5, parameters within 1e-4), mixing matrices (1e-6) and Newton-Schulz iterations (1e-5).
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util

from ccl_jax import algorithms, models, training
from ccl_jax.graphs import topology
from ccl_jax.losses import Batch
from ccl_jax.models import convert
from ccl_jax.network import Network
from ccl_jax.runs.directory import plain
from ccl_jax.training.evaluation import consensus_distance
from experiments import cli
from experiments.flag_values import FlagValues
from experiments.parity import functions, matrices, newton_schulz, quadratics, sharpness, traces
from experiments.parity.traces import NUMBER, Replayer

LOSS_TOLERANCE = 1e-5  # absolute, over the three losses
NORM_TOLERANCE = 1e-5  # relative

# What a recording must have: the configuration's entries, and the arrays with their axes.
_CONFIG = {
    "arch": str,
    "gossip_rate": NUMBER,
    "lr": list,
    "momentum": NUMBER,
    "nesterov": (bool, int),
    "weight_decay": NUMBER,
    "quasi_global": (bool, int),
    "lambda_m": NUMBER,
    "lambda_d": NUMBER,
}
_ARRAYS = {
    "images": ("steps", "agents", "batch", "height", "width", "channels"),
    "labels": ("steps", "agents", "batch"),
    "neighbors": ("agents", "degree"),
    "losses": ("steps", "agents", 3),
    "param_norm": ("steps", "agents"),
    "consensus_distance": ("steps",),
}

# Names of normalisations in recordings that are called otherwise here.
_NORMS = {"groupnorm": "group", "batchnorm": "batch", "bn": "batch", "gn": "group"}


def main(argv: list[str] | None = None) -> int:
    """Replays the file given by --trace; returns the exit code."""
    values = FlagValues()
    flags.DEFINE_string("trace", None, "recorded run, an .npz file", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    passed = True

    def body() -> None:
        nonlocal passed
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        if values["trace"].value is None:
            raise ValueError("no recording given; name one with --trace=FILE")
        trace = traces.load(values["trace"].value)
        replayer = next((known for known in REPLAYERS if known.fits(trace)), _TRAINING)
        result = replayer.replay(trace)
        print(json.dumps(plain(result)))
        passed = result["passed"]

    return cli.guard(body) or (0 if passed else 1)


def replay(trace: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Replays a training trajectory.

    Args:
      trace: The arrays of the file.

    Returns:
      max_loss_error (absolute), max_param_norm_error and max_consensus_error (relative),
      max_momentum_norm_error (relative) and max_param_error (absolute) where recorded, passed.

    Raises:
      ValueError: An entry is missing or does not fit the others.
    """
    config = _check(trace)
    step, state = _build(config, trace)
    final = None
    if any(name.startswith("final.") for name in trace):
        final = _parameters(trace, "final", _model_name(config), leading=1)
        _check_fit("final", final, state.params)

    losses, norms, distances = [], [], []
    for images, labels in zip(trace["images"], trace["labels"], strict=True):
        batch = Batch(
            jnp.asarray(images, jnp.float32),
            jnp.asarray(labels, jnp.int32),
            jnp.ones(labels.shape, bool),
        )
        state, metrics = step(state, batch)
        found = metrics.losses
        losses.append([metrics.cross_entropy, found["model_variant"], found["data_variant"]])
        norms.append(_norms(state.params))
        distances.append(consensus_distance(state.params))

    result = {
        "max_loss_error": float(np.abs(np.swapaxes(losses, 1, 2) - trace["losses"]).max()),
        "max_param_norm_error": _relative(norms, trace["param_norm"]),
        "max_consensus_error": _relative(distances, trace["consensus_distance"]),
    }
    if "momentum_norm" in trace and config["momentum"]:
        result["max_momentum_norm_error"] = _relative(
            _norms(_momentum(state.algorithm)), trace["momentum_norm"]
        )
    if final is not None:
        errors = jax.tree.map(lambda x, y: np.abs(x - y).max(), state.params, final)
        result["max_param_error"] = float(max(jax.tree.leaves(errors)))
    result["passed"] = bool(
        result["max_loss_error"] <= LOSS_TOLERANCE
        and result["max_param_norm_error"] <= NORM_TOLERANCE
        and result["max_consensus_error"] <= NORM_TOLERANCE
    )
    return result


_TRAINING = Replayer(lambda trace: True, replay)
# The first that fits replays a recording; one that none fits is of training.
REPLAYERS: tuple[Replayer, ...] = (
    Replayer(matrices.recognises, matrices.replay),
    Replayer(newton_schulz.recognises, newton_schulz.replay),
    *functions.REPLAYERS,
    *sharpness.REPLAYERS,
    quadratics.REPLAYER,
)


def _check(trace: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Makes sure that all that a replay reads is there and fits; returns the configuration."""
    optional = {"momentum_norm": ("agents",)} if "momentum_norm" in trace else {}
    lengths = traces.check_arrays(trace, _ARRAYS | optional, integers=("labels", "neighbors"))
    config = traces.read_config(trace, _CONFIG)
    rates, steps = config["lr"], lengths["steps"]
    if len(rates) != steps or not all(isinstance(rate, NUMBER) for rate in rates):
        raise ValueError(
            f"the recording's config has lr = {rates}; it must be one number for each of the "
            f"{steps} steps"
        )
    return config


def _build(config: Mapping[str, Any], trace: Mapping[str, np.ndarray]) -> tuple:
    """The jitted step and the first state."""
    name = _model_name(config)
    params = _parameters(trace, "init", name)
    num_classes = len(params.get("head", {}).get("bias", ()))
    labels = trace["labels"]
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"the recording's labels go from {labels.min()} to {labels.max()} and the bias of its "
            f"last layer has {num_classes} values; labels must be 0 to classes - 1"
        )
    norm = str(config["norm"]) if "norm" in config else None
    model = models.make(name, num_classes, norm=_NORMS.get(norm, norm))
    image_shape = trace["images"].shape[3:]
    _check_fit("init", params, models.shapes(model, image_shape)[0])
    algorithm = algorithms.make(
        ("qg-dsgdm" if config["quasi_global"] else "dsgdm") + ("-n" if config["nesterov"] else ""),
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        gossip_rate=config["gossip_rate"],
    )
    graph = topology.from_neighbors(str(config.get("topology", "recorded")), trace["neighbors"])
    objective = training.Objective(
        num_classes=num_classes,
        lambda_m=config["lambda_m"],
        lambda_d=config["lambda_d"],
        distance=str(config.get("distance", "mse")),
        measure=True,
    )
    network = Network(graph)
    lr = jnp.asarray(config["lr"], jnp.float32)
    step = training.make_step(model, algorithm, network, objective, lambda t: lr[t])
    state = training.init_state(
        model, algorithm, network, objective, image_shape, jax.random.key(0), params=params
    )
    return jax.jit(step), state


def _parameters(
    trace: Mapping[str, np.ndarray], prefix: str, model: str, leading: int = 0
) -> dict[str, Any]:
    """The recorded parameters `<prefix>.<name>` as a tree."""
    start = f"{prefix}."
    arrays = {k.removeprefix(start): v for k, v in trace.items() if k.startswith(start)}
    try:
        return convert.from_torch(model, arrays, leading=leading)
    except ValueError as error:
        raise ValueError(f"the recording's {prefix} parameters cannot be read: {error}") from None


def _check_fit(prefix: str, params: Any, like: Any) -> None:
    found, wanted = (
        {path: x.shape for path, x in traverse_util.flatten_dict(tree, sep="/").items()}
        for tree in (params, like)
    )
    if found != wanted:
        path = min(path for path, _ in found.items() ^ wanted.items())
        raise ValueError(
            f"the recording's {prefix} parameters do not fit the model: {path} is "
            f"{found.get(path, 'missing')}, expected {wanted.get(path, 'none')}"
        )


def _model_name(config: Mapping[str, Any]) -> str:
    return config["arch"].replace("-", "").replace("_", "").lower()


def _norms(tree: Any) -> np.ndarray:
    """`[agents]` l2 norms."""
    squares = [
        np.square(np.asarray(x, np.float64)).reshape(x.shape[0], -1).sum(axis=1)
        for x in jax.tree.leaves(tree)
    ]
    return np.sqrt(np.sum(squares, axis=0))


def _momentum(state: Any) -> Any:
    """The momentum buffers, wherever the algorithm keeps them."""
    return state.momentum if hasattr(state, "momentum") else state.local


def _relative(ours: Any, recorded: np.ndarray) -> float:
    recorded = np.asarray(recorded, np.float64)
    return float((np.abs(np.asarray(ours) - recorded) / np.maximum(recorded, 1e-12)).max())
