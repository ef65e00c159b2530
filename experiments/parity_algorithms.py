"""Replays recorded runs of published optimizers on heterogeneous quadratics.

Agent i has the gradient A_i (x - c_i). A recording names its source repository and its method; the two
together say which published variant it is, and `VARIANTS` says what that is called here.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms, topology
from ccl_jax.algorithms.base import Algorithm
from ccl_jax.network import Network

TOLERANCE = 1e-4  # absolute, on the parameters

Config = Mapping[str, Any]


class Variant(NamedTuple):
    """How a recorded method is built here.

    Attributes:
      name: Name in the registry.
      hyper: Its hyper-parameters from the recording's configuration.
      mixed_last: Whether a recorded step ends with the mix ("adapt, then combine"). Here that mix
        opens the next step.
    """

    name: str
    hyper: Callable[[Config], dict[str, Any]]
    mixed_last: bool


def _sgd(c: Config) -> dict[str, Any]:
    return {"momentum": c["momentum"], "weight_decay": c["weight_decay"]}


def _gossiping(c: Config) -> dict[str, Any]:
    return _sgd(c) | {"gossip_rate": c.get("gossip_rate", 1.0)}


def _nesterov(c: Config) -> dict[str, Any]:
    return _sgd(c) | {"nesterov": c["nesterov"]}


def _dsgd(c: Config) -> str:
    return "dsgdm-n" if c["nesterov"] else "dsgdm"


def _quasi_global(c: Config) -> str:
    return "qg-dsgdm-n-ema" if c["nesterov"] else "qg-dsgdm-ema"


_NGC = "aparna-aketi/neighborhood_gradient_clustering"
_GUT = "aparna-aketi/global_update_tracking"
_EPFL_QG = "epfml/quasi-global-momentum"
_EPFL_RELAY = "epfml/relaysgd"
_FB = "facebookresearch/stochastic_gradient_push"
_CGA = "yasesf93/CrossGradientAggregation"
_TAKEZAWA = "yukiTakezawa/MomentumTracking"


def variant(c: Config) -> Variant:
    """Which method a recording is of.

    Raises:
      ValueError: It is a variant that we do not offer; the message says which and why.
    """
    source, method = c["source"], c["method"]
    build = _TABLE.get((source, method))
    if build is None and source == _NGC:
        build = next((b for start, b in _NGC_METHODS.items() if method.startswith(start)), None)
    if build is None:
        reason = _REFUSED.get(method, "it is unknown here")
        raise ValueError(f"the recorded variant {method!r} of {source} is not offered: {reason}")
    return build(c)


def _ngc(name: str) -> Callable[[Config], Variant]:
    def build(c: Config) -> Variant:
        hyper = lambda c: (
            _gossiping(c)
            | {
                "nesterov": c["nesterov"],
                "alpha": c["alpha"],
                "quasi_global_momentum": c.get("quasi_global_ema", False),
            }
        )
        return Variant(name, hyper, False)

    return build


def _cga(name: str, gradient_at: str) -> Callable[[Config], Variant]:
    def build(c: Config) -> Variant:
        hyper = lambda c: (
            _gossiping(c)
            | {
                "nesterov": c["nesterov"],
                "gradient_at": gradient_at,
                "margin": c.get("margin", 0.5),
            }
        )
        return Variant(name, hyper, False)

    return build


def _fixed(
    name: str | Callable[[Config], str],
    hyper: Callable[[Config], dict[str, Any]],
    mixed_last: bool,
    **extra: Any,
) -> Callable[[Config], Variant]:
    def build(c: Config) -> Variant:
        named = name if isinstance(name, str) else name(c)
        return Variant(named, lambda c: hyper(c) | extra, mixed_last)

    return build


def _ema(c: Config) -> dict[str, Any]:
    return _gossiping(c) | {"ema_factor": c.get("ema_factor", 1 - c["momentum"])}


def _decay(c: Config) -> dict[str, Any]:
    return {"weight_decay": c["weight_decay"]}


def _gut(c: Config) -> dict[str, Any]:
    if c["weight_decay"]:
        raise ValueError("the published GUT code has no weight decay, and neither has ours")
    names = ("momentum", "nesterov", "gossip_rate", "tracking_scale")
    return {name: c[name] for name in names}


# Without momentum Nesterov's form does not matter, so `gut` fixes neither.
def _gut_or_momentum(c: Config) -> Variant:
    if c["momentum"]:
        return Variant("qg-gutm", _gut, False)
    return Variant(
        "gut", lambda c: {k: _gut(c)[k] for k in ("gossip_rate", "tracking_scale")}, False
    )


_NGC_METHODS: dict[str, Callable[[Config], Variant]] = {
    "CompNGC": _ngc("comp-ngc"),
    "NGC": _ngc("ngc"),
    "CompCGA": _cga("comp-cga", "mixed"),
    "CGA": _cga("cga", "mixed"),
    "DSGDm": _fixed(_dsgd, _gossiping, False),
    "QG-DSGDm": _fixed(_quasi_global, _ema, False),
}

_TABLE: dict[tuple[str, str], Callable[[Config], Variant]] = {
    (_GUT, "GUT"): _gut_or_momentum,
    (_GUT, "QG-GUTm"): _gut_or_momentum,
    (_GUT, "QG-DSGDm-N, displacement form"): _gut_or_momentum,
    (_GUT, "QG-DSGDm, displacement form"): _gut_or_momentum,
    ("aparna-aketi/Momentum_Tracking", "momentum tracking, zero start"): _fixed(
        "momentum-tracking", _gossiping, False, start="zero"
    ),
    ("aparna-aketi/Relay_SGD", "RelaySGD, count normalisation"): _fixed(
        "relaysgd", _nesterov, True, fill="counts"
    ),
    (_EPFL_QG, "decentralized Adam, adapt then combine"): _fixed("adam", _decay, True),
    (_EPFL_QG, "D2"): _fixed("d2", _decay, True, form="published"),
    (_EPFL_QG, "D2, learning-rate-change safe"): _fixed("d2", _decay, True, form="lr-safe"),
    (_EPFL_QG, "DSGDm, adapt then combine"): _fixed(_dsgd, _sgd, True),
    (_EPFL_QG, "DSGT"): _fixed("dsgt", _nesterov, False),
    (_EPFL_QG, "QG-Adam (as dispatched)"): _fixed("qg-adam", _decay, True),
    (_EPFL_QG, "QG-DSGDm, EMA form"): _fixed(_quasi_global, _ema, True),
    (_EPFL_RELAY, "exact diffusion"): _fixed("exact-diffusion", _nesterov, True),
    # With a constant rate and no momentum, tracking gradients and tracking steps are the same.
    (_EPFL_RELAY, "gradient tracking, correction form, adapt then combine"): _fixed(
        "update-tracking", _nesterov, True
    ),
    (_EPFL_RELAY, "SGP on the one-peer exponential graph"): _fixed("sgp", _nesterov, True),
    (
        _EPFL_RELAY,
        "SGP on the one-peer exponential graph (no push-sum weight, graph regular)",
    ): _fixed("sgp", _nesterov, True),
    (_EPFL_RELAY, "D2, correction form"): _fixed("d2", _nesterov, True, form="correction"),
    (_EPFL_RELAY, "DSGDm-N, adapt then combine"): _fixed(_dsgd, _sgd, True),
    (
        _EPFL_RELAY,
        "DSGDm-N with overlapped communication (combine then adapt)",
    ): _fixed(_dsgd, _sgd, False, gradient_at="unmixed"),
    (_EPFL_RELAY, "gradient tracking on updates (correction form)"): _fixed(
        "update-tracking", _nesterov, True
    ),
    (_EPFL_RELAY, "QG-DSGDm-N, EMA form"): _fixed(_quasi_global, _ema, True),
    (
        _EPFL_RELAY,
        "RelaySGD (relaysum-model), missing models replaced by x_0, divide by N",
    ): _fixed("relaysgd", _nesterov, True, fill="start"),
    (_EPFL_RELAY, "RelaySGD, divide by the received count"): _fixed(
        "relaysgd", _nesterov, True, fill="counts"
    ),
    (_FB, "SGP"): _fixed("sgp", _nesterov, True),
    (_FB, "SGP, push-sum weights not one"): _fixed("sgp", _nesterov, True),
    (_CGA, "CDMSGD (combine then adapt)"): _fixed(_dsgd, _sgd, False, gradient_at="unmixed"),
    (_CGA, "CDSGD (combine then adapt)"): _fixed(_dsgd, _sgd, False, gradient_at="unmixed"),
    (_CGA, "CGA"): _cga("cga", "unmixed"),
    (_TAKEZAWA, "DecentLaM"): _fixed("decentlam", _sgd, True),
    (_TAKEZAWA, "DSGDm, adapt then combine"): _fixed(_dsgd, _sgd, True),
    (
        _TAKEZAWA,
        "momentum tracking with zero start (called gradient tracking in the source)",
    ): _fixed("momentum-tracking", _sgd, False, start="zero"),
    (_TAKEZAWA, "momentum tracking"): _fixed("momentum-tracking", _sgd, False, start="global"),
    (_TAKEZAWA, "QG-DSGDm, EMA form"): _fixed(_quasi_global, _ema, True),
}

_REFUSED = {
    "QG-DSGDm, EMA form, buffer updated every K steps": "our buffer is renewed in every step",
    "QG-DSGDm-N variant, step divided by (1+beta)": "it is a rescaling used by a simulator only",
    "RelaySGD/Grad (relays updates)": "we relay models, as the paper recommends",
    "RelaySGD with overlapped communication": "our messages arrive in the step they are sent in",
    "overlap SGP (messages received at the next step)": "our push-sum does not overlap",
}


def replay(trace: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Replays a run on quadratics.

    Args:
      trace: The arrays of the file.

    Returns:
      method, variant (name and hyper-parameters here), max_error (absolute, over all steps, agents
      and coordinates), passed.

    Raises:
      ValueError: An entry is missing, or the variant is not offered.
    """
    missing = [name for name in ("A", "c", "x0", "W", "lr", "x") if name not in trace]
    if missing:
        raise ValueError(f"the recording lacks {', '.join(missing)}; it cannot be replayed")
    config = json.loads(str(trace["config"]))
    method = variant(config)
    hyper = method.hyper(config)
    algorithm = algorithms.make(method.name, **hyper)
    x = _run(algorithm, trace, config, method.mixed_last)
    error = float(np.abs(x - trace["x"]).max())
    return {
        "method": config["method"],
        "variant": {"name": method.name, **hyper},
        "max_error": error,
        "passed": bool(error <= TOLERANCE),
    }


