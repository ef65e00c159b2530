"""Folders of images, .npz files and sets prepared by TFDS: exact pixels, and clear errors."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data import datasets, folders, images
from ccl_jax.data.dataset import StreamedDataset


def picture(height, width, number):
    """The picture of tests/data/make_tfds.py."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((7 * number + 3 * y + 5 * x + 11 * c) % 256).astype(np.uint8)


def test_folder_in_memory_to_exact_pixels(tmp_path, write_folder):
    pixels = write_folder(tmp_path, ("ant", "bee", "cat"), size=(16, 16))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    dataset = datasets.load("folder", tmp_path, image_size=16)
    assert dataset.class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(dataset.train_labels, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(dataset.train_images[4], pixels["train", "bee", 1])
    np.testing.assert_array_equal(dataset.test_images[5], pixels["val", "cat", 1])
    normalised = dataset.train_images / 255 - np.array(dataset.mean)
    np.testing.assert_allclose(normalised.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(normalised.std(axis=(0, 1, 2)), dataset.std, rtol=1e-9)
    assert datasets.load("folder", tmp_path).image_shape == (32, 32, 3)


def test_square_is_the_middle_of_the_longer_side(tmp_path):
    wide = np.arange(8 * 20 * 3, dtype=np.uint8).reshape(8, 20, 3)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    content = (tmp_path / "wide.png").read_bytes()
    np.testing.assert_array_equal(images.decode(content), wide)
    np.testing.assert_array_equal(images.decode(content, 8), wide[:, 6:14])
    # A flat image stays flat; a grey one becomes RGB; twice the size halves every step.
    Image.fromarray(np.full((9, 7), 77, np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(images.decode((tmp_path / "grey.png").read_bytes(), 4), 77)


def test_folder_streamed(tmp_path, write_folder):
    write_folder(tmp_path)
    dataset = datasets.load("folder-full", tmp_path)
    assert isinstance(dataset, StreamedDataset)
    assert (dataset.image_shape, dataset.stored_side) == ((224, 224, 3), 256)
    assert dataset.train.name(4) == str(tmp_path / "train" / "bee" / "1.png")
    assert dataset.train.read(4) == (tmp_path / "train" / "bee" / "1.png").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: shutil.rmtree(r / "train"), "has no folder train of folder: give a folder with"),
        (lambda r: shutil.rmtree(r / "val"), "has no folder val, validation, test"),
        (
            lambda r: shutil.rmtree(r / "val" / "bee"),
            "class 'bee' is in only one of train/ and val",
        ),
        (
            lambda r: [p.unlink() for p in (r / "train" / "ant").iterdir()],
            "train/ant: has no images",
        ),
        (
            lambda r: (r / "val" / "bee" / "1.png").write_bytes(b"no"),
            "val/bee/1.png: cannot be dec",
        ),
    ],
)
def test_damaged_folder_is_named(tmp_path, write_folder, damage, message):
    write_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        datasets.load("folder", tmp_path)


def test_sixteen_bits_are_not_cut_to_eight(tmp_path, write_folder):
    write_folder(tmp_path)
    deep = Image.fromarray(np.full((8, 8), 1000, np.uint16))
    deep.save(tmp_path / "val" / "bee" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: has pixels of mode I.* do not fit into 8 bits"):
        datasets.load("folder", tmp_path)


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="train: has no sub-folders"):
        folders.list_images(tmp_path)


def test_imagenette_and_imagenet_are_told_from_other_sets(tmp_path, write_folder):
    write_folder(tmp_path / "imagenette2-160", datasets.IMAGENETTE_CLASSES, train=1, val=1)
    assert datasets.load("imagenette", tmp_path).train_images.shape == (10, 32, 32, 3)
    assert datasets.load("imagenette-full", tmp_path / "imagenette2-160").num_classes == 10
    with pytest.raises(ValueError, match="has 10 classes, ImageNet has 1000"):
        datasets.load("imagenet", tmp_path / "imagenette2-160")
    write_folder(tmp_path / "other")
    with pytest.raises(ValueError, match=r"has the classes ant, bee .*Imagenette has n01440764"):
        datasets.load("imagenette", tmp_path / "other")
    with pytest.raises(ValueError, match="imagenet needs its files; no data_dir"):
        datasets.load("imagenet")
    with pytest.raises(ValueError, match="fmnist: image_size is for imagenette"):
        datasets.load("fmnist", image_size=32)


def npz_arrays():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (6, 5, 4), np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": rng.integers(0, 256, (2, 5, 4), np.uint8),
        "test_labels": np.array([2, 0]),
    }


@pytest.mark.parametrize("keras", [False, True])
def test_npz_to_exact_pixels(tmp_path, keras):
    arrays = npz_arrays()
    names = ("x_train", "y_train", "x_test", "y_test") if keras else tuple(arrays)
    np.savez(tmp_path / "own.npz", **dict(zip(names, arrays.values(), strict=True)))
    for place in (tmp_path, tmp_path / "own.npz"):
        dataset = datasets.load("npz", place)
        np.testing.assert_array_equal(dataset.train_images[..., 0], arrays["train_images"])
        np.testing.assert_array_equal(dataset.test_labels, [2, 0])
        assert dataset.num_classes == 3
    pixels = arrays["train_images"] / 255
    np.testing.assert_allclose((dataset.mean[0], dataset.std[0]), (pixels.mean(), pixels.std()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((6, 5, 4))}, "train_images is float64"),
        ({"train_labels": np.zeros((6, 10), int)}, r"train_labels is int64 \(6, 10\)"),
        ({"test_labels": np.array([-1, 0])}, "test_labels must hold classes from 0"),
        (
            {"train_labels": np.array([0, 1])},
            r"train labels are int32 \(2,\), expected int32 \[6\]",
        ),
        ({"train_labels": np.array([object()] * 6)}, "own.npz: cannot be used .*allow_pickle"),
        ({"class_names": np.array(["a"])}, "train labels go from 0 to 2, expected 0 to 0"),
    ],
)
def test_wrong_npz_is_named(tmp_path, change, message):
    np.savez(tmp_path / "own.npz", **(npz_arrays() | change))
    with pytest.raises(ValueError, match=message):
        datasets.load("npz", tmp_path)


def test_damaged_and_missing_npz(tmp_path):
    with pytest.raises(ValueError, match=r"has 0 .npz files"):
        datasets.load("npz", tmp_path)
    np.savez(tmp_path / "own.npz", **npz_arrays())
    whole = (tmp_path / "own.npz").read_bytes()
    (tmp_path / "own.npz").write_bytes(whole[:300])
    with pytest.raises(ValueError, match=r"own\.npz: cannot be used"):
        datasets.load("npz", tmp_path)
    encrypted = bytearray(whole)
    for place in (encrypted.find(b"PK\x03\x04") + 6, encrypted.rfind(b"PK\x01\x02") + 8):
        encrypted[place] |= 1  # the flag of an encrypted member, in both of its headers
    (tmp_path / "own.npz").write_bytes(encrypted)
    with pytest.raises(ValueError, match=r"own\.npz: cannot be used"):
        datasets.load("npz", tmp_path)
    np.savez(tmp_path / "own.npz", train_images=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="it has no train_labels, test_images, test_labels, only"):
        datasets.load("npz", tmp_path)


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
    import sys

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
