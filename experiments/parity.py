"""Replays a recorded run of the authors' own code and reports how far ours is from it.

    python -m experiments.parity --trace=tests/data/trajectories/ring5_lenet5_qg_ccl.npz

prints one JSON line and exits 0 when losses agree to 2e-5 (absolute) and norms to 1e-5 (relative),
1 when they do not, 2 when the file cannot be replayed. A trace is an .npz with `config` (JSON: arch,
gossip_rate, lr, momentum, nesterov, weight_decay, quasi_global, lambda_m, lambda_d), `images`,
`labels`, `neighbors`, the PyTorch parameters `init.<name>`, and the numbers to compare with. Recorded
runs of optimizers on quadratics (with entries `A` and `c`) are replayed by
`experiments.parity_algorithms`: method, variant, max_error; exit 0 within 1e-4.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util

from ccl_jax import algorithms, models, topology, training
from ccl_jax.cross_features import Batch
from ccl_jax.evaluation import consensus_distance
from ccl_jax.metrics import plain
from ccl_jax.models import convert
from ccl_jax.network import Network
from ccl_jax.training import TrainState
from experiments import cli, parity_algorithms

LOSS_TOLERANCE = 2e-5  # absolute, over the three losses
NORM_TOLERANCE = 1e-5  # relative

# What a configuration must say, in types of JSON.
_NUMBER = (int, float)
_CONFIG = {
    "arch": str,
    "gossip_rate": _NUMBER,
    "lr": list,
    "momentum": _NUMBER,
    "nesterov": (bool, int),
    "weight_decay": _NUMBER,
    "quasi_global": (bool, int),
    "lambda_m": _NUMBER,
    "lambda_d": _NUMBER,
}

# The arrays, with their axes.
_ARRAYS = {
    "images": ("steps", "agents", "batch", "height", "width", "channels"),
    "labels": ("steps", "agents", "batch"),
    "neighbors": ("agents", "degree"),
    "losses": ("steps", "agents", "terms"),
    "param_norm": ("steps", "agents"),
    "consensus_distance": ("steps",),
    "momentum_norm": ("agents",),
}
_OPTIONAL = ("momentum_norm",)
_INTEGERS = ("labels", "neighbors")

# Names of normalisations in recordings that are called otherwise here.
_NORMS = {"groupnorm": "group", "batchnorm": "batch", "bn": "batch", "gn": "group"}


def main(argv: list[str] | None = None) -> int:
    """Replays the file given by --trace; returns the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("trace", None, "recorded run, an .npz file", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values)
    passed = True

    def body() -> None:
        nonlocal passed
        values(list(sys.argv if argv is None else argv))
        if values["help"].value:
            print(__doc__)
            return
        if values["trace"].value is None:
            raise ValueError("no recording given; name one with --trace=FILE")
        trace = load(values["trace"].value)
        result = parity_algorithms.replay(trace) if "A" in trace else replay(trace)
        print(json.dumps(plain(result)))
        passed = result["passed"]

    return cli.guard(body) or (0 if passed else 1)


