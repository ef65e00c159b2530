"""Replays recorded losses, through the functions that training uses; in float64.

A recording has a list `cases` in its config and arrays `case<k>.<name>`, or, for FedProto, arrays
`client<i>.<name>`. A replay yields what is compared: its kind, ours, and what was recorded.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import losses
from ccl_jax.losses import Own, decorrelation, moon, needs, prototype
from experiments.parity import traces
from experiments.parity.traces import NUMBER, Replayer, Trace

# Absolute, by kind of what is compared.
TOLERANCES = {"loss": 1e-5, "gradient": 1e-5, "prototype": 1e-5, "param": 1e-4}

Comparison = tuple[str, Any, Any]


def replayer(method: str, replay: Callable[[Trace], Iterator[Comparison]]) -> Replayer:
    """Recordings whose method is called so, or so with something behind it.

    Args:
      method: How the method's name in the config begins.
      replay: `replay(trace)` yields kinds of `TOLERANCES`, our values and recorded ones, as arrays or
        trees of them; JAX computes in float64 meanwhile.
    """

    def report(trace: Trace) -> dict[str, Any]:
        errors: dict[str, float] = {}
        with jax.enable_x64(True):
            for kind, ours, recorded in replay(trace):
                each = jax.tree.leaves(jax.tree.map(_error, ours, recorded))
                errors[kind] = float(np.max([errors.get(kind, 0.0), *each]))  # NaN stays
        passed = all(error <= TOLERANCES[kind] for kind, error in errors.items())
        found = {f"max_{kind}_error": error for kind, error in errors.items()}
        return {"method": traces.method(trace), **found, "passed": passed}

    return Replayer(lambda trace: traces.method(trace).startswith(method), report)


def _error(ours: Any, recorded: Any) -> float:
    return float(np.abs(np.asarray(ours, float) - np.asarray(recorded, float)).max(initial=0.0))


def as_float(x: Any) -> jax.Array:
    """Recorded numbers in the precision of the replay."""
    return jnp.asarray(x, float)


def cases(
    trace: Trace,
    kinds: Mapping[str, Any],
    axes: Mapping[str, tuple[str, ...]],
    integers: tuple[str, ...] = (),
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The settings and arrays of every case.

    Args:
      trace: The arrays of a recording.
      kinds: What the settings of a case must have, and the types.
      axes: The arrays of a case and their axes; a name is of one length within a case.
      integers: Which of them hold integers.

    Raises:
      ValueError: Something is missing or does not fit.
    """
    listed = traces.read_config(trace, {"cases": list})["cases"]
    if not listed:
        raise ValueError("the recording's config has an empty list of cases")
    for k, case in enumerate(listed):
        if not isinstance(case, dict) or not all(
            isinstance(case.get(n), t) for n, t in kinds.items()
        ):
            raise ValueError(
                f"case {k} of the recording's config is {case}; it needs {', '.join(kinds)}, each of "
                "its type"
            )
        of_case = lambda name, k=k: f"case{k}.{name}"
        traces.check_arrays(
            trace,
            {of_case(name): named for name, named in axes.items()},
            tuple(map(of_case, integers)),
        )
        yield case, {name: trace[of_case(name)] for name in axes}


def check_labels(name: str, labels: np.ndarray, classes: int) -> None:
    """Makes sure that labels are classes.

    Raises:
      ValueError: One is not.
    """
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"the recording's {name} go from {labels.min()} to {labels.max()}; they must be 0 to "
            f"{classes - 1}"
        )


def _check_constants(trace: Trace, constants: Mapping[str, Any]) -> None:
    """Refuses a variant with other constants than the published ones, which are not settings here."""
    config = traces.read_config(trace, {})
    for name, ours in constants.items():
        if config.get(name, ours) != ours:
            raise ValueError(
                f"the recorded variant {traces.method(trace)!r} with {name} = {config[name]!r} is not "
                f"offered: ours is {ours!r}"
            )


def replay_moon(trace: Trace) -> Iterator[Comparison]:
    """mu times the model-contrastive loss, the loss itself, and the gradient of the first."""
    _check_constants(trace, {"cosine_eps": 1e-8, "reduction": "mean over batch"})
    axes: dict[str, tuple[str, ...]] = {
        "z": ("batch", "features"),
        "z_global": ("batch", "features"),
        "z_previous": ("previous", "batch", "features"),
        "loss_con": (),
        "loss": (),
        "grad_z": ("batch", "features"),
    }
    for case, arrays in cases(trace, {"temperature": NUMBER, "mu": NUMBER}, axes):
        others = [as_float(arrays[name]) for name in ("z_global", "z_previous")]
        everyone = jnp.ones(len(arrays["z"]), bool)

        def loss(z, case=case, others=others, everyone=everyone):
            contrast = moon.moon_loss(z, *others, everyone, case["temperature"])
            return case["mu"] * contrast, contrast

        (value, contrast), gradient = _value_and_grad(loss)(as_float(arrays["z"]))
        yield "loss", (value, contrast), (arrays["loss"], arrays["loss_con"])
        yield "gradient", gradient, arrays["grad_z"]