def _run(
    algorithm: Algorithm, trace: Mapping[str, np.ndarray], config: Config, mixed_last: bool
) -> np.ndarray:
    """`[T, agents, parameters]`: where each recorded step ends."""
    a, c, lr = (jnp.asarray(trace[name], jnp.float32) for name in ("A", "c", "lr"))
    network = Network(_graphs(trace, config["method"], mixed_last))
    agents, size = c.shape
    split = config.get("parameter_split", size)
    cut = lambda x: [x[..., :split], x[..., split:]] if split < size else [x]
    join = lambda parts: jnp.concatenate(parts, axis=-1)

    def gradient(x, data):
        return cut(data[0] @ (join(x) - data[1]))

    def communicate(params, state, t):
        talk = network.round(t)
        rate = lr[jnp.minimum(t, len(lr) - 1)]
        return talk, algorithm.communicate(params, state, talk, rate)

    @jax.jit
    def step(params, state, t):
        received = algorithm.models(params, state)
        talk, (eval_params, state) = communicate(params, state, t)
        grads = jax.vmap(gradient)(eval_params, (a, c))
        if algorithm.combine is not None:
            cross = talk.cross(gradient, received, (a, c))
            grads, state = algorithm.combine(grads, cross, state, talk)
        params, state = algorithm.update(grads, eval_params, state, talk, lr[t])
        # A step that ends with a mix ends where the next one takes its gradient.
        mixed = communicate(params, state, t + 1)[1][0]
        return params, state, join(mixed if mixed_last else params)

    params = cut(jnp.tile(jnp.asarray(trace["x0"], jnp.float32), (agents, 1)))
    state = algorithm.init(params, network.round(0))
    ends = []
    for t in range(len(lr)):
        params, state, end = step(params, state, jnp.int32(t))
        ends.append(end)
    return np.stack(ends)


def _graphs(trace: Mapping[str, np.ndarray], name: str, mixed_last: bool) -> topology.Topology:
    """The matrix of every round; nobody talks in the first where the recording starts alone."""
    steps, agents = len(trace["lr"]), trace["W"].shape[0]
    weights = np.asarray(trace["W_t"] if "W_t" in trace else [trace["W"]] * steps, np.float64)
    stochastic = "row" if np.allclose(weights.sum(axis=2), 1, atol=1e-5) else "column"
    axis = 2 if stochastic == "row" else 1
    weights /= weights.sum(axis=axis, keepdims=True)  # recorded in float32
    if mixed_last:
        weights = np.concatenate([np.eye(agents)[None], weights])
    else:
        weights = np.concatenate([weights, weights[-1:]])
    return topology.from_matrix(name, weights, stochastic=stochastic)
