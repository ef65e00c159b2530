"""The picture of the idea: whose images it shows, and what the command writes."""

import matplotlib.image
import numpy as np

from ccl_jax.data import datasets
from ccl_jax.runs import inputs
from experiments import idea
from experiments.digits import DEFAULTS


def test_each_agent_shows_images_that_it_trains_on():
    data = inputs.load(DEFAULTS)
    for own, shown in zip(data.partition.indices, idea.some_images(9), strict=True):
        held = data.dataset.train_images[own, ..., 0]
        assert shown.shape == (9, 8, 8) and len({image.tobytes() for image in shown}) == 9
        assert all((held == image).all(axis=(1, 2)).any() for image in shown)


def test_classes_are_shown_in_their_shares():
    digits = datasets.load("digits")
    label_of = {
        image.tobytes(): label
        for image, label in zip(digits.train_images[..., 0], digits.train_labels, strict=True)
    }
    held = inputs.load(DEFAULTS).partition.indices
    for own, shown in zip(held, idea.some_images(30), strict=True):
        shares = np.bincount(digits.train_labels[own], minlength=10) / len(own)
        seen = np.bincount([label_of[image.tobytes()] for image in shown], minlength=10) / 30
        assert np.abs(seen - shares).max() < 1.5 / 30


def test_the_command_draws_it(tmp_path, capsys):
    path = tmp_path / "new" / "idea.png"
    assert idea.main(["idea", f"--output={path}"]) == 0
    assert capsys.readouterr().out == f"figure: {path}\n"
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (round(150 * idea.WIDTH), round(150 * idea.HEIGHT))


def test_images_lie_in_their_order():
    images = np.arange(9).repeat(4).reshape(9, 2, 2).astype(np.uint8)
    figure = idea.draw([images] * 8)
    montage = figure.axes[0].images[0].get_array()
    assert montage[1::4, 1::4].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    # Eight on the ring, and the two whose features are told again.
    assert [len(axes.images) for axes in figure.axes] == [8, 2]
