"""The training loop: what an epoch's row says, how often it compiles, and when it stops."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs, training
from ccl_jax.data import batches
from ccl_jax.data.datasets import Dataset
from ccl_jax.data.feeds import InMemory
from ccl_jax.data.partition import Partition
from ccl_jax.devices import parallel
from ccl_jax.network import Network
from ccl_jax.training import loop
from ccl_jax.training.evaluation import Evaluation
from tests.support.tiny import CLASSES, IMAGE, TinyModel

MODEL = TinyModel()
SIZES = (7, 4, 6)  # In batches of 3: 3 + 3 + 1, 3 + 1 + 0 and 3 + 3 + 0.
BATCH = 3
SEED = 5


def none(key, images):
    return images


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (sum(SIZES) + 2, *IMAGE), np.uint8)
    labels = rng.integers(0, CLASSES, len(images)).astype(np.int32)
    return Dataset(
        "tiny", images, labels, images, labels, CLASSES, (0.5,), (0.25,), 255.0, tuple("abcd")
    )


@pytest.fixture(scope="module")
def split():
    order = np.random.default_rng(1).permutation(sum(SIZES)).astype(np.int32)
    return Partition("test", tuple(np.split(order, np.cumsum(SIZES)[:-1])))


def evaluation(state):
    return Evaluation(np.array([0.5, 0.7]), np.array([1.0, 2.0]), 0.8, 0.4, 0.1)


class Experiment:
    """A run that keeps what it is told."""

    def __init__(self, dataset, split, *, lr=0.1, augmentation=none, objective=None):
        self.traces, self.rows, self.steps = 0, [], []
        network = Network(graphs.make("full", split.agents))
        algorithm = algorithms.make("dsgd", weight_decay=0.0)
        objective = objective or training.Objective(CLASSES)
        step = training.make_step(MODEL, algorithm, network, objective, lambda t: lr)
        self.feed = InMemory(dataset, split, BATCH, SEED)
        data_step = loop.make_data_step(step, self.feed, dataset, augmentation)

        def counted(*args):
            self.traces += 1
            return data_step(*args)

        self.data_step = counted
        self.state = training.init_state(
            MODEL, algorithm, network, objective, IMAGE, jax.random.key(0)
        )
        self.params = jax.tree.map(np.asarray, self.state.params)

    def change_metrics(self, change):
        """From now on steps report what `change(steps done before, metrics)` makes of them."""
        plain_step = self.data_step

        def changed(state, *batch):
            new, metrics = plain_step(state, *batch)
            return new, change(state.step, metrics)

        self.data_step = changed

    def fit(self, epochs=1, evaluate=evaluation, **options):
        return loop.fit(
            self.state,
            self.data_step,
            self.feed,
            epochs=epochs,
            evaluate=evaluate,
            on_epoch=self.rows.append,
            on_step=self.steps.append,
            **options,
        )


def test_every_sample_counts_once_an_epoch(dataset, split):
    """At a rate of almost 0 the model stays, so the row is a plain mean over all samples held."""
    run = Experiment(dataset, split, lr=1e-30)
    run.fit()
    held = np.concatenate(split.indices)
    params = jax.tree.map(lambda x: x[0], run.params)
    x = jnp.asarray((dataset.train_images[held] / 255.0 - 0.5) / 0.25, jnp.float32)
    logits = np.asarray(MODEL.apply({"params": params}, x)[1], np.float64)
    y = dataset.train_labels[held]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    (row,) = run.rows
    assert row["cross_entropy"] == pytest.approx(losses.mean(), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    assert row["step"] == 3
    assert row["lr"] == pytest.approx(1e-30)


def test_class_losses_are_means_over_agents_that_have_samples(dataset, split):
    objective = training.Objective(CLASSES, 0.1, 0.1)
    run = Experiment(dataset, split, objective=objective)
    run.fit()
    again = Experiment(dataset, split, objective=objective)
    step = jax.jit(again.data_step)
    state, model_variant, data_variant = again.state, [], []
    for indices in batches.epoch_indices(split, BATCH, 1, SEED):
        state, metrics = step(state, again.feed.constants, jnp.asarray(indices))
        busy = (indices >= 0).any(axis=1)
        model_variant += list(np.asarray(metrics.losses["model_variant"])[busy])
        data_variant += list(np.asarray(metrics.losses["data_variant"])[busy])
    assert len(model_variant) == 3 + 2 + 2
    assert run.rows[0]["model_variant_loss"] == pytest.approx(np.mean(model_variant), rel=1e-5)
    assert run.rows[0]["data_variant_loss"] == pytest.approx(np.mean(data_variant), rel=1e-5)


def test_losses_that_are_not_computed_are_not_reported(dataset, split):
    run = Experiment(dataset, split)
    run.fit()
    assert not {"model_variant_loss", "data_variant_loss"} & set(run.rows[0])


def test_rows_steps_bytes_and_evaluations(dataset, split):
    evaluated = []

    def evaluate(state):
        evaluated.append(int(state.step))
        return evaluation(state)

    run = Experiment(dataset, split)
    state, timing = run.fit(epochs=5, evaluate=evaluate, eval_every=2)
    assert run.steps == list(range(1, 16))
    assert int(state.step) == timing.steps == 15
    assert [row["epoch"] for row in run.rows] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in run.rows] == [3, 6, 9, 12, 15]
    # Every second epoch, and the last.
    assert evaluated == [6, 12, 15]
    evaluated.clear()
    Experiment(dataset, split).fit(epochs=5, evaluate=evaluate, eval_every=4, eval_first=True)
    assert evaluated == [3, 12, 15]
    assert ["local_accuracy_mean" in row for row in run.rows] == [False, True, False, True, True]
    assert run.rows[-1]["consensus_accuracy"] == 0.8
    # A full graph of 3: two messages a step of 9*6 + 6 + 6*4 + 4 = 88 float32.
    assert [row["bytes_sent_per_agent"] for row in run.rows] == [
        steps * 2 * 4 * 88 for steps in (3, 6, 9, 12, 15)
    ]
    assert type(run.rows[0]["bytes_sent_per_agent"]) is int
    assert min(timing) > 0
    times = [row["seconds_training"] for row in run.rows]
    assert times == sorted(times)
    assert times[-1] == timing.seconds_training


def test_one_compilation_a_run(dataset, split):
    run = Experiment(dataset, split)
    run.fit(epochs=3)
    once = run.traces
    run = Experiment(dataset, split)
    run.fit(epochs=1)
    assert run.traces == once == 1


class SpyingPlan(parallel.Plan):
    """Enters into `log` when the items of a chunk are handed over, as they are when it is begun."""

    def __init__(self, log: list) -> None:
        super().__init__()
        self._log = log

    def put_items(self, items, axis=0):
        self._log.append("begin")
        return super().put_items(items, axis)


BEGIN, EVALUATE = "begin", "evaluate"


@pytest.mark.parametrize(
    "chunk_steps, epoch",
    [
        (1, [BEGIN, BEGIN, 1, BEGIN, 2, 3, EVALUATE]),
        (2, [BEGIN, BEGIN, 1, 2, 3, EVALUATE]),
        (3, [BEGIN, 1, 2, 3, EVALUATE]),
    ],
)
def test_a_chunk_is_begun_before_the_metrics_of_the_last_are_read(
    dataset, split, chunk_steps, epoch
):
    """Within an epoch of three steps; a state that is evaluated has been accounted for."""
    run = Experiment(dataset, split)
    log = run.steps

    def evaluate(state):
        log.append(EVALUATE)
        return evaluation(state)

    run.fit(evaluate=evaluate, plan=SpyingPlan(log), chunk_steps=chunk_steps)
    assert log == epoch


def test_chunks_overlap_but_where_the_state_is_handed_out(dataset, split):
    """Asked before every chunk, answered before the next: here after step 2 and, unasked, step 3."""
    run = Experiment(dataset, split)
    log = run.steps

    def due():
        asked = log.count(BEGIN)
        return lambda: asked == 1

    def hand_out(state, progress):
        log.append(("state of", int(state.step), "progress of", progress.step))

    run.fit(plan=SpyingPlan(log), due=due, on_progress=hand_out)
    of = lambda step: ("state of", step, "progress of", step)
    assert log == [BEGIN, BEGIN, 1, 2, of(2), BEGIN, 3, of(3)]


def test_a_divergence_is_reported_at_its_step_though_the_next_is_under_way(dataset, split):
    """And no state after it is handed out."""
    run, handed_out = Experiment(dataset, split), []
    log = run.steps
    run.change_metrics(
        lambda done, metrics: metrics._replace(
            cross_entropy=jnp.where(done == 1, jnp.nan, metrics.cross_entropy)
        )
    )
    with pytest.raises(loop.Diverged, match=r"no longer finite at step 2, agent 0"):
        run.fit(
            epochs=2,
            plan=SpyingPlan(log),
            due=lambda: lambda: False,
            on_progress=lambda state, progress: handed_out.append(progress.step),
        )
    assert log == [BEGIN, BEGIN, 1, BEGIN] and handed_out == []
    (row,) = run.rows
    assert row["step"] == 2 and "at step 2" in row["diverged"]


def test_seconds_of_steps_are_those_that_pass_without_what_is_done_between(dataset, split):
    """Pauses of 0.2 s to save and to evaluate are in no step; what steps take is in them once."""
    run = Experiment(dataset, split)
    plain_epoch = run.feed.epoch

    def slow_epoch(*args):
        for item in plain_epoch(*args):
            time.sleep(0.1)
            yield item

    run.feed.epoch = slow_epoch

    def evaluate(state):
        time.sleep(0.2)
        return evaluation(state)

    _, timing = run.fit(epochs=2, evaluate=evaluate, on_progress=lambda *_: time.sleep(0.2))
    assert 0.6 <= timing.seconds_training < 1.0
    assert 0.4 <= timing.seconds_evaluation < 0.8


@pytest.mark.parametrize(
    "chunk_steps", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 50))]
)
def test_chunks_of_steps_change_nothing(dataset, split, chunk_steps):
    """An epoch of three steps: as 2 + 1, and as one program."""
    ccl = training.Objective(CLASSES, 0.1, 0.1)
    one = Experiment(dataset, split, objective=ccl)
    state, _ = one.fit(epochs=2)
    run, seen = Experiment(dataset, split, objective=ccl), []
    chunked, timing = run.fit(
        epochs=2, chunk_steps=chunk_steps, on_progress=lambda _, done: seen.append(done.step)
    )
    assert seen == ([2, 3, 5, 6] if chunk_steps == 2 else [3, 6])
    assert run.steps == [1, 2, 3, 4, 5, 6] and timing.steps == 6
    assert run.traces == 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, chunked.params, state.params)
    for row, single in zip(run.rows, one.rows, strict=True):
        assert row["cross_entropy"] == pytest.approx(single["cross_entropy"], rel=1e-5)
        assert row["bytes_sent_per_agent"] == single["bytes_sent_per_agent"]


def test_a_divergence_within_a_chunk_names_its_step(dataset, split):
    run = Experiment(dataset, split)
    run.change_metrics(
        lambda done, metrics: metrics._replace(
            cross_entropy=jnp.where(done == 1, jnp.nan, metrics.cross_entropy)
        )
    )
    with pytest.raises(loop.Diverged, match=r"no longer finite at step 2, agent 0"):
        run.fit(chunk_steps=3)
    assert run.steps == [1]


def test_augmentation_is_keyed_by_step_and_agent_and_sees_raw_pixels(dataset, split):
    seen = []

    def spy(key, images):
        jax.debug.callback(
            lambda key, images: seen.append((tuple(key.tolist()), images.max())),
            jax.random.key_data(key),
            images,
        )
        return images

    def keys(epochs):
        seen.clear()
        run = Experiment(dataset, split, augmentation=spy)
        state, _ = run.fit(epochs=epochs)
        jax.block_until_ready(state)
        jax.effects_barrier()
        return [key for key, _ in seen]

    first = keys(2)
    assert max(largest for _, largest in seen) > 200  # pixels of 0 to 255
    assert len(set(first)) == len(first) == 2 * 3 * 3
    assert sorted(keys(2)) == sorted(first)  # Nothing but seed, step and agent plays a part.


def test_the_same_seed_gives_the_same_run_to_the_bit(dataset, split):
    ends = []
    for _ in range(2):
        run = Experiment(dataset, split, objective=training.Objective(CLASSES, 0.1, 0.1))
        state, _ = run.fit(epochs=2)
        ends.append(
            (jax.tree.map(np.asarray, state.params), [r["cross_entropy"] for r in run.rows])
        )
    jax.tree.map(np.testing.assert_array_equal, *[params for params, _ in ends])
    assert ends[0][1] == ends[1][1]


def test_a_loss_that_is_not_finite_stops_the_run_at_once(dataset, split):
    run = Experiment(dataset, split)
    agent_2 = jnp.arange(3) == 2
    run.change_metrics(
        lambda done, metrics: metrics._replace(
            cross_entropy=jnp.where((done == 4) & agent_2, jnp.nan, metrics.cross_entropy)
        )
    )
    with pytest.raises(loop.Diverged, match=r"no longer finite at step 5, agent 2 .*lower lr"):
        run.fit(epochs=4)
    assert [row["step"] for row in run.rows] == [3, 5]
    assert "diverged" not in run.rows[0]
    assert "agent 2" in run.rows[1]["diverged"]


def test_a_gradient_that_is_not_finite_stops_the_run_too(dataset, split):
    run = Experiment(dataset, split)
    run.change_metrics(
        lambda done, metrics: metrics._replace(gradient_norm=jnp.array([1.0, jnp.inf, 1.0]))
    )
    with pytest.raises(loop.Diverged, match=r"at step 1, agent 1 .*gradient norm inf"):
        run.fit()


def test_a_model_variant_loss_that_ran_away_is_named_as_the_cause(dataset, split):
    run = Experiment(dataset, split, objective=training.Objective(CLASSES, lambda_m=0.1))
    run.change_metrics(
        lambda done, metrics: metrics._replace(
            losses={"model_variant": metrics.cross_entropy * jnp.where(done == 1, 11.0, 0.1)},
            cross_entropy=jnp.where(done == 2, jnp.inf, metrics.cross_entropy),
        )
    )
    with pytest.raises(loop.Diverged, match=r"at step 3.*model-variant loss ran away.*lambda_m"):
        run.fit(loss_weights={"model_variant": 0.1})


@pytest.mark.parametrize(
    "name, loss", [("lambda_m", "model-variant"), ("lambda_d", "data-variant")]
)
def test_a_loss_that_outweighs_the_others_is_named_as_the_cause(dataset, split, name, loss):
    run = Experiment(dataset, split, objective=training.Objective(CLASSES, **{name: 1e30}))
    # A ring of equal models has no difference to be weighted in the first step.
    weights = {loss.replace("-", "_"): 1e30}
    with pytest.raises(loop.Diverged, match=rf"{name} 1e\+30 is too large.*{loss}.*lower {name}$"):
        run.fit(epochs=3, loss_weights=weights)


def test_too_high_a_rate_really_diverges_and_says_so(dataset, split):
    run = Experiment(dataset, split, lr=1e38)
    with pytest.raises(loop.Diverged, match=r"learning rate is too high"):
        run.fit(epochs=10)