def load(path: str) -> dict[str, np.ndarray]:
    """Reads a recording; nothing in it is executed.

    Raises:
      ValueError: It is not there, damaged, or lacks a configuration.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            trace = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; --trace takes a recorded .npz file") from None
    except Exception as error:  # A damaged archive fails in as many ways as it has parts.
        raise ValueError(f"{path} is not a readable .npz recording: {error}") from None
    if "config" not in trace:
        raise ValueError(f"{path} has no entry 'config'; it is not a recording of a run")
    return trace


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

    losses, norms, distances = [], [], []
    for images, labels in zip(trace["images"], trace["labels"], strict=True):
        batch = Batch(
            jnp.asarray(images, jnp.float32),
            jnp.asarray(labels, jnp.int32),
            jnp.ones(labels.shape, bool),
        )
        state, metrics = step(state, batch)
        losses.append([metrics.cross_entropy, metrics.model_variant, metrics.data_variant])
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
    if any(name.startswith("final.") for name in trace):
        wanted = _parameters(trace, "final", _model_name(config), state.params, leading=1)
        errors = jax.tree.map(lambda x, y: np.abs(x - y).max(), state.params, wanted)
        result["max_param_error"] = float(max(jax.tree.leaves(errors)))
    result["passed"] = bool(
        result["max_loss_error"] <= LOSS_TOLERANCE
        and result["max_param_norm_error"] <= NORM_TOLERANCE
        and result["max_consensus_error"] <= NORM_TOLERANCE
    )
    return result


def _check(trace: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Makes sure that all that a replay reads is there and fits; returns the configuration."""
    missing = [name for name in ("config", *_ARRAYS) if name not in (*trace, *_OPTIONAL)]
    if missing:
        raise ValueError(f"the recording lacks {', '.join(missing)}; it cannot be replayed")
    sizes = {"terms": 3}
    for name in (name for name in _ARRAYS if name in trace):
        axes, array = _ARRAYS[name], trace[name]
        kinds = "iu" if name in _INTEGERS else "iuf"
        fits = array.ndim == len(axes) and array.size > 0 and array.dtype.kind in kinds
        if not fits or any(sizes.setdefault(*at) != at[1] for at in zip(axes, array.shape)):
            wanted = ", ".join(f"{axis} {sizes[axis]}" if axis in sizes else axis for axis in axes)
            raise ValueError(
                f"the recording's {name} is {array.dtype} {array.shape}; it must be "
                f"{'integers' if name in _INTEGERS else 'numbers'} [{wanted}]"
            )
    try:
        config = json.loads(str(trace["config"]))
        wrong = [name for name, kind in _CONFIG.items() if not isinstance(config[name], kind)]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the recording's config is damaged or lacks an entry ({error}); it must be a JSON "
            f"object with {', '.join(_CONFIG)}"
        ) from None
    if wrong:
        raise ValueError(
            f"the recording's config has {wrong[0]} = {config[wrong[0]]!r}, which is of the wrong "
            "type; it cannot be replayed"
        )
    rates = config["lr"]
    if len(rates) != sizes["steps"] or not all(isinstance(rate, _NUMBER) for rate in rates):
        raise ValueError(
            f"the recording's config has {len(rates)} values of lr; it must have one number for "
            f"each of the {sizes['steps']} steps"
        )
    return config


def _build(config: Mapping[str, Any], trace: Mapping[str, np.ndarray]) -> tuple:
    """The jitted step and the first state."""
    name = _model_name(config)
    labels = trace["labels"]
    last_bias = [v for k, v in trace.items() if k.startswith("init.") and k.endswith(".bias")][-1:]
    num_classes = last_bias[0].size if last_bias else 0
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"the recording's labels go from {labels.min()} to {labels.max()} and its last bias "
            f"has {num_classes} values; labels must be 0 to classes - 1"
        )
    norm = config.get("norm")
    model = models.make(name, num_classes, norm=_NORMS.get(norm, norm))
    shapes, _ = models.shapes(model, trace["images"].shape[3:])
    params = _parameters(trace, "init", name, shapes)
    algorithm = algorithms.make(
        ("qg-dsgdm" if config["quasi_global"] else "dsgdm") + ("-n" if config["nesterov"] else ""),
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        gossip_rate=config["gossip_rate"],
    )
    graph = topology.from_neighbors(config.get("topology", "recorded"), trace["neighbors"])
    objective = training.Objective(
        num_classes=num_classes,
        lambda_m=config["lambda_m"],
        lambda_d=config["lambda_d"],
        distance=config.get("distance", "mse"),
        measure=True,
    )
    network = Network(graph)
    lr = jnp.asarray(config["lr"], jnp.float32)
    step = training.make_step(model, algorithm, network, objective, lambda t: lr[t])

    @jax.jit
    def start(params):
        model_state = models.init(model, jax.random.key(0), trace["images"].shape[3:])[1]
        params, model_state = training.stack((params, model_state), graph.agents)
        algorithm_state = algorithm.init(params, network.round(0))
        return TrainState(jnp.int32(0), params, model_state, algorithm_state, (), jax.random.key(0))

    return jax.jit(step), start(params)


def _parameters(
    trace: Mapping[str, np.ndarray], prefix: str, model: str, like: Any, leading: int = 0
) -> Any:
    """The recorded parameters `<prefix>.<name>` as a tree like `like`."""
    start = f"{prefix}."
    arrays = {k.removeprefix(start): v for k, v in trace.items() if k.startswith(start)}
    try:
        params = convert.from_torch(model, arrays, leading=leading)
    except ValueError as error:
        raise ValueError(f"the recording's {prefix} parameters do not fit: {error}") from None
    found, wanted = (
        {path: np.shape(x) for path, x in traverse_util.flatten_dict(tree, sep="/").items()}
        for tree in (params, like)
    )
    if found != wanted:
        path = min(path for path, _ in set(found.items()) ^ set(wanted.items()))
        raise ValueError(
            f"the recording's {prefix} parameters do not fit {model}: {path} is "
            f"{found.get(path, 'missing')}, expected {wanted.get(path, 'none')}"
        )
    return params


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


if __name__ == "__main__":
    sys.exit(main())
