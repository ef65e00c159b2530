"""ccl_jax: decentralized deep learning on heterogeneous data, in JAX."""
