"""Evaluation against a plain loop over the test images, and the consensus distance by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ccl_jax import models, trees
from ccl_jax.data.datasets import Dataset
from ccl_jax.devices.parallel import Plan
from ccl_jax.models import lowering
from ccl_jax.training.evaluation import (
    Evaluation,
    Evaluator,
    consensus,
    consensus_distance,
    interval,
)
from tests.support.tiny import CLASSES, IMAGE, TinyModel, spread

MODEL = TinyModel()
AGENTS = 3


def dataset(test=23, seed=0, image=IMAGE):
    rng = np.random.default_rng(seed)
    images = lambda n: rng.integers(0, 256, (n, *image), np.uint8)
    labels = lambda n: rng.integers(0, CLASSES, n).astype(np.int32)
    return Dataset(
        name="tiny",
        train_images=images(8),
        train_labels=labels(8),
        test_images=images(test),
        test_labels=labels(test),
        num_classes=CLASSES,
        mean=(0.4,),
        std=(0.3,),
        scale=255.0,
        class_names=tuple("abcd"),
    )


def agents_params():
    params, _ = models.init(MODEL, jax.random.key(0), IMAGE)
    return spread(trees.stack(params, AGENTS), scale=1.0)


def plain(params, data):
    """Accuracy and loss of one model, one image after another."""
    hits, losses = [], []
    for image, label in zip(data.test_images, data.test_labels, strict=True):
        x = jnp.asarray((image / data.scale - 0.4) / 0.3, jnp.float32)
        logits = np.asarray(MODEL.apply({"params": params}, x[None])[1][0], np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        hits.append(np.argmax(logits) == label)
    return np.mean(hits), np.mean(losses)


@pytest.mark.parametrize("batch_size", [5, 23, 500])  # a padded last batch, none, all in one
def test_every_test_image_counts_once(batch_size):
    data, params = dataset(), agents_params()
    result = Evaluator(MODEL, data, batch_size=batch_size)(params, {})
    for i in range(AGENTS):
        accuracy, loss = plain(jax.tree.map(lambda x, i=i: x[i], params), data)
        assert result.local_accuracy[i] == pytest.approx(accuracy, abs=1e-12)
        assert result.local_loss[i] == pytest.approx(loss, rel=1e-5)
    mean = jax.tree.map(lambda x: sum(x[i] for i in range(AGENTS)) / AGENTS, params)
    accuracy, loss = plain(mean, data)
    assert result.consensus_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert result.consensus_loss == pytest.approx(loss, rel=1e-5)
    assert result.consensus_distance == pytest.approx(float(consensus_distance(params)))


def test_one_compilation_for_all_agents_and_evaluations():
    compilations = 0

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, images):
            nonlocal compilations
            compilations += 1
            return TinyModel()(images)

    evaluate = Evaluator(Counting(), dataset(), batch_size=5)
    params, _ = models.init(Counting(), jax.random.key(0), IMAGE)
    stacked, compilations = trees.stack(params, AGENTS), 0
    evaluate(stacked, {})
    evaluate(jax.tree.map(lambda x: 2 * x, stacked), {})
    assert compilations == 1


@pytest.mark.parametrize("devices, batch_devices", [(2, 1), (8, 1), (8, 2)])
def test_sharded_equals_one_device(devices, batch_devices):
    data = dataset(test=83)
    params, _ = models.init(MODEL, jax.random.key(0), IMAGE)
    params = spread(trees.stack(params, 8), scale=1.0)
    plan = Plan(devices, batch_devices=batch_devices)
    one = Evaluator(MODEL, data, batch_size=5)(params, {})
    many = Evaluator(MODEL, data, batch_size=5, plan=plan)(plan.put(params), {})
    np.testing.assert_array_equal(many.local_accuracy, one.local_accuracy)
    np.testing.assert_allclose(many.local_loss, one.local_loss, rtol=1e-6)
    assert many.consensus_accuracy == one.consensus_accuracy
    assert many.consensus_loss == pytest.approx(one.consensus_loss, rel=1e-6)
    assert many.consensus_distance == one.consensus_distance
    assert len(set(one.local_accuracy)) > 2


@pytest.mark.parametrize("devices", [1, 2])
def test_models_side_by_side_are_as_good_as_one_after_another(devices, monkeypatch):
    """As a TPU evaluates them: so many models at once, their channels in one block-diagonal kernel."""
    image, fold_kernels, side_by_side = (8, 8, 1), lowering.fold_kernels, set()
    data, model = dataset(test=83, image=image), models.make("digits-cnn", CLASSES)
    params, _ = models.init(model, jax.random.key(0), image)
    params = spread(trees.stack(params, 8), scale=0.3)

    def counting(kernels, count):
        side_by_side.add(count)
        return fold_kernels(kernels, count)

    monkeypatch.setattr(lowering, "fold_kernels", counting)
    with lowering.compiled_for("cpu"):
        one = Evaluator(model, data)(params, {})
    assert not side_by_side
    with lowering.compiled_for("tpu"):
        plan = Plan(devices)
        many = Evaluator(model, data, plan=plan)(plan.put(params), {})
    assert side_by_side == {8 // devices}
    np.testing.assert_array_equal(many.local_accuracy, one.local_accuracy)
    np.testing.assert_allclose(many.local_loss, one.local_loss, rtol=1e-5)
    assert many.consensus_accuracy == one.consensus_accuracy
    assert many.consensus_loss == pytest.approx(one.consensus_loss, rel=1e-5)
    assert len(set(one.local_accuracy)) > 2


def test_each_of_eight_devices_does_an_eighth(monkeypatch):
    """Read from the compiled program: images that a device shows, times how often it is called."""
    agents, test, batch = 16, 240, 5
    params, _ = models.init(MODEL, jax.random.key(0), IMAGE)
    params = trees.stack(params, agents)
    real = Evaluator._compiled

    def images_a_device(devices):
        plan, shown = Plan(devices), []

        def compiled(evaluator, together):
            share, average = real(evaluator, together)

            def counting(*args):
                text = share.lower(*args).compile().as_text()
                (rows,) = re.findall(r'"known_trip_count":{"n":"(\d+)"}', text)
                assert re.search(rf"= f32\[{batch},\d+\].* dot\(", text)
                shown.append(int(rows) * batch)
                return share(*args)

            return counting, average

        monkeypatch.setattr(Evaluator, "_compiled", compiled)
        Evaluator(MODEL, dataset(test=test), batch_size=batch, plan=plan)(plan.put(params), {})
        return sum(shown)

    assert images_a_device(1) == (agents + 1) * test
    assert images_a_device(8) == (agents + 1) * test / 8


@pytest.mark.parametrize(
    "training, evaluation, expected", [(100, 9, 1), (100, 10, 2), (100, 40, 5), (100, 3000, 500)]
)
def test_the_fewest_epochs_at_which_it_costs_under_a_tenth(training, evaluation, expected):
    assert interval(training, evaluation) == expected


def test_batch_statistics_are_used_and_averaged():
    data = dataset()
    image = (8, 8, 1)
    pixels = np.random.default_rng(1).integers(0, 256, (7, *image), np.uint8)
    data = Dataset(
        **{
            **vars(data),
            "train_images": pixels,
            "train_labels": data.train_labels[:7],
            "test_images": pixels,
            "test_labels": data.test_labels[:7],
        }
    )
    model = models.make("digits-cnn", CLASSES, norm="batch")
    params, state = models.init(model, jax.random.key(0), image)
    params, state = trees.stack((params, state), 2)
    state = spread(jax.tree.map(jnp.ones_like, state), scale=0.3)
    result = Evaluator(model, data, batch_size=4)(params, state)

    def loss(p, s):
        x = jnp.asarray((pixels / 255.0 - 0.4) / 0.3, jnp.float32)
        logits = np.asarray(models.apply_eval(model, p, s, x)[1], np.float64)
        picked = logits[np.arange(7), data.test_labels]
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - picked)

    for i in range(2):
        expected = loss(*jax.tree.map(lambda x, i=i: x[i], (params, state)))
        assert result.local_loss[i] == pytest.approx(expected, rel=1e-5)
    assert result.consensus_loss == pytest.approx(loss(*consensus((params, state))), rel=1e-5)


def test_consensus_distance_by_hand():
    # Means 2 and (0, 1); squared distances of the two agents: 1 + 9 + 1 each.
    params = {"a": jnp.array([[1.0], [3.0]]), "b": jnp.array([[3.0, 0.0], [-3.0, 2.0]])}
    np.testing.assert_allclose(consensus_distance(params), np.sqrt(11.0), rtol=1e-6)
    assert float(consensus_distance(trees.stack({"a": jnp.arange(3.0)}, 4))) == 0.0
    np.testing.assert_allclose(consensus(params)["b"], [0.0, 1.0])


def test_summary_of_known_numbers():
    local = np.array([0.5, 0.7, 0.9])
    summary = Evaluation(local, np.array([1.0, 2.0, 6.0]), 0.8, 0.4, 0.1).summary()
    assert summary == pytest.approx(
        {
            "local_accuracy_mean": 0.7,
            "local_accuracy_min": 0.5,
            "local_accuracy_max": 0.9,
            "local_accuracy_std": np.sqrt(0.08 / 3),
            "local_loss_mean": 3.0,
            "consensus_accuracy": 0.8,
            "consensus_loss": 0.4,
            "consensus_distance": 0.1,
        }
    )
