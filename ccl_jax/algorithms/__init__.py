"""Published decentralized methods behind one contract; one method a file, `base` the contract."""

from ccl_jax.algorithms import (
    bounds,
    cga,
    d2,
    decentlam,
    dsgd,
    gradient_tracking,
    gut,
    momentum_tracking,
    ngc,
    optimizers,
    push_sum,
    quasi_global,
    quasi_global_adam,
    relay,
)
from ccl_jax.algorithms.base import REGISTRY, Algorithm, Method, lookup, make, register

__all__ = [
    "REGISTRY",
    "Algorithm",
    "Method",
    "bounds",
    "cga",
    "d2",
    "decentlam",
    "dsgd",
    "gradient_tracking",
    "gut",
    "lookup",
    "make",
    "momentum_tracking",
    "ngc",
    "optimizers",
    "push_sum",
    "quasi_global",
    "quasi_global_adam",
    "register",
    "relay",
]
