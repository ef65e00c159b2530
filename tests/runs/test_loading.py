"""`load_run`: what a run says of itself is what its loaded models do."""

import json
import re
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ccl_jax
from ccl_jax import models
from ccl_jax.data import datasets
from ccl_jax.runs.config import Config
from tests.support import saved_run, tiny_main

CONFIG = Config(model="digits-cnn", agents=3, algorithm="dsgd")


def images(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, *shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three agents on digits for two epochs."""
    path = tmp_path_factory.mktemp("runs") / "run"
    flags = ("--algorithm=dsgdm-n", "--epochs=2", "--eval_every=1", "--nofigures")
    assert tiny_main.main(["x", *flags, f"--workdir={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    saved_run.save(path, CONFIG, saved_run.facts(), steps=(10, 20, 30))
    return path


def test_predictions_are_right_as_often_as_the_run_recorded(trained):
    run, digits = ccl_jax.load_run(trained), datasets.load("digits")
    summary = json.loads((trained / "summary.json").read_text())
    right = lambda agent: int(
        (run.predict(digits.test_images, agent).argmax(-1) == digits.test_labels).sum()
    )
    assert right(None) == round(360 * summary["consensus_accuracy"])
    local = [right(agent) for agent in range(3)]
    assert min(local) == round(360 * summary["local_accuracy_min"])
    assert max(local) == round(360 * summary["local_accuracy_max"])
    assert sum(local) == round(3 * 360 * summary["local_accuracy_mean"])
    assert (run.step, run.row["consensus_accuracy"]) == (
        summary["steps"],
        summary["consensus_accuracy"],
    )


@pytest.mark.parametrize("precision, said", [("default", "DEFAULT"), ("highest", "HIGHEST")])
def test_products_are_as_precise_as_in_training(precision, said, tmp_path):
    """On a CPU all are; what would be asked of an accelerator stands in the program."""
    config = CONFIG.replace(precision=precision)
    saved_run.save(tmp_path, config, saved_run.facts())
    run = ccl_jax.load_run(tmp_path)
    pixels = images(2, *run.dataset.image_shape)
    text = jax.jit(run.logits).lower(pixels).as_text()
    found = set(re.findall(r"precision = \[(\w+), \w+\]", text))
    assert found == {said}


def test_facts_of_the_dataset_come_along(trained):
    run, digits = ccl_jax.load_run(trained), datasets.load("digits")
    assert run.dataset.class_names == digits.class_names == tuple("0123456789")
    assert run.dataset.image_shape == (8, 8, 1) and run.dataset.side == 8
    assert (run.dataset.mean, run.dataset.std, run.dataset.scale) == (
        (0.3057544,),
        (0.3762169,),
        16.0,
    )
    assert (run.config.algorithm, run.config.agents, run.config.epochs) == ("dsgdm-n", 3, 2)


def test_a_run_of_before_dataset_json_asks_its_dataset(trained, tmp_path):
    run = ccl_jax.load_run(trained)
    (trained / "dataset.json").rename(tmp_path / "away.json")
    try:
        assert ccl_jax.load_run(trained).dataset == run.dataset
    finally:
        (tmp_path / "away.json").rename(trained / "dataset.json")


def test_probabilities_are_those_of_the_normalised_images(saved):
    run, pixels = ccl_jax.load_run(saved), images(60, 8, 8, 1)
    normalised = (jnp.asarray(pixels, jnp.float32) / 255 - 0.4) / 0.3
    for agent, variables in ((None, run.consensus), (2, run.variables(2))):
        _, logits = run.model.apply(variables, normalised)
        found = run.predict(pixels, agent)
        np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=2e-6)
        # In 60 = 25 + 25 + 10, one alone, and as floats.
        np.testing.assert_allclose(run.predict(pixels[7:8], agent), found[7:8], atol=2e-6)
        np.testing.assert_allclose(run.predict(pixels.astype(np.float32), agent), found, atol=1e-7)
    assert run.predict(pixels[:0]).shape == (0, 10)


def test_the_consensus_model_is_the_mean_of_the_agents(saved):
    run = ccl_jax.load_run(saved)
    by_hand = lambda x: np.mean([x[0], x[1], x[2]], axis=0)
    jax.tree.map(
        lambda mean, x: np.testing.assert_allclose(mean, by_hand(x), rtol=1e-6, atol=1e-7),
        run.consensus,
        run.agents,
    )
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[1]), run.variables(1), run.agents)


def test_larger_images_are_seen_in_their_middle(tmp_path):
    """As in the evaluation of a streamed set: of 12 x 12 pixels rows and columns 2 to 9."""
    saved_run.save(tmp_path / "run", CONFIG, saved_run.facts()._replace(side=12))
    run, pixels = ccl_jax.load_run(tmp_path / "run"), images(4, 12, 12, 1)
    np.testing.assert_array_equal(run.predict(pixels), run.predict(pixels[:, 2:10, 2:10]))
    with pytest.raises(ValueError, match=r"\[4, 10, 12, 1\].* \[n, 8, 8, 1\] or \[n, 12, 12, 1\]"):
        run.predict(images(4, 10, 12, 1))


def test_pixels_of_another_range_are_warned_of(saved):
    run, pixels = ccl_jax.load_run(saved), images(5, 8, 8, 1).astype(np.float32)
    said = lambda low, high: f"go from {low} to {high:g}, those of .* from 0 to 255"
    for wrong in (pixels / 255, pixels * 2, pixels - 1):
        low, high = wrong.min(), wrong.max()
        with pytest.warns(UserWarning, match=said(f"{low:g}", high)):
            answers = run.predict(wrong)
        assert answers.shape == (5, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.predict(pixels)
        run.predict(np.zeros((1, 8, 8, 1)))
        # Within a program of the user's own there are no pixels yet.
        jax.jit(run.predict)(pixels / 255)


def test_a_run_is_shown_in_one_line(saved):
    run = ccl_jax.load_run(saved)
    assert repr(run) == f"LoadedRun('{saved}': dsgd on made up, 3 agents, step 30)"


def test_any_checkpoint_can_be_chosen(saved):
    steps = {name: ccl_jax.load_run(saved, name).step for name in ("last", "best", "10", 10, 20)}
    assert steps == {"last": 30, "best": 20, "10": 10, 10: 10, 20: 20}
    kernels = {
        s: np.asarray(ccl_jax.load_run(saved, s).agents["params"]["head"]["kernel"])
        for s in (10, 20)
    }
    assert not np.array_equal(kernels[10], kernels[20])
    for which in ("first", 11, "-10", ""):
        with pytest.raises(ValueError, match=r"not in .*give last, best or a step: .* 10, 20, 30"):
            ccl_jax.load_run(saved, which)


def test_push_sums_models_are_divided_by_their_weights(tmp_path):
    """What agents send is the numerator."""
    config = CONFIG.replace(algorithm="sgp", topology="exponential")
    saved_run.save(tmp_path, config, saved_run.facts())
    run = ccl_jax.load_run(tmp_path)
    arrays = ccl_jax.runs.loading.Checkpoints(tmp_path / "checkpoints").arrays(30)
    numerator, weight = arrays[".params['head']['kernel']"], arrays[".algorithm.weight"]
    assert len(set(weight.tolist())) == 3
    expected = numerator / weight[:, None, None]
    np.testing.assert_allclose(run.agents["params"]["head"]["kernel"], expected, rtol=1e-6)


def test_batch_statistics_come_along(tmp_path):
    config = CONFIG.replace(norm="batch")
    saved_run.save(tmp_path, config, saved_run.facts())
    run, pixels = ccl_jax.load_run(tmp_path), images(3, 8, 8, 1)
    assert set(run.consensus) == {"params", "batch_stats"}
    flat = flax.traverse_util.flatten_dict(run.variables(0)["batch_stats"])
    assert all(x.std() > 0 for key, x in flat.items() if key[-1] == "var")
    normalised = (jnp.asarray(pixels, jnp.float32) / 255 - 0.4) / 0.3
    params, stats = run.variables(0)["params"], run.variables(0)["batch_stats"]
    _, logits = models.apply_eval(run.model, params, {"batch_stats": stats}, normalised)
    np.testing.assert_allclose(run.logits(pixels, 0), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("agent", [-1, 3])
def test_an_agent_that_is_not_there(saved, agent):
    with pytest.raises(ValueError, match=rf"agent is {agent}; .* has agents 0 to 2"):
        ccl_jax.load_run(saved).predict(images(1, 8, 8, 1), agent)


@pytest.mark.parametrize(
    "shape",
    [(8, 8, 1), (2, 8, 8), (2, 7, 8, 1), (2, 8, 8, 3), (2, 8, 9, 1), (2, 28, 28, 1)],
)
def test_images_of_another_shape(saved, shape):
    with pytest.raises(
        ValueError, match=r"was trained on \[n, 8, 8, 1\]: bring them to that shape"
    ):
        ccl_jax.load_run(saved).predict(np.zeros(shape, np.uint8))


def test_what_is_no_run_says_so(tmp_path, saved):
    with pytest.raises(
        ValueError, match=r"is no run \(no config.json\): give the directory of a run"
    ):
        ccl_jax.load_run(tmp_path)
    with pytest.raises(
        ValueError, match=r"is no run .*: it holds the runs run; give the path of one"
    ):
        ccl_jax.load_run(saved.parent)
    saved_run.save(tmp_path / "bare", CONFIG, saved_run.facts(), steps=())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        ccl_jax.load_run(tmp_path / "bare")


def test_a_damaged_checkpoint_is_passed_over_but_for_one_that_was_asked_for(tmp_path, capsys):
    saved_run.save(tmp_path, CONFIG, saved_run.facts(), steps=(10, 20))
    (tmp_path / "checkpoints" / "20" / "progress.json").write_text("{}")
    assert ccl_jax.load_run(tmp_path).step == 10
    assert "20 is damaged (progress.json has changed" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"20 is damaged .*; take another: .* steps 10, 20"):
        ccl_jax.load_run(tmp_path, 20)


def test_settings_of_another_version(tmp_path):
    saved_run.save(tmp_path, CONFIG, saved_run.facts())
    file = tmp_path / "config.json"
    there = json.loads(file.read_text())
    del there["lambda_m"]  # of before there was one: its default
    file.write_text(json.dumps(there))
    assert ccl_jax.load_run(tmp_path).config.lambda_m == 0.0
    file.write_text(json.dumps(there | {"gravity": 1, "made_with": {"ccl_jax": "9.9"}}))
    with pytest.raises(ValueError, match=r"does not know \(gravity\); use ccl_jax 9\.9"):
        ccl_jax.load_run(tmp_path)


def test_a_model_of_another_shape(tmp_path):
    saved_run.save(tmp_path, CONFIG, saved_run.facts())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"agents": 4}))
    with pytest.raises(ValueError, match=r"is \(3, .* and should be \(4, "):
        ccl_jax.load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "config",
            {"agents": "3"},
            "config.json cannot be used: agents is '3'; it must be a whole",
        ),
        ("config", {"lr": [0.1]}, "config.json cannot be used: lr is .*; it must be a number"),
        ("config", {"feature_loss": 3}, "feature_loss is 3; it must be texts"),
        ("dataset", {"class_names": 3}, "dataset.json is damaged"),
        ("dataset", {"image_shape": "8x8"}, "dataset.json is damaged"),
        ("dataset", {"std": [None]}, "dataset.json is damaged"),
    ],
)
def test_files_that_somebody_has_written_in(name, change, said, tmp_path):
    saved_run.save(tmp_path, CONFIG, saved_run.facts())
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        ccl_jax.load_run(tmp_path)
