"""A quick start for models in tests."""

import jax
import pytest

from ccl_jax import models


@pytest.fixture(scope="session")
def quick_init():
    """`models.init` with key 0, compiled without optimisation, which takes most of the time."""

    def init(model, image_shape):
        draw = jax.jit(
            lambda key: models.init(model, key, image_shape),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        return draw(jax.random.key(0))

    return init
