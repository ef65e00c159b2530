"""What a trained run says of images, counted again by hand, and images that it cannot be shown."""

import csv
import dataclasses
import json
import re
import shutil

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

import ccl_jax
from ccl_jax.data import datasets, heterogeneity, images
from ccl_jax.runs.config import Config
from experiments import predict, shown
from tests.support import saved_run, small_files, tiny_main

CONFIG = Config(model="digits-cnn", agents=2, algorithm="dsgd")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    flags = ("--algorithm=qg-dsgdm-n", "--epochs=3", "--eval_every=1", "--nofigures", "--alpha=10")
    assert tiny_main.main(["x", *flags, f"--workdir={path}"]) == 0
    return path


def run(directory, *flags) -> int:
    return predict.main(["predict", f"--run={directory}", *flags])


def table(out: str, first: str) -> list[list[str]]:
    """The rows of the table whose head begins so."""
    part = next(part for part in out.split("\n\n") if part.startswith(first))
    return [line.split() for line in part.splitlines()[2:]]


def rows(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_full_disk_leaves_the_table_that_was_there(trained, tmp_path, monkeypatch):
    # Half a line, and then an OSError.
    full = lambda file, *_: file.write("half") and tmp_path.read_text()
    (tmp_path / "a.csv").write_text("before")
    monkeypatch.setattr(predict, "write_csv", full)
    assert run(trained, f"--output={tmp_path}/a.csv") == 1
    assert [f.read_text() for f in tmp_path.iterdir() if f.suffix != ".png"] == ["before"]


def test_the_test_set_comes_out_as_the_run_recorded_it(trained, capsys):
    assert run(trained) == 0
    out = capsys.readouterr().out
    summary, digits = json.loads((trained / "summary.json").read_text()), datasets.load("digits")
    loaded = ccl_jax.load_run(trained)
    right = round(360 * summary["consensus_accuracy"])
    assert 180 < right < 360
    assert out.startswith(
        f"qg-dsgdm-n, consensus model, step {loaded.step} (epoch 3): {right} of 360 digits images "
        f"right, {right / 3.6:.2f}%\n"
    )
    by_agent = [int(row[1]) for row in table(out, "agent")]
    assert min(by_agent) == round(360 * summary["local_accuracy_min"])
    assert max(by_agent) == round(360 * summary["local_accuracy_max"])
    assert sum(by_agent) == round(3 * 360 * summary["local_accuracy_mean"])
    said = np.asarray(loaded.predict(digits.test_images)).argmax(axis=-1)
    counts = np.zeros((10, 10), int)
    for true, taken in zip(digits.test_labels, said, strict=True):
        counts[true, taken] += 1
    assert [[int(n) for n in row[1:]] for row in table(out, "true class")] == counts.tolist()
    assert counts.trace() == right
    for k, row in enumerate(table(out, "class")):
        assert row[1:3] == [str(counts[k].sum()), f"{100 * counts[k, k] / counts[k].sum():.2f}%"]
    for name in ("confusion", "mistakes"):
        assert f"{trained}/figures/{name}.png" in out
        assert matplotlib.image.imread(trained / "figures" / f"{name}.png").std() > 0


def test_one_agents_model_into_a_file(trained, tmp_path, capsys):
    assert run(trained, "--agent=1", "--checkpoint=best", f"--output={tmp_path}/in/a.csv") == 0
    out, digits = capsys.readouterr().out, datasets.load("digits")
    assert "qg-dsgdm-n, agent 1, step" in out
    found, loaded = rows(tmp_path / "in" / "a.csv"), ccl_jax.load_run(trained, "best")
    probabilities = np.asarray(loaded.predict(digits.test_images, agent=1))
    assert [row["file"] for row in found] == [str(k) for k in range(360)]
    assert [int(row["class"]) for row in found] == probabilities.argmax(-1).tolist()
    assert [int(row["label"]) for row in found] == digits.test_labels.tolist()
    said = [float(row["probability"]) for row in found]
    np.testing.assert_allclose(said, probabilities.max(-1), atol=1e-6)
    names = {path.name for path in (tmp_path / "in").iterdir()}
    assert names == {"a.csv", "a-confusion.png", "a-mistakes.png"}


def test_the_surest_mistakes_come_first(trained):
    loaded, digits = ccl_jax.load_run(trained), datasets.load("digits")
    images = shown.test_set(digits, loaded.dataset, 0)
    found = predict.predict(loaded, images, None, everybody=False)
    mistakes = predict.surest_mistakes(loaded, images, found)
    wrong = np.flatnonzero(found.classes != digits.test_labels)
    surest = sorted(wrong, key=lambda k: -found.probabilities[k])[:12]
    assert len(mistakes) == 12
    for mistake, k in zip(mistakes, surest, strict=True):
        assert (mistake.true, mistake.taken_for) == (
            str(digits.test_labels[k]),
            str(found.classes[k]),
        )
        assert mistake.probability == found.probabilities[k]
        np.testing.assert_allclose(mistake.image * 16, digits.test_images[k])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The first 40 test images as grey PNG files of 0 to 255, and in a folder for each class."""
    folder, digits = tmp_path_factory.mktemp("pictures"), datasets.load("digits")
    for k in range(40):
        pixels = np.round(digits.test_images[k, ..., 0] * (255 / 16)).astype(np.uint8)
        label = str(digits.test_labels[k])
        (folder / "sorted" / label).mkdir(parents=True, exist_ok=True)
        (folder / "flat").mkdir(exist_ok=True)
        for path in (folder / "flat", folder / "sorted" / label):
            Image.fromarray(pixels).save(path / f"{k:02}.png")
    return folder


def test_a_folder_of_images_is_brought_to_the_runs_range(trained, pictures, capsys):
    """White is 255 in a file and 16 in the run: what comes out is what the test set gives."""
    assert run(trained, f"--images={pictures}/flat") == 0
    out, err = capsys.readouterr()
    found = list(csv.DictReader(out.splitlines()))
    wanted = np.asarray(ccl_jax.load_run(trained).predict(datasets.load("digits").test_images[:40]))
    assert list(found[0]) == ["file", "class", "probability"]
    assert [row["file"] for row in found] == [f"{k:02}.png" for k in range(40)]
    assert [int(row["class"]) for row in found] == wanted.argmax(-1).tolist()
    said = [float(row["probability"]) for row in found]
    np.testing.assert_allclose(said, wanted.max(-1), atol=0.02)
    assert err == "note: white, 255 in a file, is 16 in the run's images\n"


def test_a_folder_for_each_class_is_counted(trained, pictures, tmp_path, capsys):
    digits = datasets.load("digits")
    said = np.asarray(ccl_jax.load_run(trained).predict(digits.test_images[:40])).argmax(-1)
    right = int((said == digits.test_labels[:40]).sum())
    assert run(trained, f"--images={pictures}/sorted") == 0
    out, err = capsys.readouterr()
    assert f"note: {right} of 40 are of the class that is given" in err
    assert all(
        row["file"].split("/")[0] == row["label"] for row in csv.DictReader(out.splitlines())
    )
    assert run(trained, f"--images={pictures}/sorted", f"--output={tmp_path}/x.csv") == 0
    out = capsys.readouterr().out
    assert f": {right} of 40 digits images right" in out and (tmp_path / "x-mistakes.png").exists()
    assert len(rows(tmp_path / "x.csv")) == 40


def test_other_sizes_and_colours_are_changed_and_said(trained, tmp_path, capsys):
    loaded, folder = ccl_jax.load_run(trained), tmp_path / "images"
    folder.mkdir()
    grey = (datasets.load("digits").test_images[0, ..., 0] * 15).astype(np.uint8)
    Image.fromarray(np.kron(grey, np.ones((3, 3), np.uint8))).save(folder / "large.png")
    colour = np.stack([grey, grey // 2, 0 * grey], axis=-1)
    Image.fromarray(colour).save(folder / "colour.png")
    (folder / "notes.txt").write_text("mine")
    assert run(trained, f"--images={folder}") == 0
    out, err = capsys.readouterr()
    assert "note: 1 of 2 images were resized to 8 x 8 pixels" in err
    assert "note: 1 of 2 images were made grey" in err
    found = list(csv.DictReader(out.splitlines()))
    mixed = np.round(0.299 * colour[..., 0] + 0.587 * colour[..., 1]) * (16 / 255)
    wanted = np.asarray(loaded.predict(mixed[None, ..., None].astype(np.float32)))[0]
    assert found[0] == {
        "file": "colour.png",
        "class": str(wanted.argmax()),
        "probability": found[0]["probability"],
    }
    assert float(found[0]["probability"]) == pytest.approx(wanted.max(), abs=1e-4)
    # One alone, by its path.
    assert run(trained, f"--images={folder}/colour.png") == 0
    assert list(csv.DictReader(capsys.readouterr().out.splitlines())) == found[:1]


def test_arrays_are_taken_as_the_dataset_has_them(trained, tmp_path, capsys):
    digits, loaded = datasets.load("digits"), ccl_jax.load_run(trained)
    wanted = np.asarray(loaded.predict(digits.test_images))
    file = tmp_path / "x.npz"
    np.savez(file, x_test=digits.test_images[..., 0].astype(np.float64), y_test=digits.test_labels)
    assert run(trained, f"--images={file}") == 0
    out, err = capsys.readouterr()
    found = list(csv.DictReader(out.splitlines()))
    assert [int(row["class"]) for row in found] == wanted.argmax(-1).tolist()
    assert err.startswith(f"note: {round(360 * loaded.row['consensus_accuracy'])} of 360 are")
    # Of twice the size and in colour: back to what they were.
    doubled = np.repeat(
        np.kron(digits.test_images[:9, ..., 0], np.ones((1, 2, 2)))[..., None], 3, -1
    )
    np.savez(file, images=doubled.astype(np.uint8))
    assert run(trained, f"--images={file}") == 0
    out, err = capsys.readouterr()
    assert "all images were made grey" in err
    assert "all images were resized from 16 x 16 to 8 x 8 pixels" in err
    assert [int(row["class"]) for row in csv.DictReader(out.splitlines())] == wanted[:9].argmax(
        -1
    ).tolist()


def test_images_that_were_enlarged_come_back_as_they_were(trained, tmp_path, capsys):
    digits, loaded = datasets.load("digits"), ccl_jax.load_run(trained)
    (tmp_path / "images").mkdir()
    for k, image in enumerate(digits.test_images[:40, ..., 0]):
        pixels = np.kron(np.round(image * (255 / 16)).astype(np.uint8), np.ones((4, 4), np.uint8))
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k:02}.png")
    assert run(trained, f"--images={tmp_path}/images") == 0
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    wanted = np.asarray(loaded.predict(digits.test_images[:40]))
    assert [int(row["class"]) for row in found] == wanted.argmax(-1).tolist()
    said = [float(row["probability"]) for row in found]
    np.testing.assert_allclose(said, wanted.max(-1), atol=0.02)


@pytest.mark.parametrize("name", ["folder", "digits + folder"])
def test_a_run_on_image_files_takes_images_as_it_does_its_own(name, tmp_path):
    """Bilinearly, as `images.decode` does for the dataset."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    own = images.decode((tmp_path / "x.png").read_bytes(), 8)
    facts = saved_run.facts(shape=(8, 8, 3))._replace(name=name)
    np.testing.assert_array_equal(shown.given(tmp_path / "x.png", facts).read([0])[0], own)
    other = shown.given(tmp_path / "x.png", facts._replace(name="cifar10")).read([0])[0]
    assert np.abs(other.astype(int) - own).max() > 10
    np.savez(tmp_path / "x.npz", images=pixels[None])
    of_arrays = shown.given(tmp_path / "x.npz", facts).read([0])[0]
    assert np.abs(of_arrays.astype(int) - own).max() <= 1


def test_a_run_on_several_domains_takes_images_as_it_took_the_others(tmp_path):
    """Grey is the mean of the colours, and what is larger is made smaller bilinearly."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 20, 20, 3), np.uint8)
    labels = np.arange(30, dtype=np.int32) % 2
    about = (2, (0.5,), (0.5,), 255.0, ("a", "b"))
    black = np.zeros((30, 8, 8, 1), np.uint8)
    first = datasets.Dataset("digits", black, labels, black, labels, *about)
    other = dataclasses.replace(
        first,
        name="other",
        train_images=pixels,
        test_images=pixels,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    joined, _ = heterogeneity.join([first, other])
    facts = saved_run.facts(shape=(8, 8, 1))._replace(name=joined.name, scale=255.0)
    np.savez(tmp_path / "x.npz", images=pixels)
    Image.fromarray(pixels[0]).save(tmp_path / "x.png")
    expected = joined.train_images[-30:].astype(int)
    for name, wanted in (("x.npz", expected), ("x.png", expected[:1])):
        images = shown.given(tmp_path / name, facts)
        found = images.read(np.arange(len(wanted))).astype(int)
        # One or the other is rounded first.
        assert np.abs(found - wanted).max() <= 1


def test_a_run_in_colour_takes_grey_images(tmp_path, capsys):
    saved_run.save(tmp_path / "run", CONFIG, saved_run.facts(shape=(8, 8, 3)))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels)
    (tmp_path / "folder").mkdir()
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "folder" / f"{k}.png")
    lines = []
    for path, said in (("x.npz", "all images"), ("folder", "4 of 4 images")):
        assert run(tmp_path / "run", f"--images={tmp_path / path}") == 0
        out, err = capsys.readouterr()
        assert err == f"note: {said} were made colour\n"
        lines.append([line.split(",")[1:] for line in out.splitlines()])
    assert lines[0] == lines[1]
    found = ccl_jax.load_run(tmp_path / "run").predict(np.repeat(pixels[..., None], 3, axis=3))
    assert [line[0] for line in lines[0][1:]] == [
        f"class {k}" for k in np.asarray(found).argmax(-1)
    ]


def test_a_streamed_test_set_and_its_unreadable_images(tmp_path, capsys):
    """Decoded as in the evaluation: 37 pixels a side, of which the middle 32 are seen."""
    small_files.image_folder(tmp_path / "data", ["cat", "dog"], train=2, test=3)
    config = Config(
        dataset="folder-full", data_dir=str(tmp_path / "data"), image_size=32, model="digits-cnn",
        agents=2, algorithm="dsgd", batch_size=1, partition="iid",
    )  # fmt: skip
    data = datasets.load("folder-full", tmp_path / "data", image_size=32)
    facts = shown.Facts.of(data)
    assert (facts.image_shape, facts.side) == ((32, 32, 3), 37)
    saved_run.save(tmp_path / "run", config, facts)
    bad = tmp_path / "data" / "val" / "dog" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    assert run(tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert "of 5 folder-full images right" in out
    assert err == "note: 1 images that cannot be read are left out\n"
    # The same files by hand, in which an unreadable one is refused.
    assert run(tmp_path / "run", f"--images={tmp_path}/data/val") == 2
    assert str(bad) in capsys.readouterr().err
    bad.unlink()
    assert run(tmp_path / "run", f"--images={tmp_path}/data/val", f"--output={tmp_path}/x.csv") == 0
    right = re.search(r": (\d) of 5 ", out)[1]
    assert f": {right} of 5 " in capsys.readouterr().out


def test_a_test_set_of_other_classes_is_refused(tmp_path, capsys):
    small_files.image_folder(tmp_path / "data", ["cat", "cow"], train=2, test=3)
    config = Config(
        dataset="folder", data_dir=str(tmp_path / "data"), model="digits-cnn", agents=2,
        algorithm="dsgd", batch_size=1, partition="iid",
    )  # fmt: skip
    facts = saved_run.facts(2, (32, 32, 3))
    saved_run.save(tmp_path / "run", config, facts)
    assert run(tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has the classes cat, cow, the run was trained on class 0, class 1; give" in line
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert run(tmp_path / "run") == 2
    assert "data_dir does not exist" in capsys.readouterr().err
    assert run(tmp_path / "run", f"--data_dir={tmp_path}/moved") == 2
    assert "has the classes cat, cow" in capsys.readouterr().err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    saved_run.save(path, CONFIG, saved_run.facts(3))
    return path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--agent=2"], "agent is '2'; give consensus or 0 to 1, an agent of"),
        (["--agent=all"], "give consensus or 0 to 1"),
        (["--checkpoint=31"], "checkpoint '31' is not in"),
        (["--images={0}/nowhere"], "nowhere: does not exist"),
        (["--images={0}/empty"], "has no images that Pillow reads"),
        (["--images={0}/divided"], "; give {0}/divided/val"),
        (["--images={0}/text.txt"], "is no folder of images, image or .npz"),
        (["--images={0}/broken"], "cannot be decoded"),
        (["--images={0}/other"], "has the classes cat, the run was trained on class 0, class 1"),
        (["--images={0}/names.npz"], "has the classes cat, the run was trained on class 0"),
        (["--images={0}/names.npz"], "give images of those, or leave out the labels"),
        (["--images={0}/few.npz"], "has the label 2 and 2 class_names; give one for each label, or"),
        (["--images={0}/labels.npz"], "has the classes 3, the run was trained on class 0"),
        (["--images={0}/channels.npz"], "images have 2 channels, those of the run 1"),
        (["--images={0}/bright.npz"], "has pixels from 0 to 256; those of the run go from 0 to 255"),
        (["--images={0}/nan.npz"], "has no pixels, or some that are no numbers"),
        (["--images={0}/none.npz"], "it has only pictures"),
        (["--images={0}/count.npz"], "has 2 images and 3 labels"),
        (["--images={0}/text.npz"], "cannot be used (it has no arrays of NumPy): it must be a .npz"),
        (["--output="], "output is ''; it must be the name of a file"),
        (["--output={0}/empty"], "output is {0}/empty, a directory; give the name of a file in it"),
        (["--output={0}/text.txt/x.csv"], "{0}/text.txt cannot be written to"),
    ],
)  # fmt: skip
def test_one_line_and_exit_code_2(flags, said, saved, tmp_path, capsys):
    for name in ("empty", "divided/train/cat", "divided/val/cat", "broken", "other/cat"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("text.txt", "text.npz", "broken/a.png"):
        (tmp_path / name).write_text("no picture")
    Image.new("L", (8, 8)).save(tmp_path / "other" / "cat" / "a.png")
    two = np.zeros((2, 8, 8, 1), np.uint8)
    for name, arrays in {
        "names": {"images": two, "labels": [0, 1], "class_names": ["class 0", "cat", "dog"]},
        "few": {"images": two, "labels": [0, 2], "class_names": ["class 0", "class 1"]},
        "labels": {"images": two, "labels": [0, 3]},
        "channels": {"images": two.repeat(2, axis=-1)},
        "bright": {"images": two + np.float32([[[[0]]], [[[256]]]])},
        "nan": {"images": two + np.float32(np.nan)},
        "none": {"pictures": two},
        "count": {"images": two, "labels": [0, 1, 2]},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    assert run(saved, *(flag.format(tmp_path) for flag in flags)) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: ") and said.format(tmp_path) in line


def test_what_is_no_run(tmp_path, capsys):
    assert predict.main(["predict"]) == 2
    assert "give --run=DIR" in capsys.readouterr().err
    assert predict.main(["predict", "runs/x"]) == 2
    assert "'runs/x' is not a flag; did you mean --run=runs/x?" in capsys.readouterr().err
    assert run(tmp_path, "b.png") == 2
    assert "'b.png' is not a flag; flags are --name=value" in capsys.readouterr().err
    assert run(tmp_path) == 2
    assert "is no run (no config.json)" in capsys.readouterr().err
    saved_run.save(tmp_path, CONFIG, saved_run.facts(), steps=())
    assert run(tmp_path) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
