"""Folders of images and .npz files: exact pixels, and clear errors."""

import io
import itertools
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data import datasets, folders, images, photographs
from ccl_jax.data.base import StreamedDataset


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


def test_over_areas_an_enlarged_image_comes_back():
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for times in (2, 5):
        large = Image.fromarray(np.kron(small, np.ones((times, times, 1), np.uint8)))
        np.testing.assert_array_equal(np.asarray(images.square(large, 8, area=True)), small)
        assert np.abs(np.asarray(images.square(large, 8)).astype(int) - small).max() > 20
    # Not where it grows.
    grown = [np.asarray(images.square(Image.fromarray(small), 12, area)) for area in (True, False)]
    np.testing.assert_array_equal(*grown)


def stored(image, format="png", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_photographs_are_turned_upright(format):
    lying = np.zeros((16, 32, 3), np.uint8)
    lying[:8, :16] = 255  # white at the top left
    exif = Image.Exif()
    # What each orientation of the EXIF standard does to that corner: where it comes to lie.
    corners = {1: "left top", 2: "right top", 3: "right bottom", 4: "left bottom"}
    corners |= {5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom"}
    for orientation, corner in corners.items():
        exif[0x0112] = orientation
        upright = images.decode(stored(Image.fromarray(lying), format, exif=exif))
        assert upright.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
        height, width, _ = upright.shape
        rows = slice(0, height // 4) if "top" in corner else slice(-height // 4, None)
        columns = slice(0, width // 4) if "left" in corner else slice(-width // 4, None)
        bright = upright > 127
        assert bright[rows, columns].all() and bright.mean() == pytest.approx(1 / 4, abs=0.05)


def test_damaged_exif_is_no_damaged_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = stored(Image.new("RGB", (8, 4), "white"), exif=exif)
    place = content.index(b"eXIf") + 4
    spoilt = bytearray(content)
    spoilt[place : place + 2] = b"??"  # in place of the byte order
    spoilt[place + 26 : place + 30] = struct.pack(">I", zlib.crc32(spoilt[place - 4 : place + 26]))
    assert len(spoilt) == len(content)
    assert images.decode(bytes(spoilt)).shape == (4, 8, 3)
    # But an image that ends in the middle of its pixels is damaged, whatever its EXIF.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for options in ({}, {"exif": exif}):
        whole = stored(Image.fromarray(noise), **options)
        spoilt = bytearray(whole)
        spoilt[whole.index(b"IDAT") + 5] ^= 255  # at the beginning of the packed pixels
        with pytest.raises(images.UnreadableImage, match="cannot be decoded"):
            images.decode(bytes(spoilt))
        with pytest.raises(images.UnreadableImage, match="cannot be decoded"):
            images.decode(whole[: len(whole) // 2])
    with pytest.raises(images.UnreadableImage, match=r"\(no image of a known format\)$"):
        images.decode(b"no image")


@pytest.mark.parametrize("size", [(200, 4), (4, 201), (99, 3), (5, 400)])
def test_of_a_thin_image_the_middle_is_scaled(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels)
    short = min(size)
    # As torchvision does it: scale as a whole, by 2, and cut out the middle.
    whole = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)
    left, top = whole.width // 2 - short, whole.height // 2 - short
    middle = whole.crop((left, top, left + 2 * short, top + 2 * short))
    np.testing.assert_array_equal(images.square(image, 2 * short), middle)


def test_a_thin_image_is_not_scaled_as_a_whole(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    watched = lambda image, size, *rest: sizes.append(size) or resize(image, size, *rest)
    monkeypatch.setattr(Image.Image, "resize", watched)
    assert images.decode(stored(Image.new("RGB", (1, 6000))), 256).shape == (256, 256, 3)
    assert images.decode(stored(Image.new("RGB", (6000, 1))), 256).shape == (256, 256, 3)
    assert sizes == [(256, 16 * 256), (16 * 256, 256)]


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


@pytest.mark.parametrize("ending", [".pgm", ".PGM", ".gif", ".jp2", ".jfif", ".tga"])
def test_images_end_as_pillow_has_it(tmp_path, ending):
    for split, name in itertools.product(("train", "val"), ("s1", "s2")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("L", (8, 8), 7).save(tmp_path / split / name / f"1{ending}")
    dataset = datasets.load("folder", tmp_path, image_size=8)
    assert dataset.notes == () and (dataset.train_images == 7).all()


@pytest.mark.parametrize("ending", [".txt", ".pdf", ".eps", ".h5", ".heic", ""])
def test_what_pillow_cannot_draw_is_no_image(tmp_path, write_folder, ending):
    write_folder(tmp_path)
    (tmp_path / "val" / "bee" / f"x{ending}").write_bytes(b"")
    (note,) = datasets.load("folder", tmp_path).notes
    assert f"files whose names do not end as an image's, 1 (val/bee/x{ending})" in note


def test_what_is_not_used_is_counted_and_named(tmp_path, write_folder):
    write_folder(tmp_path / "set")
    root = tmp_path / "set"
    assert datasets.load("folder", root).notes == ()
    image = (root / "train" / "ant" / "0.png").read_bytes()
    for k in range(4):
        (root / "train" / "ant" / f"x{k}.png").symlink_to("/nowhere/x.png")
    (root / "train" / "ant" / "more").mkdir()
    (root / "train" / "ant" / "more" / "1.png").write_bytes(image)
    (root / "train" / "bee" / ".0.png").write_bytes(image)
    (root / "train" / ".checkpoints").mkdir()
    (root / "train" / "loose.png").write_bytes(image)
    (root / "val" / "bee" / "a.heic").write_bytes(b"")
    (root / "test" / "ant").mkdir(parents=True)  # beside val, which is taken
    (root / "readme.txt").write_text("not noted, nor is what is hidden here")
    (root / ".cache").mkdir()
    dataset = datasets.load("folder", root)
    assert dataset.notes == (
        f"{root}: not used: folders that are not looked into, 2 (test, train/ant/more); hidden, 2 "
        "(train/.checkpoints, train/bee/.0.png); images that are in no class's folder, 1 "
        "(train/loose.png); links that lead nowhere, 4 (train/ant/x0.png, train/ant/x1.png, "
        "train/ant/x2.png, ...); files whose names do not end as an image's, 1 (val/bee/a.heic).",
    )
    assert len(dataset.train_labels) == 6 and len(dataset.test_labels) == 4
    assert datasets.load("folder-full", root).notes == dataset.notes


def test_what_is_not_used_of_an_undivided_folder(tmp_path):
    write_classes(tmp_path, {"ant": 5, "bee": 5})
    (tmp_path / "cat").symlink_to("/nowhere/cat")
    (tmp_path / "readme.txt").write_text("not noted")
    (tmp_path / "bee" / "gone.png").symlink_to("/nowhere/x.png")
    assert datasets.load("folder", tmp_path).notes == (
        f"{tmp_path}: not used: links that lead nowhere, 2 (cat, bee/gone.png).",
    )
    shutil.rmtree(tmp_path / "ant")
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.heic").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"ant: has no images.* end as an image's, 1 \(ant/a\.heic\)"
    ):
        datasets.load("folder", tmp_path)


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="train: has no sub-folders"):
        folders.list_images(tmp_path)


def write_classes(root, counts, seed=0):
    """<root>/<class>/k.png with so many images for each class; their pixels by path."""
    rng, pixels = np.random.default_rng(seed), {}
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            path = root / name / f"{k:02d}.png"
            pixels[str(path)] = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels[str(path)]).save(path)
    return pixels


def test_a_folder_without_train_is_divided_once_and_for_all(tmp_path):
    pixels = write_classes(tmp_path, {"ant": 10, "bee": 13, "cat": 2})
    train, test, names = folders.divide(tmp_path)
    assert names == ("ant", "bee", "cat") and folders.is_undivided(tmp_path)
    # A fifth of each class, rounded, and one at least.
    assert np.bincount(test.labels).tolist() == [2, 3, 1]
    assert np.bincount(train.labels).tolist() == [8, 10, 1]
    assert sorted([*map(str, train.paths), *map(str, test.paths)]) == sorted(pixels)
    for store in (train, test):
        assert [names[y] for y in store.labels] == [path.parent.name for path in store.paths]
    again = folders.divide(tmp_path)
    assert again[0].paths == train.paths and again[1].paths == test.paths
    # Not the first ones of each class.
    assert {path.name for path in test.paths} != {"00.png", "01.png", "02.png"}

    dataset = datasets.load("folder", tmp_path, image_size=8)
    for image, path in zip(dataset.test_images, test.paths, strict=True):
        np.testing.assert_array_equal(image, pixels[str(path)])
    assert datasets.load("folder-full", tmp_path).train.paths == train.paths

    (tmp_path / "cat" / "01.png").unlink()
    with pytest.raises(ValueError, match="cat: has one image; a class needs two"):
        datasets.load("folder", tmp_path)
    (tmp_path / "cat" / "00.png").unlink()
    with pytest.raises(ValueError, match="cat: has no images"):
        datasets.load("folder", tmp_path)


@pytest.mark.parametrize("left", ["train", "val", "test"])
def test_a_folder_of_which_a_part_is_missing_is_not_taken_for_one_without_parts(tmp_path, left):
    write_classes(tmp_path / left, {"ant": 3, "bee": 3})
    Image.new("RGB", (8, 8)).save(tmp_path / left / "cover.png")
    with pytest.raises(ValueError, match="has no folder"):
        datasets.load("folder", tmp_path)


def test_folders_of_domains(tmp_path, write_folder):
    write_folder(tmp_path / "sketch")
    write_classes(tmp_path / "photo", {"ant": 3, "bee": 3})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("PACS")
    assert folders.domains(tmp_path) == (tmp_path / "photo", tmp_path / "sketch")
    # Neither what is a domain itself, nor a folder of something else.
    assert folders.domains(tmp_path / "photo") == folders.domains(tmp_path / "sketch") == ()
    assert folders.domains(tmp_path / "sketch" / "train" / "ant") == ()
    assert folders.domains(tmp_path / "nowhere") == ()

    write_classes(tmp_path / "art", {"ant": 3, "cow": 3})
    with pytest.raises(
        ValueError, match=r"photo: domains need the same .* 'bee' is in only one of"
    ):
        folders.domains(tmp_path)
    shutil.rmtree(tmp_path / "art")
    (tmp_path / "splits" / "lists").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"splits: is no domain: it needs <class>/ or train/<class>"
    ):
        folders.domains(tmp_path)


def test_imagenette_and_imagenet_are_told_from_other_sets(tmp_path, write_folder):
    write_folder(tmp_path / "imagenette2-160", photographs.IMAGENETTE_CLASSES, train=1, val=1)
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
    with pytest.raises(ValueError, match=r"own\.npz: .*" + message.removeprefix("own.npz: ")):
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
