"""Sets that TFDS has prepared: exact pixels, and half of one is never taken for the whole."""

import shutil
import sys

import numpy as np
import pytest

from ccl_jax.data import datasets, images, tfds_sets


def picture(height, width, number):
    """The picture of tests/fixtures/make_tfds.py."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((7 * number + 3 * y + 5 * x + 11 * c) % 256).astype(np.uint8)


def test_tfds_in_memory_to_exact_pixels(tfds_dir):
    dataset = datasets.load("cifar10", tfds_dir)
    assert dataset.train_images.shape == (40, 32, 32, 3)
    # TFDS shuffles: the set of (picture, label) pairs is what was put in.
    for found, labels, first in (
        (dataset.train_images, dataset.train_labels, 0),
        (dataset.test_images, dataset.test_labels, 100),
    ):
        pairs = {(image.tobytes(), int(y)) for image, y in zip(found, labels, strict=True)}
        numbers = range(first, first + len(found))
        assert pairs == {(picture(32, 32, k).tobytes(), 3 * k % 10) for k in numbers}
    assert dataset.class_names[6] == "frog"


def test_tfds_without_tensorflow(tfds_dir):
    dataset = datasets.load("imagenette-full", tfds_dir)
    label = dataset.train.labels[0]
    pixels = images.decode(dataset.train.read(0))
    assert any(
        np.array_equal(pixels, picture(32 + k % 3, 40, k)) for k in range(20) if k % 10 == label
    )
    assert dataset.train.name(3).endswith("full-size-v2/1.0.0: train record 3")
    assert datasets.load("imagenette", tfds_dir).train_images.shape == (20, 32, 32, 3)
    assert "tensorflow" not in sys.modules


def test_half_prepared_tfds_sets(tfds_dir, tmp_path):
    with pytest.raises(ValueError, match="have no published checksums"):
        datasets.load("cifar10", tfds_dir, verify_checksums=True)
    whole = tfds_dir / "cifar10" / "3.0.2"
    broken = tmp_path / "a" / "cifar10" / "incomplete.X1_3.0.2"
    broken.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"incomplete.X1_3.0.2: the preparation .* broken off"):
        datasets.load("cifar10", tmp_path / "a")

    shard = "cifar10-train.array_record-00000-of-00001"
    folder = tmp_path / "b" / "cifar10" / "3.0.2"
    for damage, message in (
        (lambda: (folder / shard).unlink(), shard + ": is missing or damaged"),
        (
            lambda: (folder / shard).write_bytes((whole / shard).read_bytes()[:60_000]),
            shard + ": is missing or damaged",
        ),
        (
            lambda: shutil.copy(whole / "cifar10-test.array_record-00000-of-00001", folder / shard),
            shard + ": holds 10 records, expected 40",
        ),
        (lambda: (folder / "dataset_info.json").write_text("{"), "is no set that TFDS has prep"),
        (
            lambda: (folder / "dataset_info.json").write_text(
                (whole / "dataset_info.json").read_text().replace('"test"', '"other"')
            ),
            "has no split test",
        ),
        (
            lambda: (folder / "dataset_info.json").write_text(
                (whole / "dataset_info.json").read_text().replace('"array_record"', '"tfrecord"')
            ),
            "is in the format tfrecord, which needs TensorFlow",
        ),
    ):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        shutil.copytree(whole, folder)
        damage()
        with pytest.raises(ValueError, match=message):
            datasets.load("cifar10", tmp_path / "b")


RNG = np.random.default_rng(0)


def samples(count, shape, classes):
    """Random images and labels, as `write_tfds` takes them."""
    return [(RNG.integers(0, 256, shape, np.uint8), 7 * k % classes) for k in range(count)]


def check(found, labels, expected):
    """Images `[n, H, W, C]` and labels are those that were written, in any order."""
    pairs = lambda images, labels: sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    assert pairs(found, labels) == pairs(*zip(*expected, strict=True))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("name", "there", "shape", "classes"),
    [
        ("fmnist", "fashion_mnist", (28, 28, 1), 10),
        ("cifar10", "cifar10", (32, 32, 3), 10),
        ("cifar100", "cifar100", (32, 32, 3), 100),
    ],
)
def test_sets_in_memory_from_records(tmp_path, write_tfds, name, there, shape, classes, shards):
    splits = {"train": samples(12, shape, classes), "test": samples(4, shape, classes)}
    write_tfds(tmp_path, there, splits, [f"class {k}" for k in range(classes)], shape, shards)
    dataset = datasets.load(name, tmp_path)
    assert dataset.num_classes == classes and dataset.image_shape == shape
    check(dataset.train_images, dataset.train_labels, splits["train"])
    check(dataset.test_images, dataset.test_labels, splits["test"])


def test_imagenet_streams_from_records(tmp_path, write_tfds):
    splits = {k: samples(n, (9, 11, 3), 1000) for k, n in (("train", 7), ("validation", 3))}
    names = [f"n{k:08d}" for k in range(1000)]
    write_tfds(tmp_path, "imagenet2012", splits, names, (-1, -1, 3), shards=2)
    dataset = datasets.load("imagenet", tmp_path)
    assert dataset.image_shape == (224, 224, 3) and dataset.class_names == tuple(names)
    for store, written in ((dataset.train, splits["train"]), (dataset.test, splits["validation"])):
        found = [images.decode(store.read(k)) for k in range(len(store.labels))]
        check(found, store.labels, written)


def edit(file, old, new):
    """Replaces a text that is there."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # What a broken copy, or a preparation that was broken off, leaves behind.
        (
            lambda f: (f / "cifar10-train.array_record-00001-of-00002").unlink(),
            r"train\.array_record-00001-of-00002: is missing or damaged",
        ),
        (
            lambda f: (f / "cifar10-test.array_record-00000-of-00002").write_bytes(b""),
            r"test\.array_record-00000-of-00002: is missing or damaged",
        ),
        (lambda f: (f / "dataset_info.json").unlink(), r"1\.0\.0: lacks dataset_info\.json"),
        (lambda f: (f / "features.json").unlink(), r"1\.0\.0: is no set that TFDS has prepared"),
        (
            lambda f: f.rename(f.with_name("incomplete.A1B2C3_1.0.0")),
            r"incomplete\.A1B2C3_1\.0\.0: the preparation of this set was broken off",
        ),
        # What dataset_info.json states is not what is there.
        (
            lambda f: edit(f / "dataset_info.json", '["6", "6"]', '["6", "7"]'),
            r"train\.array_record-00001-of-00002: holds 6 records, expected 7",
        ),
        (
            lambda f: edit(f / "dataset_info.json", '["6", "6"]', '["6", "5"]'),
            r"train\.array_record-00001-of-00002: holds 6 records, expected 5",
        ),
        (
            lambda f: edit(f / "dataset_info.json", '["6", "6"]', '["12"]'),
            r"train\.array_record-00000-of-00001: is missing or damaged",
        ),
        (
            lambda f: edit(f / "dataset_info.json", '"cifar10"', '"svhn_cropped"'),
            r"holds the set svhn_cropped and not cifar10",
        ),
    ],
)
def test_a_half_prepared_set_is_never_taken_for_the_whole(tmp_path, write_tfds, damage, message):
    splits = {"train": samples(12, (32, 32, 3), 10), "test": samples(4, (32, 32, 3), 10)}
    folder = write_tfds(tmp_path, "cifar10", splits, list("abcdefghij"), (32, 32, 3), shards=2)
    assert len(datasets.load("cifar10", tmp_path).train_labels) == 12
    damage(folder)
    with pytest.raises(ValueError, match=message):
        datasets.load("cifar10", tmp_path)


