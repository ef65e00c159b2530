"""ccl_jax: decentralized deep learning on heterogeneous data, in JAX."""

__version__ = "0.1.0"
