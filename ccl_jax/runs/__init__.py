"""Runs: from settings to a trained model and the directory that tells of it."""

from ccl_jax.runs.config import Config
from ccl_jax.runs.loading import LoadedRun, load_run
from ccl_jax.runs.runner import Run, execute, prepare, train
from ccl_jax.runs.seeds import train_seeds

__all__ = ["Config", "LoadedRun", "Run", "execute", "load_run", "prepare", "train", "train_seeds"]
