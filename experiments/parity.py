"""Replays a recorded run of the authors' own code and reports how far ours is from it.

    python -m experiments.parity --trace=tests/data/ring5_lenet5_qg_ccl.npz

prints one JSON line and exits 0 when losses agree to 2e-5 (absolute) and norms to 1e-5 (relative),
1 when they do not, 2 when the file cannot be replayed. A trace is an .npz with `config` (JSON: arch,
gossip_rate, lr, momentum, nesterov, weight_decay, quasi_global, lambda_m, lambda_d), `images`,
`labels`, `neighbors`, the PyTorch parameters `init.<name>`, and the numbers to compare with. Recorded
runs of optimizers on quadratics (with entries `A` and `c`) are replayed by
`experiments.parity_algorithms`: method, variant, max_error; exit 0 within 1e-4.
"""

import json
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ccl_jax import algorithms, models, topology, training
from ccl_jax.cross_features import Batch
from ccl_jax.evaluation import consensus_distance
from ccl_jax.models import convert
from ccl_jax.network import Network
from experiments import cli, parity_algorithms

LOSS_TOLERANCE = 2e-5  # absolute, over the three losses
NORM_TOLERANCE = 1e-5  # relative

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
        print(json.dumps(result))
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
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
      ValueError: An entry is missing.
    """
    required = ("images", "labels", "neighbors", "losses", "param_norm", "consensus_distance")
    missing = [name for name in required if name not in trace]
    if missing:
        raise ValueError(f"the recording lacks {', '.join(missing)}; it cannot be replayed")
    config = json.loads(str(trace["config"]))
    agents = trace["neighbors"].shape[0]
    step, state = _build(config, trace, agents)

    losses, norms, distances = [], [], []
    for images, labels in zip(trace["images"], trace["labels"], strict=True):
        batch = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(labels.shape, bool))
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
    final = {k.removeprefix("final."): v for k, v in trace.items() if k.startswith("final.")}
    if final:
        wanted = convert.from_torch(_model_name(config), final, leading=1)
        errors = jax.tree.map(lambda x, y: np.abs(x - y).max(), state.params, wanted)
        result["max_param_error"] = float(max(jax.tree.leaves(errors)))
    result["passed"] = bool(
        result["max_loss_error"] <= LOSS_TOLERANCE
        and result["max_param_norm_error"] <= NORM_TOLERANCE
        and result["max_consensus_error"] <= NORM_TOLERANCE
    )
    return result


def _build(config: Mapping[str, Any], trace: Mapping[str, np.ndarray], agents: int) -> tuple:
    """The jitted step and the first state."""
    name = _model_name(config)
    init = {k.removeprefix("init."): v for k, v in trace.items() if k.startswith("init.")}
    params = convert.from_torch(name, init)
    num_classes = params["head"]["bias"].shape[0]
    norm = config.get("norm")
    model = models.make(name, num_classes, norm=_NORMS.get(norm, norm))
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
    state = training.init_state(
        model, algorithm, network, trace["images"].shape[3:], jax.random.key(0)
    )
    stacked = jax.jit(training.stack, static_argnums=1)(params, agents)
    state = state._replace(
        params=stacked, algorithm=jax.jit(lambda x: algorithm.init(x, network.round(0)))(stacked)
    )
    return jax.jit(step), state


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
