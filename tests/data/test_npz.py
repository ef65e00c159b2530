"""Arrays of a user's own in an .npz: layouts and labels, and what is read, noted and refused."""

import numpy as np
import pytest

from ccl_jax.data import base, datasets


def arrays(count=6, **changes):
    """Grey images of 5 x 4 pixels in three classes, twice."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 5, 4), np.uint8), np.arange(count) % 3
    made = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return made | changes


def both(**changes):
    """The same images or labels for training and for testing."""
    return {f"{part}_{key}": value for key, value in changes.items() for part in ("train", "test")}


def load(tmp_path, **content):
    np.savez(tmp_path / "own.npz", **content)
    return datasets.load("npz", tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        np.array(["ant", "bee", "k\u00e4fer"]),
        np.array([b"ant", b"bee", b"k\xc3\xa4fer"]),
    ],
)
def test_class_names_are_texts_or_bytes(tmp_path, names):
    dataset = load(tmp_path, **arrays(), class_names=names)
    assert dataset.class_names == ("ant", "bee", "k\u00e4fer") and dataset.notes == ()


def test_class_names_that_are_whole_numbers(tmp_path):
    assert load(tmp_path, **arrays(), class_names=np.arange(3)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Images.
        (both(images=np.zeros((6, 3, 32, 32), np.uint8)), r"train_images is .* 3 channels first"),
        (both(images=np.zeros((6, 1, 28, 28), np.uint8)), r"train_images is .* 1 channels first"),
        (both(images=np.zeros((6, 0, 8, 1), np.uint8)), r"\(6, 0, 8, 1\), which has no pixels"),
        (both(images=np.zeros((0, 8, 8), np.uint8)), r"\(0, 8, 8, 1\), which has no pixels"),
        (
            both(images=np.zeros((6, 64), np.uint8)),
            r"uint8 \(6, 64\), expected uint8 \[n, H, W, C\]",
        ),
        (both(images=np.zeros((1, 6, 8, 8, 3), np.uint8)), r"\(1, 6, 8, 8, 3\), expected"),
        (both(images=np.uint8(3)), r"uint8 \(\), expected"),
        (both(images=np.full((6, 8, 8), 0.5, np.float32)), "float32 .* bring them to 0 to 255"),
        (both(images=np.full((6, 8, 8), np.nan)), "float64 .* bring them to 0 to 255"),
        (both(images=np.zeros((6, 8, 8), int)), "int64 .* expected uint8"),
        (both(images=np.zeros((6, 8, 8), bool)), "bool .* expected uint8"),
        (both(images=np.array([None] * 6)), "allow_pickle"),
        (dict(test_images=np.zeros((6, 4, 5), np.uint8)), "both must have one shape"),
        # Labels.
        (both(labels=np.eye(6, dtype=int)), r"train_labels is int64 \(6, 6\), expected integers"),
        (both(labels=np.array([0.0, 1, 2, 0, 1, 2])), "train_labels is float64"),
        (both(labels=np.array(list("abcabc"))), "train_labels is <U1"),
        (both(labels=np.array([True, False] * 3)), "train_labels is bool"),
        (both(labels=np.array([[0, 1, 2, 0, 1, 2]])), r"train_labels is int64 \(1, 6\)"),
        (both(labels=np.array(3)), r"train_labels is int64 \(\)"),
        (both(labels=np.array([], int)), "train_labels must hold classes"),
        (both(labels=np.array([0, 1, -1, 0, 1, 2])), "train_labels must hold classes from 0"),
        (both(labels=np.array([0, 1, 2**40, 0, 1, 2])), "train_labels must hold classes from 0"),
        (dict(test_labels=np.arange(5) % 3), r"test labels are int32 \(5,\), expected int32 \[6\]"),
        (dict(class_names=np.array(["a", "b"])), "train labels go from 0 to 2, expected 0 to 1"),
        (dict(class_names=np.array([["a"], ["b"], ["c"]])), r"class_names is <U1 \(3, 1\)"),
        (dict(class_names=np.array([b"a", b"b", b"\xff"])), "can't decode"),
        (dict(class_names=np.array([0.5, 1, 2])), r"class_names is float64 \(3,\)"),
        # Users.
        (dict(users=np.arange(5)), r"users is int64 \(5,\), expected integers or texts \[6\]"),
        (dict(users=np.zeros((6, 1), int)), r"users is int64 \(6, 1\), expected"),
        (dict(users=np.full(6, np.nan)), r"users is float64 \(6,\), expected"),
        (dict(users=np.array([None] * 6)), "allow_pickle"),
    ],
)
def test_what_is_no_image_or_no_label(tmp_path, changes, message):
    with pytest.raises(ValueError, match=r"own\.npz: .*" + message) as caught:
        load(tmp_path, **(arrays() | changes))
    assert "\n" not in str(caught.value)


def test_a_single_array_is_none(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros((4, 5, 4), np.uint8))
    with pytest.raises(
        ValueError, match=r"own\.npy: cannot be used \(it is a single array\): it must"
    ):
        datasets.load("npz", tmp_path / "own.npy")


def test_labels_in_a_column_and_colours(tmp_path):
    colours = np.arange(6 * 5 * 4 * 3, dtype=np.uint8).reshape(6, 5, 4, 3)
    column = np.array([[2], [1], [0], [2], [1], [0]], np.uint8)
    dataset = load(tmp_path, **arrays(**both(images=colours, labels=column)))
    np.testing.assert_array_equal(dataset.test_images, colours)
    assert dataset.train_labels.tolist() == [2, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("users", [np.array([5, 5, -2, 9, 9, 9]), np.array(list("aabccc"))])
def test_users_stay_with_their_images(tmp_path, users):
    dataset = load(tmp_path, **arrays(), users=users)
    assert dataset.users.tolist() == users.tolist() and dataset.notes == ()
    whose = {image.tobytes(): u for image, u in zip(dataset.train_images, users, strict=True)}
    assert len(whose) == 6
    for part in (base.hold_out(dataset, 0.4, seed=1), base.take(dataset, 4, seed=1)):
        assert len(part.users) == 4
        for image, user in zip(part.train_images, part.users, strict=True):
            assert whose[image.tobytes()] == user
    assert load(tmp_path, **arrays()).users is None


def test_arrays_that_are_not_used_are_named(tmp_path):
    parts = {"val_images": np.zeros((2, 5, 4)), "val_labels": np.zeros(2)}
    dataset = load(tmp_path, **arrays(), **parts)
    path = tmp_path / "own.npz"
    assert dataset.notes == (f"{path}: not used: the arrays val_images, val_labels.",)


def test_pixels_of_0_and_1_are_noted(tmp_path):
    # What is left of pixels of 0 to 1 that are made uint8.
    ones = np.random.default_rng(0).random((6, 5, 4)).round().astype(np.uint8)
    (note,) = load(tmp_path, **arrays(**both(images=ones))).notes
    assert "the brightest training pixel is 1 of 255" in note
