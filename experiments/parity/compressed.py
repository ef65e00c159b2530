"""Recorded methods with compressed messages, and the averaging-rate scheduler.

What is random in a recorded compression is recorded: uniforms that say when QSGD rounds up, and masks of
random-k. A recorded step sends at its end what opens the next step here, so these lie one step back.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import ranges
from ccl_jax.network import compression
from ccl_jax.network.compression import Compressor
from ccl_jax.training.schedules import AveragingRate
from experiments.parity.traces import NUMBER, Trace
from experiments.parity.variants import Compression, Config, Variant

# Entries of configurations that are read here.
KINDS = {
    "adaptive_beta": NUMBER,
    "adaptive_eps": NUMBER,
    "adaptive_gossip": (bool, int),
    "compression_ratio": NUMBER,
    "compressor": str,
    "epoch_length": int,
    "growth_rate": NUMBER,
    "kept_entries": int,
    "levels": int,
    "momentum_lambda": NUMBER,
    "quantization_biased": (bool, int),
    "quantization_level": int,
    "quasi_global_momentum": (bool, int),
    "regularizer": NUMBER,
}

# From this level on the authors' code sends numbers as they are.
_EXACT_LEVEL = 32

# By the first words of a method's name.
_NOT_OFFERED = {
    "DCD-PSGD": "it compresses the steps of the models; we compress what neighbours know of models",
    "ECD-PSGD": "it sends models extrapolated and compressed; we send compressed differences",
    "DeepSqueeze": "it sends whole models compressed; we send compressed differences",
}


def refusal(c: Config) -> str | None:
    """Why a recording cannot be replayed, if so."""
    for start, reason in _NOT_OFFERED.items():
        if str(c.get("method")).startswith(start):
            return reason
    if str(c.get("compressor")).startswith('"top"'):
        return (
            "its compressor keeps the smallest entries, and top-k keeps those of largest magnitude"
        )
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """A compressor with recorded draws; in the place of a `Compressor`.

    Attributes:
      compress: `compress(x [size], draws [size]) -> [size]`.
      draws: `[agents, size of all tensors]`.
    """

    compress: Callable[[jax.Array, jax.Array], jax.Array]
    draws: jax.Array

    def __call__(self, tree: Any, lead: int) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        ends = np.cumsum([x.shape[1] for x in leaves])[:-1]
        parts = jnp.split(self.draws.astype(leaves[0].dtype), ends, axis=1)
        return structure.unflatten(map(jax.vmap(self.compress), leaves, parts))

    def message_bytes(self, tree: Any, lead: int) -> int:
        return 0  # a replay counts no bytes


def _compression(c: Config, start: str) -> Compression | None:
    """The recorded compression.

    Raises:
      ValueError: It is unknown here, or a number of it is out of range.
    """

    def count(name: str) -> int:
        ranges.check(f"the recording's {name}", c[name], ranges.at_least(1))
        return c[name]

    name = c["compressor"]
    if name in ("none", "full"):
        return None
    if name == "top" or name.startswith("topk,"):
        entries = count("kept_entries")
        return _top_k(name, start, lambda size: min(entries, size))
    if name.startswith("top-k per tensor"):
        ratio = c["compression_ratio"]
        ranges.check("the recording's compression_ratio", ratio, ranges.BELOW_1)
        return _top_k(name, start, lambda size: max(1, int(size * (1 - ratio))))
    if name.startswith("QSGD per tensor"):
        if count("quantization_level") >= _EXACT_LEVEL:
            return None
        levels, biased = 2 ** c["quantization_level"] - 1, bool(c["quantization_biased"])
        return _recorded(name, start, "uniforms", lambda x, u: _qsgd(x, u, levels, biased))
    if name in ("qsgd-biased", "qsgd-unbiased"):
        levels, biased = count("levels"), name == "qsgd-biased"
        return _recorded(name, start, "uniforms", lambda x, u: _qsgd(x, u, levels, biased))
    if name in ("random-biased", "random-unbiased"):
        biased, entries = name == "random-biased", count("kept_entries")
        scale = lambda x: 1 if biased else x.size / entries
        return _recorded(name, start, "masks", lambda x, mask: x * mask * scale(x))
    raise ValueError(f"the recorded compressor {name!r} is unknown here; it cannot be replayed")


def _top_k(name: str, start: str, kept: Callable[[int], int]) -> Compression:
    compress = lambda x: compression.largest(x, kept(x.size))
    top = Compressor(name, compress, lambda size: 8 * kept(size))
    return Compression(name, start, lambda trace, step: top)


def _recorded(name: str, start: str, draws: str, compress: Callable) -> Compression:
    def at(trace: Trace, step: jax.Array) -> Recorded:
        if draws not in trace or trace[draws].shape != trace["x"].shape:
            raise ValueError(
                f"the recording lacks {draws} of the shape of x, for {name}; it cannot be replayed"
            )
        return Recorded(compress, jnp.asarray(trace[draws])[jnp.maximum(step - 1, 0)])

    return Compression(name, start, at)


def _qsgd(x: jax.Array, uniforms: jax.Array, levels: int, biased: bool) -> jax.Array:
    """Alistarh et al., NeurIPS 2017, arXiv:1610.02132; biased: shrunk so that it is a contraction."""
    norm = jnp.sqrt((x * x).sum())
    level = jnp.where(norm > 0, levels * jnp.abs(x) / jnp.where(norm > 0, norm, 1.0), 0.0)
    below = jnp.floor(level)
    rounded = below + (uniforms < level - below).astype(x.dtype)
    omega = min(x.size / levels**2, math.sqrt(x.size) / levels) if biased else 0.0
    return jnp.sign(x) * norm * rounded / (levels * (1 + omega))


def _sgd(c: Config) -> dict[str, Any]:
    names = ("momentum", "weight_decay", "gossip_rate")
    return {name: c[name] for name in names} | {"nesterov": bool(c["nesterov"])}


def _named(c: Config, name: str) -> tuple[str, dict[str, Any]]:
    """The name of a momentum form, and its other hyper-parameters."""
    hyper = _sgd(c)
    return name + "-n" * hyper.pop("nesterov"), hyper


def _adagossip(c: Config) -> Variant:
    compressed = _compression(c, "zero")
    quasi_global = bool(c["quasi_global_momentum"])
    if c["adaptive_gossip"]:
        adaptive = {"b2": c["adaptive_beta"], "eps": c["adaptive_eps"]}
        hyper = _sgd(c) | adaptive | {"quasi_global_momentum": quasi_global}
        return Variant("adagossip", hyper, False, compressed)
    name, hyper = _named(c, "qg-dsgdm") if quasi_global else ("choco-sgd", _sgd(c))
    return Variant(name, hyper, False, compressed)


@dataclasses.dataclass(frozen=True)
class _NextStep:
    """A recorded schedule by the steps here, which open with the mix that ended a recorded step."""

    rate: AveragingRate

    def __call__(self, step: jax.Array) -> jax.Array:
        return self.rate(step - 1)

    def __str__(self) -> str:
        return str(self.rate)


def _ars(c: Config) -> Variant:
    name, hyper = _named(c, "qg-dsgdm" if c["quasi_global_momentum"] else "dsgdm")
    rate = _NextStep(AveragingRate(c["gossip_rate"], c["growth_rate"], c["epoch_length"]))
    return Variant(name, hyper | {"gossip_rate": rate}, True)


def _tracking(name: str, start: str = "gradient") -> Callable[[Config], Variant]:
    def build(c: Config) -> Variant:
        hyper = {"weight_decay": c["weight_decay"], "gossip_rate": c["gossip_rate"]}
        if name == "motef":
            hyper |= {"momentum": 1 - c["momentum_lambda"], "start": start}
        return Variant(name, hyper, False, _compression(c, "zero"))

    return build


def _choco(start: str, mixed_last: bool) -> Callable[[Config], Variant]:
    where = {} if mixed_last else {"gradient_at": "unmixed"}
    return lambda c: Variant("choco-sgd", _sgd(c) | where, mixed_last, _compression(c, start))


# By source, and by how the method's name begins: of several that fit the longest counts.
VARIANTS: dict[str, dict[str, Callable[[Config], Variant]]] = {
    "aparna-aketi/AdaG_SGD": {"AdaGossip": _adagossip, "CHOCO": _adagossip},
    "aparna-aketi/ARS": {"ARS": _ars},
    "epfml/ChocoSGD": {
        "CHOCO-SGD": _choco("model", mixed_last=False),
        "CHOCO-SGD (deep-learning code)": _choco("zero", mixed_last=False),
        "plain decentralized SGD": lambda c: Variant("dsgd", {"weight_decay": 0.0}, True),
    },
    "liboyue/beer": {"BEER": _tracking("beer")},
    "mlolab/MoTEF": {
        "BEER": _tracking("beer"),
        "CHOCO-SGD": _choco("model", mixed_last=True),
        "CHOCO-SGD (experiment class, x_hat starts at 0)": _choco("zero", mixed_last=True),
        "MoTEF": _tracking("motef"),
        "MoTEF (experiment class, M starts at 0)": _tracking("motef", start="zero"),
    },
}