def replay_decorrelation(trace: Trace) -> Iterator[Comparison]:
    """The FedDecorr loss and its gradient."""
    _check_constants(trace, {"eps": 1e-8})
    axes = {"x": ("batch", "features"), "loss": (), "grad_x": ("batch", "features")}

    def loss(x):
        own = Own(x, x, jnp.zeros(len(x), jnp.int32), jnp.ones(len(x), bool))
        return decorrelation.decorrelation_loss(own, {}, losses.DISTANCES["mse"]), ()

    for _, arrays in cases(trace, {}, axes):
        (value, _), gradient = _value_and_grad(loss)(as_float(arrays["x"]))
        yield "loss", value, arrays["loss"]
        yield "gradient", gradient, arrays["grad_x"]


def replay_prototypes(trace: Trace) -> Iterator[Comparison]:
    """Two rounds of FedProto. On a graph that is a full one, on which agents hear themselves, too."""
    kinds = {"classes": int, "clients": int, "batch_size": int, "ld": NUMBER}
    config = traces.read_config(trace, kinds)
    _check_prototypes(trace, config)
    classes, size, ld = (config[name] for name in ("classes", "batch_size", "ld"))
    clients = range(config["clients"])

    def own(i: int, after: str) -> Own:
        features, labels = (trace[f"client{i}.{name}{after}"] for name in ("features", "labels"))
        everyone = jnp.ones(len(labels), bool)
        return Own(as_float(features), as_float(features), jnp.asarray(labels, jnp.int32), everyone)

    first = [own(i, "") for i in clients]
    sums = [needs.class_sums(each.features, each.labels, each.mask, classes) for each in first]
    sums, counts = (jnp.stack(x) for x in zip(*sums, strict=True))
    heard = needs.NeighborPrototypes(needs.class_means(sums, counts), counts > 0)
    yield "prototype", (heard.means, counts), (trace["local_prototypes"], trace["local_counts"])
    recorded = (trace["global_prototypes"], trace["global_has"])
    yield "prototype", prototype.mean_prototypes(heard), recorded

    def loss(features, batch):
        now = batch._replace(features=features)
        known = {"neighbor_prototypes": heard}
        value = prototype.prototype_loss(now, known, losses.DISTANCES["mse"])
        return ld * value, value

    for i in clients:
        second = own(i, "_next")
        for k, recorded in enumerate(trace[f"client{i}.loss2"]):
            part = slice(k * size, (k + 1) * size)
            batch = jax.tree.map(lambda x, part=part: x[part], second)
            (_, value), gradient = _value_and_grad(loss)(batch.features, batch)
            yield "loss", value, recorded
            yield "gradient", gradient, trace[f"client{i}.grad_features"][part]


def _check_prototypes(trace: Trace, config: Mapping[str, Any]) -> None:
    table = ("clients", "classes", "features")
    axes: dict[str, tuple[str, ...]] = {
        "local_prototypes": table,
        "local_counts": table[:2],
        "global_prototypes": table[1:],
    }
    clients, classes = config["clients"], config["classes"]
    for i in range(clients):
        for after in ("", "_next"):
            axes[f"client{i}.features{after}"] = (f"samples{after} {i}", "features")
            axes[f"client{i}.labels{after}"] = (f"samples{after} {i}",)
        axes[f"client{i}.loss2"] = (f"batches {i}",)
        axes[f"client{i}.grad_features"] = (f"samples_next {i}", "features")
    labels = [name for name in axes if "labels" in name]
    lengths = traces.check_arrays(trace, axes, ("local_counts", *labels))
    if (lengths["clients"], lengths["classes"]) != (clients, classes) or "global_has" not in trace:
        raise ValueError(
            f"the recording's config has {clients} clients and {classes} classes; its local_prototypes "
            "must be of as many, with global_has beside global_prototypes"
        )
    for name in labels:
        check_labels(name, trace[name], classes)
    for i in range(clients):
        batches = -(-lengths[f"samples_next {i}"] // max(1, config["batch_size"]))
        if lengths[f"batches {i}"] != batches:
            raise ValueError(
                f"the recording's client{i}.loss2 has {lengths[f'batches {i}']} values; its samples "
                f"in batches of {config['batch_size']} are {batches}"
            )


def _value_and_grad(loss: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(loss, has_aux=True)


REPLAYERS = (
    replayer("MOON", replay_moon),
    replayer("FedDecorr", replay_decorrelation),
    replayer("FedProto", replay_prototypes),
)
