"""Runs: from settings to a trained model and the directory that tells of it."""

from ccl_jax.runs.config import Config
from ccl_jax.runs.runner import Run, execute, prepare, train

__all__ = ["Config", "Run", "execute", "prepare", "train"]