def test_records_of_another_kind_are_named(tmp_path, write_tfds):
    splits = {"train": samples(5, (32, 32, 3), 10), "test": samples(4, (32, 32, 3), 10)}
    splits["train"][3] = (splits["train"][3][0], 10)
    write_tfds(tmp_path / "a", "cifar10", splits, list("abcdefghij"), (32, 32, 3))
    with pytest.raises(ValueError, match=r"train record 3: label 10, expected 0 to 9"):
        datasets.load("cifar10", tmp_path / "a")
    splits["train"][3] = (splits["train"][3][0][:30], 1)
    write_tfds(tmp_path / "b", "cifar10", splits, list("abcdefghij"), (32, 32, 3))
    with pytest.raises(ValueError, match=r"record 3: has the shape \(30, 32, 3\), others have"):
        datasets.load("cifar10", tmp_path / "b")


def test_a_newer_version_that_is_not_whole_is_passed_over(tmp_path, write_tfds):
    splits = {"train": samples(12, (32, 32, 3), 10), "test": samples(4, (32, 32, 3), 10)}
    folder = write_tfds(tmp_path, "cifar10", splits, list("abcdefghij"), (32, 32, 3))
    shutil.copytree(folder, folder.with_name("incomplete.A1B2C3_1.1.0"))
    shutil.copytree(folder, folder.with_name("1.1.0"))
    (folder.with_name("1.1.0") / "dataset_info.json").unlink()
    assert len(datasets.load("cifar10", tmp_path).train_labels) == 12


def test_labels_show_how_far_they_are_where_that_takes_long(
    tmp_path, write_tfds, monkeypatch, capsys
):
    splits = {"train": samples(5, (32, 32, 3), 10), "test": samples(4, (32, 32, 3), 10)}
    write_tfds(tmp_path, "cifar10", splits, list("abcdefghij"), (32, 32, 3))
    datasets.load("cifar10", tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(tfds_sets, "_PATIENCE_SECONDS", 0)
    datasets.load("cifar10", tmp_path)
    assert "1.0.0: train: 100%" in capsys.readouterr().err
