"""Test settings: eight virtual CPU devices, strict dtypes and ranks, warnings as errors.

The environment is set before jax is imported anywhere, as XLA reads it once.
"""

import os
from importlib import metadata

os.environ["JAX_PLATFORMS"] = os.environ.get("CCL_TEST_PLATFORM", "cpu")
os.environ["MPLBACKEND"] = "agg"
# Most of the time goes into compiling programs that run for a few steps: compile them quickly. To test
# what users run, `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest`; the parity tests have a process that always
# does. `XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 pytest` (or AVX, AVX2) compiles for a smaller processor.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's code for fusions without MLIR, which JAX 0.11 no longer has, takes a third of the time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and metadata.version("jax") < "0.11"
    else ""
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    """JAX starts before a test's run can ask it for fewer devices, which all later tests would have."""
    assert jax.device_count() == 8 or jax.default_backend() != "cpu"


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Programs of a module are of no use to the next one, and fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def optimized():
    """Compiled with all optimisations, for tests of small differences."""
    quickly = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture
def float64():
    """In double precision, for limits, rates and identities: what is left of an error is the code's."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def eps(request):
    """In single and in double precision: what rounding adds to 1. An identity holds to some of it."""
    with jax.enable_x64(request.param == "float64"):
        yield float(jax.numpy.finfo(request.param).eps)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, help="how often test_kill.py kills each of its runs"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Most of the time goes into compiling, and much of it into programs compiled before. A folder
    # for each worker of pytest-xdist: jax does not lock them.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    for name, value in (
        ("jax_compilation_cache_dir", str(config.cache.mkdir(f"jax-{worker}"))),
        ("jax_persistent_cache_min_compile_time_secs", 0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start
    config.addinivalue_line("filterwarnings", "error")
    # Other people's warnings that we can do nothing about are named here, one by one.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:tensorflow_datasets")
    # A run that was killed while writing leaves a damaged entry, which is compiled anew.
    config.addinivalue_line("filterwarnings", "default:Error reading persistent compilation cache")
