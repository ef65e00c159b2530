"""Replays SAM steps and rounds of DFedSAM through the whole training step; in float64.

Recordings are of softmax regression with squashed logits, 3 tanh(W x + b): not a quadratic, and two
tensors, of which an ascent has one norm.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ccl_jax import algorithms, graphs, training
from ccl_jax.graphs import topology
from ccl_jax.losses import Batch
from ccl_jax.network import Network
from ccl_jax.training import Objective, sam
from experiments.parity import traces
from experiments.parity.functions import Comparison, as_float, cases, check_labels, replayer
from experiments.parity.traces import NUMBER, Trace

_MODEL = "logits = 3 tanh(inputs weight^T + bias), mean cross-entropy"
_OPTIMIZER = {
    "rho": NUMBER,
    "adaptive": (bool, int),
    "momentum": NUMBER,
    "nesterov": (bool, int),
    "weight_decay": NUMBER,
}


class Squashed(nn.Module):
    """The model of the recordings; images are `[batch, 1, 1, inputs]`."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        features = images.reshape(images.shape[0], -1)
        return features, 3 * nn.tanh(nn.Dense(self.num_classes, param_dtype=float)(features))


def replay_steps(trace: Trace) -> Iterator[Comparison]:
    """Losses and gradients at both points of every step, and where the steps lead."""
    _check_model(trace)
    kinds = _OPTIMIZER | {"learning_rate": NUMBER}
    tensors = {"weight": ("classes", "inputs"), "bias": ("classes",)}
    axes: dict[str, tuple[str, ...]] = {"inputs": ("batch", "inputs"), "labels": ("batch",)}
    axes |= {f"{name}0": shape for name, shape in tensors.items()}
    for kind in ("grad_", "perturbed_", "sam_grad_", ""):
        axes |= {f"{kind}{name}": ("steps", *shape) for name, shape in tensors.items()}
    axes |= {"loss": ("steps",), "perturbed_loss": ("steps",)}
    for case, arrays in cases(trace, kinds, axes, ("labels",)):
        steps = len(arrays["loss"])
        batch = _batch(arrays["inputs"][None], arrays["labels"][None], arrays["bias0"])
        lr = jnp.full(steps, as_float(case["learning_rate"]))
        start = _params(arrays["weight0"], arrays["bias0"])
        ends = _train(case, start, graphs.make("ring", 1), 1, lr, [batch] * steps)
        objective = _objective(case, start)
        loss_fn = training.make_loss_fn(Squashed(objective.num_classes), objective)
        plain = jax.grad(loss_fn, has_aux=True)
        used = sam.sharpness_aware(plain, objective.sam_rho, objective.sam_adaptive)
        data = ({}, jax.tree.map(lambda x: x[0], batch), {})
        w = start
        for t, end in enumerate(ends):
            recorded = lambda kind, t=t, arrays=arrays: _params(
                arrays[f"{kind}weight"][t], arrays[f"{kind}bias"][t]
            )
            grads, below = plain(w, *data)
            higher = sam.ascend(w, grads, objective.sam_rho, objective.sam_adaptive)
            _, above = plain(higher, *data)
            yield "loss", below.cross_entropy, arrays["loss"][t]
            yield "loss", above.cross_entropy, arrays["perturbed_loss"][t]
            yield "gradient", (grads, used(w, *data)[0]), (recorded("grad_"), recorded("sam_grad_"))
            w = jax.tree.map(lambda x: x[0], end)
            yield "param", (higher, w), (recorded("perturbed_"), recorded(""))


def replay_rounds(trace: Trace) -> Iterator[Comparison]:
    """Rounds of a mix and local SAM steps, whose momentum begins anew in each."""
    _check_model(trace)
    config = traces.read_config(trace, _OPTIMIZER | {"local_steps": int, "batch_size": int})
    axes = {
        "W": ("agents", "agents"),
        "lr": ("rounds",),
        "inputs": ("agents", "samples", "inputs"),
        "labels": ("agents", "samples"),
        "weight0": ("classes", "inputs"),
        "bias0": ("classes",),
        "weight": ("rounds", "agents", "classes", "inputs"),
        "bias": ("rounds", "agents", "classes"),
    }
    lengths = traces.check_arrays(trace, axes, ("labels",))
    k, size = config["local_steps"], config["batch_size"]
    if min(k, size) < 1 or k * size > lengths["samples"]:
        raise ValueError(
            f"the recording's config asks for {k} batches of {size} a round, and its agents have "
            f"{lengths['samples']} samples"
        )
    parts = [slice(s * size, (s + 1) * size) for s in range(k)]
    batches = [_batch(trace["inputs"][:, p], trace["labels"][:, p], trace["bias0"]) for p in parts]
    ends = _train(
        config,
        _params(trace["weight0"], trace["bias0"]),
        topology.from_matrix("recorded", np.asarray(trace["W"], float)),
        k,
        jnp.repeat(as_float(trace["lr"]), k),
        batches * lengths["rounds"],
        restart_momentum=True,
    )
    for end, weight, bias in zip(ends[k - 1 :: k], trace["weight"], trace["bias"], strict=True):
        yield "param", end, _params(weight, bias)


def _check_model(trace: Trace) -> None:
    model = traces.read_config(trace, {"model": str})["model"]
    if not model.startswith(_MODEL):
        raise ValueError(f"the recording's model is {model!r}; only {_MODEL!r} is replayed")


def _params(weight: np.ndarray, bias: np.ndarray) -> dict[str, Any]:
    """As the model has them; PyTorch's matrices are transposed."""
    return {"Dense_0": {"kernel": as_float(np.swapaxes(weight, -1, -2)), "bias": as_float(bias)}}


def _batch(inputs: np.ndarray, labels: np.ndarray, bias: np.ndarray) -> Batch:
    """Of all agents."""
    check_labels("labels", labels, len(bias))
    images = as_float(inputs)[:, :, None, None]
    return Batch(images, jnp.asarray(labels, jnp.int32), jnp.ones(labels.shape, bool))


def _objective(config: Mapping[str, Any], start: Mapping[str, Any]) -> Objective:
    classes = len(start["Dense_0"]["bias"])
    return Objective(classes, sam_rho=config["rho"], sam_adaptive=bool(config["adaptive"]))


def _train(
    config: Mapping[str, Any],
    start: Mapping[str, Any],
    graph: topology.Topology,
    local_steps: int,
    lr: jax.Array,
    batches: Sequence[Batch],
    restart_momentum: bool = False,
) -> list[Any]:
    """The parameters of all agents after each step of training."""
    algorithm = algorithms.make(
        "dsgdm-n" if config["nesterov"] else "dsgdm",
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        restart_momentum=restart_momentum,
    )
    objective, network = _objective(config, start), Network(graph, local_steps=local_steps)
    model, image_shape = Squashed(objective.num_classes), batches[0].images.shape[2:]
    step = jax.jit(training.make_step(model, algorithm, network, objective, lambda t: lr[t]))
    state = training.init_state(
        model, algorithm, network, objective, image_shape, jax.random.key(0), params=start
    )
    ends = []
    for batch in batches:
        state, _ = step(state, batch)
        ends.append(state.params)
    return ends


REPLAYERS = (replayer("SAM step", replay_steps), replayer("DFedSAM", replay_rounds))
