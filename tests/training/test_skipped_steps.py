"""Steps that are not finite: skipped on demand, and an epoch of nothing else stops the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.training import loop
from tests.support.small_run import Experiment


def spoil(experiment: Experiment, steps) -> None:
    """Makes the loss infinite in some steps."""
    plain_step = experiment.step

    def step(state, constants, item):
        bad = jnp.isin(state.step, jnp.array(steps))
        new, metrics = plain_step(state, constants, item)
        ruin = lambda x: jnp.where(bad, jnp.nan, x)
        return new._replace(params=jax.tree.map(ruin, new.params)), metrics._replace(
            cross_entropy=ruin(metrics.cross_entropy)
        )

    experiment.step = step


def test_a_step_that_is_not_finite_is_skipped_on_demand():
    experiment = Experiment()
    states = {}

    def remember(state, progress):
        states[progress.step] = jax.tree.map(np.array, state.params)

    spoil(experiment, [1])
    state, rows = experiment.run(experiment.start(), skip_divergence=True, on_progress=remember)
    jax.tree.map(np.testing.assert_array_equal, states[1], states[2])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert rows[0]["skipped_steps"] == 1 and "skipped_steps" not in rows[1]
    assert np.isfinite(rows[0]["cross_entropy"])
    assert state.step == 12


def test_an_epoch_that_is_skipped_altogether_stops_the_run():
    experiment = Experiment()
    spoil(experiment, [4, 5, 6, 7])
    with pytest.raises(loop.Diverged, match=r"step 8, agent 0 .*cross-entropy nan.*gradient norm"):
        experiment.run(experiment.start(), skip_divergence=True)
