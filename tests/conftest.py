"""Test settings: eight virtual CPU devices, strict dtypes and ranks, warnings as errors.

The environment is set before jax is imported anywhere, as XLA reads it once.
"""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("CCL_TEST_PLATFORM", "cpu")
os.environ["MPLBACKEND"] = "agg"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    # Other people's warnings that we can do nothing about are named here, one by one.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:tensorflow_datasets")
