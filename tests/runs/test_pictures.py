"""Pictures of trained models, read back from matplotlib's own objects."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from ccl_jax.runs import pictures
from tests.support import tiny_main


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, which are written all the same."""
    figures, save = [], Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_confusion_has_shares_and_numbers(tmp_path, drawn):
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 5, 5]])
    pictures.confusion(counts, ("a", "b", "$c$"), tmp_path / "c.png", "a title")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[75, 25, 0], [0, 0, 0], [0, 50, 50]], atol=1e-9
    )
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "3", (1, 0): "1", (1, 2): "5", (2, 2): "5"}  # (column, row)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "\\$c\\$"]
    assert matplotlib.image.imread(tmp_path / "c.png").std() > 0


def test_confusion_of_many_classes_has_no_numbers(tmp_path, drawn):
    pictures.confusion(np.eye(1000, dtype=int), list(map(str, range(1000))), tmp_path / "c.png")
    assert len(drawn[0].axes[0].texts) == 0 and max(drawn[0].get_size_inches()) < 14


@pytest.mark.parametrize("number", [0, 1, 5, 12])
def test_mistakes_show_what_is_and_what_was_said(number, tmp_path, drawn):
    image = np.linspace(0, 1, 27).reshape(3, 3, 3)
    found = [
        pictures.Mistake(image[..., : 3 - 2 * (k % 2)], f"is {k}", "no", 0.5) for k in range(number)
    ]
    pictures.mistakes(found, tmp_path / "m.png", "t")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.images]
    assert titles == [f"is: is {k}\ntaken for: no (50.0%)" for k in range(number)]
    for axes, mistake in zip(drawn[0].axes, found, strict=False):
        np.testing.assert_allclose(np.squeeze(mistake.image), axes.images[0].get_array())


def test_features_are_drawn_in_the_plane_in_which_they_differ_most(tmp_path, drawn):
    """Of what differs by 10, 1 and 0.1 along three directions, the first two are seen."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    plain = rng.normal(size=(2, 200, 3)) * np.array([10, 1, 0.1])
    flat = plain.reshape(-1, 3)
    values = plain @ turn + 7
    seen = pictures.components(values)
    for k in range(2):
        wanted = plain[..., k] - flat[:, k].mean()
        sign = np.sign((seen[..., k] * wanted).sum())
        np.testing.assert_allclose(sign * seen[..., k], wanted, atol=0.4)
    labels = np.arange(200) % 2
    pictures.features(("agent 0", "agent 3"), values, labels, ("cat", "dog"), tmp_path / "f.png")
    (axes,) = drawn[0].axes
    dots, crosses = axes.collections
    np.testing.assert_allclose(dots.get_offsets(), seen[0])
    np.testing.assert_allclose(crosses.get_offsets(), seen[1])
    joined = np.array([line.get_xydata() for line in axes.lines[:200]])
    np.testing.assert_allclose(joined, seen.transpose(1, 0, 2))
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["agent 0", "agent 3", "cat", "dog"]
    assert axes.get_legend().get_title().get_text() == ""
    three = ("cat", "dog", "bird")
    pictures.features(("agent 0", "agent 3"), values, labels, three, tmp_path / "f.png")
    assert drawn[1].axes[0].get_legend().get_title().get_text() == "2 of 3 classes"


@pytest.mark.parametrize(
    ("flags", "there"),
    [
        (["--lambda_m=0.1"], True),
        (["--measure_heterogeneity"], True),
        ([], False),
        (["--lambda_d=0.1", "--nofigures"], False),
    ],
)
def test_a_run_with_cross_features_draws_them(flags, there, tmp_path):
    argv = ["x", "--algorithm=dsgd", "--epochs=1", f"--workdir={tmp_path}", "--devices=1", *flags]
    assert tiny_main.main(argv) == 0
    assert (tmp_path / "figures" / "features.png").exists() == there


def test_a_run_draws_its_own_features_of_neighbours_on_test_images(tmp_path, monkeypatch):
    import ccl_jax
    from ccl_jax.data import datasets

    seen = []
    monkeypatch.setattr(pictures, "features", lambda *arguments: seen.append(arguments))
    argv = ["x", "--algorithm=dsgd", "--epochs=1", f"--workdir={tmp_path}", "--lambda_m=0.1"]
    assert tiny_main.main([*argv, "--agents=5", "--topology=chain"]) == 0
    ((of, values, labels, names, file, _),) = seen
    digits, run = datasets.load("digits"), ccl_jax.load_run(tmp_path)
    chosen = np.concatenate([np.flatnonzero(digits.test_labels == k)[:15] for k in range(8)])
    assert of == ("agent 0", "agent 1") and file == tmp_path / "figures" / "features.png"
    np.testing.assert_array_equal(labels, digits.test_labels[chosen])
    assert names == digits.class_names
    for agent in (0, 1):
        wanted, _ = run.features_and_logits(digits.test_images[chosen], agent)
        np.testing.assert_allclose(values[agent], wanted, atol=1e-6)
