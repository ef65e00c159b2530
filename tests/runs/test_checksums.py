"""A run goes on with what it was started with: its split, its graph, its images."""

import json

import numpy as np
import pytest

from ccl_jax.devices import hosts
from tests.support import tiny_main

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
LABELS, USERS = np.arange(40) % 4, np.arange(40) // 10
FLAGS = ("--dataset=npz", "--model=mlp", "--algorithm=dsgd", "--agents=4", "--batch_size=4")
QUIET = ("--partition=users", "--nofigures", "--noprogress", "--eval_every=9")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of one epoch that is to have two, its data and its graph; and how to go on with others."""
    folder = tmp_path_factory.mktemp("begun")

    def train(*flags, images=IMAGES, labels=LABELS, users=USERS, graph="0 1\n1 2\n2 3\n3 0\n"):
        arrays = {"train_images": images, "train_labels": labels, "users": users}
        np.savez(folder / "set.npz", **arrays, test_images=IMAGES[:8], test_labels=LABELS[:8])
        (folder / "graph.txt").write_text(graph)
        places = (f"--data_dir={folder}/set.npz", f"--topology=file:{folder}/graph.txt")
        return tiny_main.main(["x", *FLAGS, *QUIET, *places, f"--workdir={folder}/run", *flags])

    assert train("--epochs=1") == 0
    return folder / "run", lambda **others: train("--epochs=2", "--resume", **others)


OTHERS = {
    "labels": ({"labels": np.roll(LABELS, 1)}, "another split (labels, or who holds which image)"),
    "holders": ({"users": np.roll(USERS, 1)}, "another split (labels, or who holds which image)"),
    "more images": (
        {
            "images": np.concatenate([IMAGES, IMAGES]),
            "labels": np.tile(LABELS, 2),
            "users": np.tile(USERS, 2),
        },
        "another split (labels, or who holds which image)",
    ),
    "graph": ({"graph": "0 1\n1 2\n2 3\n"}, "another graph (or other weights)"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_refused_and_nothing_is_written(case, begun, capsys):
    run, resume = begun
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    others, says = OTHERS[case]
    assert resume(**others) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {run} was started with {says}: files that it read have changed")
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_other_images_are_told_of_and_the_same_are_not(begun, capsys, monkeypatch):
    run, resume = begun
    agreed = []
    monkeypatch.setattr(hosts, "agree", agreed.append)
    started = json.loads((run / "config.json").read_text())["made_with"]["data"]
    assert set(started) == {"split", "graph", "images"}
    other = IMAGES.copy()
    other[0, 0, 0] ^= 1
    assert resume(images=other) == 0
    # What several processes would compare: the run, and the checkpoint that each goes on from.
    settings, checkpoint = agreed
    assert settings["lr"] == 0.1 and settings["split"] == started["split"]
    assert "quiet" not in settings and "data_dir" not in settings
    assert list(checkpoint.values()) == [3]
    error = capsys.readouterr().err
    assert f"was started with others: images {started['images']} -> " in error
    assert resume() == 0  # It has ended: what it was made of does not matter.
    assert "has ended already" in capsys.readouterr().err
