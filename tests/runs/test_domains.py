"""Several domains in one run: joined by the names of their classes, an agent holds one."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ccl_jax.runs import inputs, runner
from experiments import cli, digits, imagenette


def run(main, workdir, *flags):
    """Runs a main in this process for an epoch; returns its exit code."""
    argv = ("main", "--noprogress", "--epochs=1", f"--workdir={workdir}", *flags)
    return cli.run_main(runner.main, main.DEFAULTS, main.__doc__, argv)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """A folder of domains: photo/<class>/ in grey, sketch/train/<class>/ and val/ in white."""
    root = tmp_path_factory.mktemp("domains")
    for place, count, value in (
        ("photo", 10, 100),
        ("sketch/train", 8, 255),
        ("sketch/val", 2, 255),
    ):
        for name in ("ant", "bee"):
            (root / place / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (8, 8), (value,) * 3).save(root / place / name / f"{k}.png")
    return root


@pytest.mark.slow
def test_a_folder_of_domains(domains, tmp_path, capsys):
    flags = ("--dataset=folder", "--image_size=8", f"--domain=folder:{domains}", "--agents=4")
    more = ("--batch_size=4", "--partition=iid", "--model=digits-cnn", "--lr=0.01")
    assert run(imagenette, tmp_path / "run", *flags, *more) == 0
    split = read(tmp_path / "run" / "partition.json")
    assert split["domains"] == [f"folder:{domains}/photo", f"folder:{domains}/sketch"]
    assert split["domain_by_agent"] == [0, 1, 0, 1]
    # Of ten photos a class a fifth is held out.
    assert split["samples_by_agent"] == [8, 8, 8, 8] and split["classes"] == ["ant", "bee"]
    assert capsys.readouterr().err == (
        f"note: {domains}/photo is not divided into train/ and val/: 20% of each class, drawn with "
        "seed 0 in every run, are for testing.\n"
    )


def test_agents_see_their_own_domain_only(domains, tmp_path):
    config = imagenette.DEFAULTS.replace(
        dataset="folder",
        domain=(f"folder:{domains}",),
        agents=5,
        batch_size=4,
        partition="iid",
        seed=3,
    )
    found = inputs.load(config)
    (note,) = found.notes
    assert note.startswith(
        f"{domains}/photo is not divided into train/ and val/: 20% of each class"
    )
    shades = [set(found.dataset.train_images[own].ravel()) for own in found.partition.indices]
    assert shades == [{100}, {255}, {100}, {255}, {100}]
    assert len(found.dataset.test_labels) == 2 * 2 + 2 * 2
    # Whatever the seed of the run, the same photos are for testing.
    other = inputs.load(config.replace(seed=4))
    np.testing.assert_array_equal(found.dataset.test_images, other.dataset.test_images)
    # Beside another set, or a folder of one's own, the domains are more.
    own = shutil.copytree(domains / "sketch", tmp_path / "own")
    more = inputs.load(config.replace(data_dir=str(own)))
    assert more.report["domain_by_agent"] == [0, 1, 2, 0, 1]
    assert more.report["domains"][0] == f"folder:{own}"
    for wrong, message in (
        ({"domain": (f"folder-full:{domains}/photo",)}, "folder-full:.* is streamed; only sets"),
        ({"dataset": "folder-full", "data_dir": str(domains / "photo")}, "is streamed; only sets"),
        ({"agents": 1}, "2 domains need at least 2 agents"),
        # One domain twice would count twice.
        ({"data_dir": f"{domains}/photo/../sketch"}, "domain: folder:.*sketch is given 2 times"),
        ({"domain": (f"folder:{domains}", f"folder:{domains}/photo")}, "photo is given 2 times"),
        ({"domain": (), "data_dir": str(domains)}, "a folder of domains is given as --domain"),
    ):
        with pytest.raises(ValueError, match=message):
            inputs.load(config.replace(**wrong))


def number_sets(root, numbers):
    """An .npz and class folders: images of class k have the shade 20 k, both of the same classes."""
    for k in numbers:
        (root / "folder" / str(k)).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (20 * k,) * 3).save(root / "folder" / str(k) / f"{i}.png")
    labels = np.tile(numbers, 6)
    images = np.broadcast_to((20 * labels)[:, None, None, None], (len(labels), 8, 8, 3))
    arrays = {"train_images": images.astype(np.uint8), "train_labels": labels}
    arrays |= {"test_images": images.astype(np.uint8), "test_labels": labels}
    return beside_the_folder(root, arrays)


def beside_the_folder(root, arrays):
    """The .npz of these arrays as first set, the folder as a domain beside it."""
    np.savez(root / "set.npz", **arrays)
    return digits.DEFAULTS.replace(
        dataset="npz",
        data_dir=str(root / "set.npz"),
        domain=(f"folder:{root / 'folder'}",),
        agents=2,
        batch_size=2,
        partition="iid",
    )


def test_classes_of_domains_are_joined_by_name(tmp_path):
    # 10 comes before 2 among folders, and after it among numbers.
    dataset = inputs.load(number_sets(tmp_path, range(12))).dataset
    assert dataset.class_names == tuple(map(str, range(12)))
    for images, labels in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ):
        np.testing.assert_array_equal(images[:, 0, 0, 0], 20 * labels)


def test_domains_are_split_by_draws_of_their_own(tmp_path):
    """Agents 0 and 1, 2 and 3 hold two domains: one draw for both would give them the same classes."""
    config = number_sets(tmp_path, range(12)).replace(partition="classes", classes_per_agent=2)
    found = inputs.load(config.replace(agents=8))
    held = [set(found.dataset.train_labels[own]) for own in found.partition.indices]
    assert all(len(classes) == 2 for classes in held)
    assert held[0::2] != held[1::2]
    # The first domain's is the draw that it has alone.
    alone = inputs.load(config.replace(agents=4, domain=()))
    first = [set(alone.dataset.train_labels[own]) for own in alone.partition.indices]
    assert held[0::2] == first


def test_image_files_have_the_size_of_the_set_beside_which_they_are(tmp_path):
    shades = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)
    for name in ("0", "1"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(shades).convert("RGB").save(tmp_path / "folder" / name / f"{i}.png")
    arrays = {
        f"{part}_{what}": value
        for part in ("train", "test")
        for what, value in (
            ("images", np.zeros((4, 48, 48, 3), np.uint8)),
            ("labels", np.arange(4) % 2),
        )
    }
    found = inputs.load(beside_the_folder(tmp_path, arrays))
    own = found.partition.indices[1][0]
    np.testing.assert_array_equal(found.dataset.train_images[own, ..., 0], shades)


def test_labels_that_leave_classes_out(tmp_path):
    config = number_sets(tmp_path, range(1, 6))
    alone = config.replace(domain=())
    found = inputs.load(alone)
    assert found.dataset.num_classes == 6
    assert found.notes == (
        f"npz:{tmp_path}/set.npz: there is no training image of 1 of 6 classes (0); --renumber_labels "
        "leaves out classes that have no test image either.",
    )
    renumbered = inputs.load(alone.replace(renumber_labels=True))
    assert renumbered.dataset.num_classes == 5 and renumbered.notes == ()
    assert renumbered.report["classes"] == ("1", "2", "3", "4", "5")
    np.testing.assert_array_equal(
        renumbered.dataset.train_images[:, 0, 0, 0], 20 * (renumbered.dataset.train_labels + 1)
    )
    # The folder has the classes 1 to 5, which only then are those of the .npz.
    with pytest.raises(ValueError, match="only one has 0"):
        inputs.load(config)
    assert inputs.load(config.replace(renumber_labels=True)).dataset.num_classes == 5


def test_classes_that_no_agent_holds_are_named(tmp_path):
    config = number_sets(tmp_path, range(3)).replace(domain=(), partition="classes")
    found = inputs.load(config.replace(agents=1, classes_per_agent=2))
    (lost,) = {0, 1, 2} - set(found.dataset.train_labels[found.partition.indices[0]])
    assert found.notes == (
        f"no agent holds an image of 1 of 3 classes ({lost}): take more agents or a less uneven split.",
    )
    assert inputs.load(config.replace(agents=2, classes_per_agent=2)).notes == ()
