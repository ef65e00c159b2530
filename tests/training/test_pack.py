"""Runs that differ in their seed, as one program: each as if it ran alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import graphs, models
from ccl_jax.data.feeds import InMemory
from ccl_jax.devices.parallel import Plan
from ccl_jax.models import lowering
from ccl_jax.training import loop, pack
from ccl_jax.training.ledger import Diverged
from ccl_jax.training.merge import make_merge
from ccl_jax.training.progress import Progress
from tests.support.small_run import (
    AGENTS,
    DATA,
    EPOCHS,
    PARTITION,
    Experiment,
    evaluator,
    same,
    same_rows,
    without_seconds,
)

SEEDS = (3, 5, 8)


@pytest.fixture(scope="module")
def experiment():
    return Experiment(lambdas=(0.1, 0.1), augmentation="flip-crop")


def feed_of(seed):
    return InMemory(DATA, PARTITION, batch_size=4, seed=seed)


def start_of(experiment, seed):
    """Another key and another model for each seed."""
    state = experiment.start()
    params = jax.tree.map(lambda x: x * jnp.float32(1 + seed / 10), state.params)
    return state._replace(params=params, key=jax.random.key(seed))


def alone(experiment, seed, **options):
    """The end and the rows of one run."""
    experiment.feed = feed_of(seed)
    return experiment.run(start_of(experiment, seed), **options)


def together(experiment, states, starts=None, **options):
    """The results and rows of all runs."""
    starts = starts or [Progress()] * len(SEEDS)
    rows = [list(start.rows) for start in starts]
    models = lambda s: evaluator()(experiment.algorithm.models(s.params, s.algorithm), {})
    results = pack.fit(
        states,
        experiment.step,
        [feed_of(seed) for seed in SEEDS],
        starts=starts,
        epochs=EPOCHS,
        eval_every=2,
        evaluate=models,
        on_epoch=lambda run, row: rows[run].append(row),
        **options,
    )
    return results, [without_seconds(own) for own in rows]


def starts(experiment):
    return [start_of(experiment, seed) for seed in SEEDS]


def assert_close(state, other):
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, state._replace(key=0), other._replace(key=0))
    assert (jax.random.key_data(state.key) == jax.random.key_data(other.key)).all()


def assert_rows_close(rows, others):
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
        for name in ("epoch", "step", "bytes_sent_per_agent", "bytes_sent_per_agent_max"):
            assert row[name] == other[name]


@pytest.mark.parametrize("chunk_steps, merges", [(1, True), (3, False)])
def test_each_is_what_it_is_alone(experiment, chunk_steps, merges):
    merge = make_merge(graphs.make("ring", AGENTS), Plan()) if merges else None
    told = []
    results, rows = together(
        experiment,
        starts(experiment),
        chunk_steps=chunk_steps,
        merge=merge,
        on_step=lambda: told.append(1),
    )
    for seed, (state, timing), own in zip(SEEDS, results, rows, strict=True):
        whole, whole_rows = alone(experiment, seed, merge=merge)
        assert_close(state, whole)
        assert_rows_close(own, whole_rows)
        assert timing.steps == 4 * EPOCHS and min(timing) > 0
    assert len(told) == 4 * EPOCHS
    losses = [own[0]["cross_entropy"] for own in rows]
    assert len(set(losses)) == len(SEEDS)


def test_one_that_diverges_ends_and_the_others_go_on(experiment):
    good, good_rows = together(experiment, starts(experiment))
    states = starts(experiment)
    endless = jax.tree.map(lambda x: x * jnp.float32(jnp.inf), states[1].params)
    states[1] = states[1]._replace(params=endless)
    handed_out = []
    results, rows = together(
        experiment, states, on_progress=lambda take, progress: handed_out.append(set(progress))
    )
    assert isinstance(results[1], Diverged) and "at step 1, agent 0" in str(results[1])
    (row,) = rows[1]
    assert row["step"] == 1 and row["diverged"] == str(results[1])
    for run in (0, 2):
        same(results[run][0], good[run][0])
        same_rows(rows[run], good_rows[run])
    assert handed_out == [{0, 2}] * EPOCHS


def test_all_end_where_all_diverge(experiment):
    endless = lambda state: jax.tree.map(lambda x: x * jnp.float32(jnp.inf), state.params)
    states = [state._replace(params=endless(state)) for state in starts(experiment)]
    told = []
    results, rows = together(experiment, states, on_step=lambda: told.append(1))
    assert all(isinstance(result, Diverged) for result in results) and told == []
    assert [[row["step"] for row in own] for own in rows] == [[1]] * len(SEEDS)


def test_one_skips_a_step_and_the_others_take_it(experiment):
    """Member 1 starts with a step that is not finite, as its key says."""
    plain_step, bad_key = experiment.step, jax.random.key_data(jax.random.key(SEEDS[1]))

    def step(state, constants, item):
        bad = (jax.random.key_data(state.key) == bad_key).all() & (state.step == 0)
        new, metrics = plain_step(state, constants, item)
        ruined = jnp.where(bad, jnp.nan, metrics.cross_entropy)
        return new, metrics._replace(cross_entropy=ruined)

    spoiled = Experiment(lambdas=(0.1, 0.1), augmentation="flip-crop")
    spoiled.step = step
    _, rows = together(spoiled, starts(spoiled), skip_divergence=True)
    assert [own[0].get("skipped_steps") for own in rows] == [None, 1, None]


def test_the_last_step_of_one_leaves_no_model(experiment):
    """No step after it would notice, and the others end well."""
    plain_step, bad_key = experiment.step, jax.random.key_data(jax.random.key(SEEDS[1]))

    def step(state, constants, item):
        new, metrics = plain_step(state, constants, item)
        bad = (jax.random.key_data(state.key) == bad_key).all() & (state.step == 4 * EPOCHS - 1)
        ruined = jax.tree.map(lambda x: jnp.where(bad, jnp.inf, x), new.params)
        return new._replace(params=ruined), metrics

    spoiled = Experiment(lambdas=(0.1, 0.1), augmentation="flip-crop")
    spoiled.step = step
    handed_out = []
    results, rows = together(
        spoiled,
        starts(spoiled),
        on_progress=lambda take, progress: handed_out.append(set(progress)),
    )
    said = f"the loss on the test set is no longer finite after step {4 * EPOCHS}, the last"
    assert isinstance(results[1], Diverged) and said in str(results[1])
    assert [own[-1].get("diverged") for own in rows] == [None, str(results[1]), None]
    assert [own[-1]["step"] for own in rows] == [4 * EPOCHS] * len(SEEDS)
    assert handed_out[-1] == {0, 2} and len(handed_out) == EPOCHS
    with pytest.raises(Diverged, match="the last"):
        alone(spoiled, SEEDS[1])


@pytest.mark.parametrize("moment", [3, 4])
def test_all_resume_to_the_bit_within_and_after_an_epoch(experiment, moment):
    saved = {}

    def save(take, progress):
        if progress[0].step == moment:
            saved.update({run: (take(run), done) for run, done in progress.items()})

    always = lambda: lambda: True
    whole, rows = together(experiment, starts(experiment), due=always, on_progress=save)
    assert [done.step for _, done in saved.values()] == [moment] * len(SEEDS)
    assert [int(state.step) for state, _ in saved.values()] == [moment] * len(SEEDS)
    states, progress = zip(*saved.values(), strict=True)
    again, again_rows = together(experiment, states, progress)
    for run in range(len(SEEDS)):
        same(again[run][0], whole[run][0])
        same_rows(again_rows[run], rows[run])


def test_what_feeds_share_is_there_once_and_the_rest_by_run():
    noisy = DATA.with_train_labels((DATA.train_labels + 1) % 4)
    feeds = [InMemory(data, PARTITION, 4, seed=k) for k, data in enumerate((DATA, noisy))]
    orders = [next(feed.epoch(1)) for feed in feeds]
    both = pack.Feeds(feeds)
    images, labels = both.constants
    assert both.axes == (None, 0)
    assert images.shape == DATA.train_images.shape
    np.testing.assert_array_equal(labels, [DATA.train_labels, noisy.train_labels])
    np.testing.assert_array_equal(next(both.epoch(1)), orders)
    assert both.item.shape == (2, AGENTS, 4) and both.steps == 4


def test_times_are_shares_of_what_passes(experiment):
    """Of compilation, steps and evaluations together, no second is in two runs."""
    states, clock = starts(experiment), loop.Clock()
    results, _ = together(experiment, states)
    passed = clock.lap()
    times = [timing[:3] for _, timing in results]
    assert min(map(min, times)) > 0 and sum(map(sum, times)) < passed
    assert len({compiling for compiling, _, _ in times}) == 1


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_convolutions_have_room_for_an_axis_of_seeds(platform):
    """However the work of several agents is computed there, several seeds give the same gradients."""
    model, image, runs, agents = models.make("digits-cnn", 10), (8, 8, 1), 2, 4
    keys = jax.random.split(jax.random.key(0), (runs, agents))
    start = jax.vmap(jax.vmap(lambda key: models.init(model, key, image)))(keys)
    images = jax.random.normal(jax.random.key(1), (runs, agents, 3, *image))

    def loss(params, model_state, images):
        (_, logits), _ = models.apply_train(model, params, model_state, images)
        return (logits**2).mean()

    gradients = jax.vmap(jax.grad(loss))
    with lowering.compiled_for(platform):
        both = jax.jit(jax.vmap(gradients))(*start, images)
        one = [gradients(*jax.tree.map(lambda x, k=k: x[k], (*start, images))) for k in range(runs)]
    expected = jax.tree.map(lambda *x: np.stack(x), *one)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, both, expected)
