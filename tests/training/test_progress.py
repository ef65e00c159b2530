"""Totals and progress with numbers worked out by hand."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.network import Traffic
from ccl_jax.training.progress import Progress, Totals
from ccl_jax.training.step import StepMetrics


def metrics(samples, cross_entropy, losses, *, correct=(0, 0, 0), lr=0.1, taken=True, lost=None):
    """Of a step of three agents, each of which sends two messages of 10 bytes and one of 4."""
    column = lambda values: np.array(values, np.int32)[:, None] * np.ones((1, 2), np.int32)
    return StepMetrics(
        cross_entropy=np.array(cross_entropy, np.float32),
        losses={name: np.array(values, np.float32) for name, values in losses.items()},
        samples=np.array(samples, np.int32),
        correct=np.array(correct, np.int32),
        online=np.array([True, True, samples[2] > 0]),
        taken=np.full(3, taken),
        gradient_norm=np.ones(3, np.float32),
        lr=np.full(3, lr, np.float32),
        traffic=Traffic(
            np.array([[10, 4]] * 3, np.int32),
            np.array([[2, 1]] * 3, np.int32),
            None if lost is None else column(lost),
        ),
    )


FIRST = metrics([4, 2, 2], [1.0, 2.0, 4.0], {"prototype": [0.5, 0.25, 1.0]}, correct=[3, 1, 0])
# The last agent has nothing left: what it reports does not count.
SECOND = metrics([4, 1, 0], [2.0, 3.0, 99.0], {"prototype": [1.5, 2.25, 99.0]}, correct=[4, 0, 0])


def test_means_over_samples_and_over_busy_agents():
    means = Totals().add(FIRST).add(SECOND).means()
    assert means == {
        "lr": pytest.approx(0.1),
        "cross_entropy": (4 * 1 + 2 * 2 + 2 * 4 + 4 * 2 + 1 * 3) / 13,
        "train_accuracy": 8 / 13,
        "prototype_loss": (0.5 + 0.25 + 1 + 1.5 + 2.25) / 5,
    }


def test_losses_are_those_that_were_computed():
    assert not [
        name for name in Totals().add(metrics([1] * 3, [1.0] * 3, {})).means() if "_l" in name
    ]
    both = metrics([1] * 3, [1.0] * 3, {"a": [1.0] * 3, "b": [2.0, 3.0, 4.0]})
    means = Totals().add(both).means()
    assert (means["a_loss"], means["b_loss"]) == (1.0, 3.0)


def test_faults_are_reported_where_there_are_any():
    assert not {"messages_lost", "agents_online"} & set(Totals().add(FIRST).means())
    faulty = metrics([4, 2, 0], [1.0] * 3, {}, lost=[1, 0, 1])
    means = Totals().add(faulty).add(faulty).means()
    # Of 3 x 3 messages a step two are lost on each of two exchanges; two agents of three are online.
    assert means["messages_lost"] == 4 / 9
    assert means["agents_online"] == 2.0


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ({"a": [1.0, 9.9, 39.0]}, ""),
        ({"a": [1.0, 10.1 * 2, 1.0]}, "a"),
        ({"a": [11.0, 1.0, 1.0], "b": [1.0, 1.0, 4 * 12.0]}, "b"),
        ({"a": [math.inf, 1.0, 1.0]}, "a"),
    ],
)
def test_a_loss_more_than_ten_times_the_cross_entropy_has_run_away(losses, named):
    assert Totals().add(metrics([1] * 3, [1.0, 2.0, 4.0], losses)).runaway == named


def test_progress_counts_steps_bytes_and_seconds():
    done = Progress().after_step(FIRST, 0.5).after_step(SECOND, 0.25)
    assert (done.step, done.epoch, done.position, done.seconds_training) == (2, 1, 2, 0.75)
    assert done.bytes_sent == (48, 48, 48)
    row = done.row()
    assert row["bytes_sent_per_agent"] == row["bytes_sent_per_agent_max"] == 48
    assert type(row["bytes_sent_per_agent"]) is int
    assert "rollbacks" not in row and done._replace(rollbacks=2).row()["rollbacks"] == 2


def test_a_step_that_was_not_taken_counts_as_a_step_only():
    spoilt = metrics([4, 2, 2], [np.nan] * 3, {"prototype": [np.nan] * 3}, taken=False)
    done = Progress().after_step(FIRST, 1.0).after_step(spoilt, 1.0)
    only = Progress().after_step(FIRST, 1.0)
    assert done.totals == only.totals._replace(skipped=1)
    assert (done.step, done.position, done.bytes_sent) == (2, 2, (48, 48, 48))
    assert done.row()["skipped_steps"] == 1 and "skipped_steps" not in only.row()
    assert done.row()["prototype_loss"] == only.row()["prototype_loss"]


def test_an_epoch_ends_with_its_row_and_totals_begin_again():
    done = Progress().after_step(FIRST, 1.0)
    row = done.row()
    later = done.next_epoch(row, 2.0)
    assert (later.epoch, later.position, later.step) == (2, 0, 1)
    assert later.rows == (row,) and later.totals == Totals() and later.seconds_evaluation == 2.0
    assert later.bytes_sent == (24, 24, 24)


def test_a_checkpoint_holds_progress_as_it_is():
    """Through JSON text and back, and the next step adds to the same numbers."""
    faulty = FIRST._replace(traffic=metrics([1] * 3, [1.0] * 3, {}, lost=[1, 0, 1]).traffic)
    for first in (FIRST, faulty):
        done = Progress().after_step(first, 0.1)
        done = done.next_epoch(done.row(), 0.2).after_step(first, 0.3)._replace(unreadable=(3, 5))
        back = Progress.from_json(json.loads(json.dumps(done.to_json())))
        assert back == done
        assert back.after_step(first, 0.4) == done.after_step(first, 0.4)
    assert jnp.isnan(Progress.from_json(json.loads(json.dumps(Progress().to_json()))).totals.lr)
