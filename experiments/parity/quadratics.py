"""Replays recorded runs of published optimizers on heterogeneous problems.

Agent i has the gradient A_i (x - c_i), or that of logistic regression with one sample. A recording names
its source repository and its method; the two together say which published variant it is, and `_VARIANTS`
says what that is called here.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms
from ccl_jax.algorithms.base import Algorithm
from ccl_jax.graphs import topology
from ccl_jax.network import Network
from experiments.parity import compressed, decentbench, traces
from experiments.parity.traces import NUMBER, Replayer
from experiments.parity.variants import Config, Variant

TOLERANCE = 1e-4  # absolute, on the parameters

# The arrays of a recording, with their axes: its problem and the rest.
_QUADRATIC = {"A": ("agents", "size", "size"), "c": ("agents", "size")}
_LOGISTIC = {"inputs": ("agents", "size"), "labels": ("agents",)}
_ARRAYS = {
    "x0": ("size",),
    "W": ("agents", "agents"),
    "lr": ("steps",),
    "x": ("steps", "agents", "size"),
}


def _sgd(c: Config) -> dict[str, Any]:
    return {"momentum": c["momentum"], "weight_decay": c["weight_decay"]}


def _gossiping(c: Config) -> dict[str, Any]:
    return _sgd(c) | {"gossip_rate": c["gossip_rate"]}


def _muon(c: Config) -> dict[str, Any]:
    return _sgd(c) | {"newton_schulz_steps": c.get("newton_schulz_steps", 5)}


def _nesterov(c: Config) -> dict[str, Any]:
    return _sgd(c) | {"nesterov": c["nesterov"]}


def _decay(c: Config) -> dict[str, Any]:
    return {"weight_decay": c["weight_decay"]}


def _ema(c: Config) -> dict[str, Any]:
    return _gossiping(c) | {"ema_factor": c.get("ema_factor", 1 - c["momentum"])}


def _ngc(c: Config) -> dict[str, Any]:
    names = {"alpha": c.get("alpha", 1.0), "quasi_global_momentum": c["quasi_global_ema"]}
    return _gossiping(c) | {"nesterov": c["nesterov"]} | names


def _cga(c: Config) -> dict[str, Any]:
    return _gossiping(c) | {"nesterov": c["nesterov"], "margin": c.get("margin", 0.5)}


def _gut(c: Config) -> dict[str, Any]:
    if c["weight_decay"]:
        raise ValueError("the published GUT code has no weight decay, and neither has ours")
    names = ["gossip_rate", "tracking_scale"] + ["momentum", "nesterov"] * (c["momentum"] > 0)
    return {name: c[name] for name in names}


def _dsgd(c: Config) -> str:
    return "dsgdm-n" if c["nesterov"] else "dsgdm"


def _quasi_global(c: Config) -> str:
    return "qg-dsgdm-n-ema" if c["nesterov"] else "qg-dsgdm-ema"


def _gut_name(c: Config) -> str:
    return "qg-gutm" if c["momentum"] else "gut"


def _named(
    name: str | Callable[[Config], str],
    hyper: Callable[[Config], dict[str, Any]],
    mixed_last: bool,
    **extra: Any,
) -> Callable[[Config], Variant]:
    def build(c: Config) -> Variant:
        return Variant(name if isinstance(name, str) else name(c), hyper(c) | extra, mixed_last)

    return build


def _relay_dsgd(c: Config) -> Variant:
    if c["overlap"]:
        return Variant(_dsgd(c), _sgd(c) | {"gradient_at": "unmixed"}, False)
    return Variant(_dsgd(c), _sgd(c), True)


def _relay(c: Config) -> Variant:
    fill = "counts" if "count" in c["method"] else "start"
    return Variant("relaysgd", _nesterov(c) | {"fill": fill, "overlap": bool(c["overlap"])}, True)


_DEMUON_SOURCE = "MozarTuring/DeMuon"
_NGC_SOURCE = "aparna-aketi/neighborhood_gradient_clustering"

# By source, and by how the method's name begins: of several that fit the longest counts.
_VARIANTS: dict[str, dict[str, Callable[[Config], Variant]]] = {
    _NGC_SOURCE: {
        "CompNGC": _named("comp-ngc", _ngc, False),
        "NGC": _named("ngc", _ngc, False),
        "CompCGA": _named("comp-cga", _cga, False, gradient_at="mixed"),
        "CGA": _named("cga", _cga, False, gradient_at="mixed"),
        "DSGD": _named(_dsgd, _gossiping, False),
        "QG-DSGD": _named(_quasi_global, _ema, False),
    },
    "aparna-aketi/global_update_tracking": {
        "GUT": _named(_gut_name, _gut, False),
        "QG-GUT": _named(_gut_name, _gut, False),
        "QG-DSGD": _named(_gut_name, _gut, False),
    },
    "aparna-aketi/Momentum_Tracking": {
        "momentum tracking": _named("momentum-tracking", _gossiping, False, start="zero"),
    },
    _DEMUON_SOURCE: {
        "DeMuon, exact polar factor": _named("demuon", _sgd, True, step="polar"),
        "DeMuon": _named("demuon", _muon, True),
        "GT-NSGDm": _named("demuon", _sgd, True, step="normalized"),
        "GT-DSGD": _named("demuon", _sgd, True, step="plain"),
    },
    "aparna-aketi/Relay_SGD": {"RelaySGD": _relay},
    "epfml/quasi-global-momentum": {
        "decentralized Adam": _named("adam", _decay, True),
        "D2": _named("d2", _decay, True, form="published"),
        "D2, learning-rate-change safe": _named("d2", _decay, True, form="lr-safe"),
        "DSGD": _named(_dsgd, _sgd, True),
        "DSGT": _named("dsgt", _nesterov, False),
        "QG-Adam": _named("qg-adam", _decay, True),
        "QG-DSGD": _named(_quasi_global, _ema, True),
    },
    "epfml/relaysgd": {
        "D2": _named("d2", _nesterov, True, form="correction"),
        "DSGD": _relay_dsgd,
        "QG-DSGD": _named(_quasi_global, _ema, True),
        "RelaySGD": _relay,
        "SGP": _named("sgp", _nesterov, True),
        "exact diffusion": _named("exact-diffusion", _nesterov, True),
        # At a constant rate and without momentum, tracking gradients and tracking steps are the same.
        "gradient tracking": _named("update-tracking", _nesterov, True),
    },
    "facebookresearch/stochastic_gradient_push": {"SGP": _named("sgp", _nesterov, True)},
    "yasesf93/CrossGradientAggregation": {
        "CDMSGD": _named(_dsgd, _sgd, False, gradient_at="unmixed"),
        "CDSGD": _named(_dsgd, _sgd, False, gradient_at="unmixed"),
        "CGA": _named("cga", _cga, False, gradient_at="unmixed"),
    },
    "yukiTakezawa/MomentumTracking": {
        "DSGD": _named(_dsgd, _sgd, True),
        "DecentLaM": _named("decentlam", _sgd, True),
        "QG-DSGD": _named(_quasi_global, _ema, True),
        "momentum tracking": _named("momentum-tracking", _sgd, False, start="global"),
        "momentum tracking with zero start": _named("momentum-tracking", _sgd, False, start="zero"),
    },
}
_VARIANTS |= compressed.VARIANTS

_VARIANTS |= decentbench.VARIANTS

# What recordings leave out where it does not apply.
_DEFAULTS = {
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "gossip_rate": 1.0,
    "tracking_scale": 0.0,
    "quasi_global_ema": False,
    "overlap": False,
    "ema_interval": 1,
}


def variant(config: Config) -> Variant:
    """Which method a recording is of.

    Raises:
      ValueError: It is a variant that we do not offer; the message says which and why.
    """
    c = _DEFAULTS | config
    source, method = c.get("source"), str(c.get("method"))
    known = _VARIANTS.get(source, {})
    fitting = [start for start in known if method.startswith(start)]
    reason = _refusal(c) or (None if fitting else "it is unknown here")
    if reason:
        raise ValueError(f"the recorded variant {method!r} of {source} is not offered: {reason}")
    return known[max(fitting, key=len)](c)


def _refusal(c: Config) -> str | None:
    method = str(c.get("method"))
    if c["ema_interval"] > 1:
        return "our quasi-global momentum is renewed in every step"
    if c.get("source") == _DEMUON_SOURCE and "float32 with bfloat16" in str(c.get("dtype")):
        return "we orthogonalise in the precision of the models, not in bfloat16"
    if "divided by (1+beta)" in method:
        return "that rescaled step is a simulator's only"
    if method.startswith("RelaySGD/Grad"):
        return "we relay models, as the paper recommends"
    if c["overlap"] and not method.startswith(("DSGD", "RelaySGD")):
        return "our messages arrive in the step they are sent in"
    return compressed.refusal(c)


def replay(trace: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Replays a run on quadratics or logistic regression, in the precision of the recording.

    Args:
      trace: The arrays of the file.

    Returns:
      method, variant (name and hyper-parameters here), max_error (absolute, over all steps, agents
      and coordinates), passed.

    Raises:
      ValueError: An entry is missing, or the variant is not offered.
    """
    traces.check_arrays(trace, (_LOGISTIC if "inputs" in trace else _QUADRATIC) | _ARRAYS)
    config = traces.read_config(trace, {"source": str, "method": str})
    kinds = {name: NUMBER for name in _DEFAULTS} | decentbench.KINDS | compressed.KINDS
    traces.read_config(trace, {name: kind for name, kind in kinds.items() if name in config})
    try:
        method = variant(config)
    except KeyError as error:
        raise ValueError(
            f"the recording's config lacks {error}, which its method needs; it cannot be replayed"
        ) from None
    traces.check_arrays(trace, _ARRAYS | {name: ("steps",) for name in method.per_step})
    with jax.enable_x64(trace["x"].dtype == np.float64):
        x = _run(algorithms.make(method.name, **method.hyper), trace, config, method)
    error = float(np.abs(x - trace["x"]).max())
    hyper = {key: str(value) if callable(value) else value for key, value in method.hyper.items()}
    if method.compression is not None:
        name, start, _ = method.compression
        hyper |= {"compression": name, "compression_start": start}
    return {
        "method": config["method"],
        "variant": {"name": method.name, **hyper},
        "max_error": error,
        "passed": bool(error <= TOLERANCE),
    }


