"""Published decentralized methods behind one contract; one method a file, `base` holds the contract."""

from ccl_jax.algorithms import dsgd, quasi_global
from ccl_jax.algorithms.base import REGISTRY, Algorithm, Method, lookup, make, register

__all__ = ["REGISTRY", "Algorithm", "Method", "dsgd", "lookup", "make", "quasi_global", "register"]
