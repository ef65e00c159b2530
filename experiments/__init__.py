"""Experiments: thin mains that turn flags into a Config and hand it to ccl_jax."""