def _problem(trace: Mapping[str, np.ndarray], config: Config) -> tuple[Callable, tuple]:
    """`gradient(x, data)` of one agent, and the data of all."""
    if "inputs" in trace:
        regularizer = config.get("regularizer", 0.0)

        def gradient(x, data):
            signed = data[0] * data[1]  # inputs times labels of -1 and 1
            return regularizer * x - jax.nn.sigmoid(-signed @ x) * signed

        labels = trace["labels"][:, None]
        return gradient, (jnp.asarray(trace["inputs"], float), jnp.asarray(labels, float))
    gradient = lambda x, data: data[0] @ (x - data[1])
    return gradient, (jnp.asarray(trace["A"], float), jnp.asarray(trace["c"], float))


def _run(
    algorithm: Algorithm, trace: Mapping[str, np.ndarray], config: Config, method: Variant
) -> np.ndarray:
    """`[T, agents, parameters]`: where each recorded step ends."""
    graph = _graphs(trace, config, method)
    whole_gradient, data = _problem(trace, config)
    lr = jnp.asarray(np.repeat(trace["lr"], method.local_steps), float)
    agents, size = trace["x"].shape[1:]
    cut, join = _tensors(config, size)
    gradient = lambda x, data: cut(whole_gradient(join(x), data))

    def network(t):
        if method.compression is None:
            return Network(graph, local_steps=method.local_steps)
        _, start, at = method.compression
        return Network(graph, compressor=at(trace, t), compression_start=start)

    def advance(params, state, talk, rate):
        return algorithms.advance(
            algorithm,
            params,
            state,
            talk,
            rate,
            lambda x, _: (jax.vmap(gradient)(x, data), None),
            lambda models: talk.cross(gradient, models, data),
        )

    @jax.jit
    def step(params, state, memory, t):
        talk = network(t).round(t, memory)
        new = advance(params, state, talk, lr[t])
        memory = talk.memory()
        if not method.mixed_last:
            return new.params, new.state, memory, join(new.params)
        # A step that ends with a mix ends where the next one takes its gradient.
        rate = lr[jnp.minimum(t + 1, len(lr) - 1)]
        talk = network(t + 1).round(t + 1, memory)
        mixed = algorithm.communicate(new.params, new.state, talk, rate)[0]
        return new.params, new.state, memory, join(mixed)

    params = cut(jnp.tile(jnp.asarray(trace["x0"], float), (agents, 1)))
    first = network(jnp.int32(0))
    state = jax.jit(lambda params: algorithm.init(params, first.round(0)))(params)
    memory = first.start(lambda talk: advance(params, state, talk, lr[0]))
    ends = []
    for t in range(len(lr)):
        params, state, memory, end = step(params, state, memory, jnp.int32(t))
        ends.append(end)
    return np.stack(ends[method.local_steps - 1 :: method.local_steps])


