"""Images of a user's own as a run knows them: their labels by name, and files of its own size."""

import numpy as np
import pytest
from PIL import Image

from experiments import shown
from tests.support import saved_run


@pytest.mark.parametrize(
    ("own", "given", "labels", "wanted"),
    [
        ("cat cow dog", "dog cat", [0, 1, 0], [2, 0, 2]),  # Part of them, in another order.
        ("cat cow dog", "cat cow dog", [2, 1], [2, 1]),
        ("cat cow dog", "dog horse", [0, 0], [2, 2]),  # There is no image of a horse.
        ("cat cow dog", None, [2, 0], [2, 0]),
        ("cat cow dog", "fish", None, None),
        ("1 2 3", None, [1, 3, 2], [0, 2, 1]),  # As --renumber_labels makes them of 1 to 3.
        ("0 1 2", None, [1, 2, 0], [1, 2, 0]),
        ("01 02 03", None, [1, 2, 0], [1, 2, 0]),  # Names of folders.
    ],
)
def test_labels_of_arrays_are_classes_by_their_names(own, given, labels, wanted, tmp_path):
    facts = saved_run.facts(3)._replace(class_names=tuple(own.split()))
    arrays = {"images": np.zeros((len(labels or [0]), 8, 8), np.uint8)}
    arrays |= {} if labels is None else {"labels": labels}
    arrays |= {} if given is None else {"class_names": given.split()}
    np.savez(tmp_path / "x.npz", **arrays)
    found = shown.given(tmp_path / "x.npz", facts).labels
    assert (None if found is None else found.tolist()) == wanted


def test_a_number_that_was_left_out_in_training_is_no_class(tmp_path):
    facts = saved_run.facts(3)._replace(class_names=("1", "2", "3"))
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 1])
    with pytest.raises(ValueError, match="has the classes 0, the run was trained on 1, 2, 3; give"):
        shown.given(tmp_path / "x.npz", facts)


def test_image_files_of_the_runs_size_are_shown_as_they_are(tmp_path):
    """Of 28 x 32 pixels, upright, as the same pixels in a .npz; others are brought to that size."""
    facts, folder = saved_run.facts(shape=(28, 32, 3)), tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (28, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # It is upright after a quarter turn to the right.
    Image.fromarray(np.rot90(pixels)).save(folder / "b.png", exif=turned)
    Image.fromarray(np.rot90(pixels)).save(folder / "c.png")
    given = shown.given(folder, facts)
    first, second, other = given.read(np.arange(3))
    np.testing.assert_array_equal(first, pixels)
    np.testing.assert_array_equal(second, pixels)
    assert other.shape == (28, 32, 3)
    assert given.notes() == [
        "1 of 3 images were resized to 28 x 32 pixels (the shorter side; of the longer the middle is "
        "seen)"
    ]
    np.savez(tmp_path / "x.npz", images=pixels[None])
    np.testing.assert_array_equal(shown.given(tmp_path / "x.npz", facts).read([0])[0], first)
