"""Recorded methods of decent-bench: bias corrected, with local steps or without."""

from collections.abc import Callable
from typing import Any

from experiments.parity.traces import NUMBER
from experiments.parity.variants import Config, Variant

# Entries of configurations that are read here.
KINDS = {
    "local_steps": int,
    "server_step_size": NUMBER,
    "dual_step_size": NUMBER,
    "communication_probability": NUMBER,
    "chi": NUMBER,
}


def _build(
    name: str, mixed_last: bool, hyper: Callable[[Config], dict[str, Any]] = lambda c: {}
) -> Callable[[Config], Variant]:
    def build(c: Config) -> Variant:
        if c["momentum"]:
            raise ValueError(f"the recording has momentum {c['momentum']}, and {name} has none")
        steps = c.get("local_steps", 1)
        if steps < 1:
            raise ValueError(f"the recording has local_steps = {steps}; it must be at least 1")
        per_step = ("communicate",) if name == "proxskip" else ()
        settings = {"weight_decay": c["weight_decay"]} | hyper(c)
        return Variant(name, settings, mixed_last, local_steps=steps, per_step=per_step)

    return build


def _kgt(c: Config) -> dict[str, Any]:
    return {"server_step_size": c["server_step_size"]}


def _led(c: Config) -> dict[str, Any]:
    return {"correction_rate": c["dual_step_size"] * c["local_steps"]}


def _proxskip(c: Config) -> dict[str, Any]:
    # Tails are recorded, and replayed as rounds in which nobody is heard: every step is an exchange.
    if not c["chi"] > 0:
        raise ValueError(f"the recording has chi = {c['chi']}; it must be positive")
    return {"correction_rate": c["dual_step_size"], "gossip_rate": 1 / (2 * c["chi"])}


VARIANTS = {
    "team-decent/decent-bench": {
        "ATC-Tracking": _build("atc-gt", True),
        "AugDGM": _build("aug-dgm", True),
        "EXTRA": _build("extra", False),
        "K-GT": _build("k-gt", True, _kgt),
        "LED": _build("led", True, _led),
        "NIDS": _build("nids", True),
        "ProxSkip": _build("proxskip", True, _proxskip),
        "Simple gradient tracking": _build("simplegt", False),
        "exact diffusion": _build("ed", True),
    }
}