def _tensors(config: Config, size: int) -> tuple[Callable, Callable]:
    """How `[..., size]` parameters are cut into a model's tensors, and joined again."""
    split = config.get("parameter_split", size)
    shapes = config.get("parameter_shapes", [[split], [size - split]] if split < size else [[size]])
    try:
        lengths = [math.prod(shape) for shape in shapes]
    except TypeError:
        lengths = []
    if sum(lengths) != size:
        raise ValueError(f"parameter_shapes is {shapes!r}; it must be shapes of {size} numbers")
    cuts = np.cumsum(lengths)[:-1].tolist()

    def cut(x):
        parts = jnp.split(x, cuts, axis=-1)
        return [p.reshape(*x.shape[:-1], *s) for p, s in zip(parts, shapes, strict=True)]

    def join(parts):
        flat = [
            p.reshape(*p.shape[: p.ndim - len(s)], -1) for p, s in zip(parts, shapes, strict=True)
        ]
        return jnp.concatenate(flat, axis=-1)

    return cut, join


def _graphs(trace: Mapping[str, np.ndarray], config: Config, method: Variant) -> topology.Topology:
    """The matrix of every round; nobody talks in the first where the recording starts alone."""
    steps, agents = len(trace["lr"]), trace["W"].shape[0]
    weights = np.asarray(trace["W_t"] if "W_t" in trace else [trace["W"]] * steps, np.float64)
    stochastic = "row" if np.allclose(weights.sum(axis=2), 1, atol=1e-5) else "column"
    axis = 2 if stochastic == "row" else 1
    weights /= weights.sum(axis=axis, keepdims=True)  # recorded in float32
    if "communicate" in trace:
        weights[trace["communicate"] == 0] = np.eye(agents)
    name = config["method"]
    if config["source"] == _NGC_SOURCE:
        return topology.from_neighbors(name, _repeated_neighbors(weights[0]), weights=weights[0])
    if config["source"] == _DEMUON_SOURCE:
        # Trackers are mixed in the first round, too; that of models which are equal changes nothing.
        weights = np.concatenate([weights[:1], weights])
    elif method.compression is not None and "W_t" not in trace:
        weights = weights[0]  # nobody has anything to say in the first step
    elif method.mixed_last:
        weights = np.concatenate([np.eye(agents)[None], weights])
    else:
        weights = np.concatenate([weights, weights[-1:]])
    return topology.from_matrix(name, weights, stochastic=stochastic)


def _repeated_neighbors(weights: np.ndarray) -> np.ndarray:
    """The neighbour table of uniform weights: a neighbour of weight 2 w_ii was counted twice."""
    counts = np.round(weights / np.diagonal(weights)[:, None]).astype(int)
    np.fill_diagonal(counts, 0)
    table = np.full((len(counts), counts.sum(axis=1).max()), -1)
    for i, row in enumerate(counts):
        table[i, : row.sum()] = np.repeat(np.arange(len(row)), row)
    return table


REPLAYER = Replayer(lambda trace: "A" in trace or {"inputs", "x0"} <= trace.keys(), replay)
