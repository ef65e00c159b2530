"""Sets of image files: Imagenette, ImageNet and a user's own; in memory, or as a stream."""

import itertools
from collections.abc import Sequence

from ccl_jax.data import folders
from ccl_jax.data.base import Dataset, ImageStore, StreamedDataset
from ccl_jax.data.loading import Images, Request, in_memory, prepared, with_own_constants

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels; the custom for all sets of photographs."""

IMAGENETTE_CLASSES = (
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
)
"""Imagenette's classes, as in WordNet: tench, English springer, cassette player, chain saw, church,
French horn, garbage truck, gas pump, golf ball, parachute."""


def load_imagenette(request: Request) -> Dataset:
    """Imagenette in memory, at 32x32 unless asked otherwise."""
    return _hold(request, *_imagenette(request))


def load_imagenette_full(request: Request) -> StreamedDataset:
    """Imagenette as a stream, at 224x224 unless asked otherwise."""
    return _stream(request, *_imagenette(request))


def _imagenette(request: Request) -> Images:
    found = _image_files(
        request,
        ("imagenette2", "imagenette2-320", "imagenette2-160"),
        "get it from https://github.com/fastai/imagenette, unpack it and give its folder as "
        f"data_dir, or run `python -m experiments.prepare --dataset={request.name}`",
    )
    if found[2] != IMAGENETTE_CLASSES:
        raise ValueError(
            f"{request.data_dir}: has the classes {', '.join(found[2][:3])} ..., Imagenette has "
            f"{', '.join(IMAGENETTE_CLASSES[:3])} ...: this is another set (dataset 'folder' takes "
            "any)."
        )
    return found


def load_imagenet(request: Request) -> StreamedDataset:
    """ImageNet (ILSVRC 2012) as a stream, at 224x224 unless asked otherwise."""
    found = _image_files(
        request,
        ("imagenet", "ILSVRC2012"),
        "get it from https://image-net.org, lay it out as train/<class>/ and val/<class>/ and give "
        "its folder as data_dir, or run `python -m experiments.prepare --dataset=imagenet`",
    )
    if len(found[2]) != 1000:
        raise ValueError(
            f"{request.data_dir}: has {len(found[2])} classes, ImageNet has 1000: it is not whole, "
            "or another set (dataset 'folder-full' takes any)."
        )
    return _stream(request, *found)


def load_folder(request: Request) -> Dataset:
    """A user's own image folders in memory, normalised by their own mean and std."""
    return with_own_constants(_hold(request, *_own_folder(request)))


def load_folder_full(request: Request) -> StreamedDataset:
    """A user's own image folders as a stream, normalised as ImageNet."""
    return _stream(request, *_own_folder(request))


def _own_folder(request: Request) -> Images:
    place = request.data_dir
    if place is not None and folders.is_undivided(place):
        return folders.divide(place)
    remedy = (
        "give a folder with train/<class>/ and val/<class>/, or with <class>/ only, in which lie images "
        "that Pillow reads, as .jpg or .png (a folder of domains is given as --domain=folder:PATH)"
    )
    return _image_files(request, (), remedy)


def _image_files(request: Request, below: Sequence[str], remedy: str) -> Images:
    """The images of data_dir, or of a folder `below` it, or prepared by TFDS."""
    place = request.data_dir
    if place is None:
        raise ValueError(f"{request.name} needs its files; no data_dir is given: {remedy}.")
    roots = [root for root in (place, *(place / b for b in below)) if folders.is_divided(root)]
    found = folders.list_images(roots[0]) if roots else prepared(request)
    if found is None:
        raise ValueError(f"{place}: has no folder train of {request.name}: {remedy}.")
    return found


def _hold(request: Request, train: ImageStore, test: ImageStore, names: Sequence[str]) -> Dataset:
    side = request.image_size or 32
    arrays = (*in_memory(train, side), *in_memory(test, side))
    constants = (IMAGENET_MEAN, IMAGENET_STD, 255.0)
    notes = _notes(request, train, test)
    return Dataset(request.name, *arrays, len(names), *constants, tuple(names), notes)


def _notes(request: Request, *stores: ImageStore) -> tuple[str, ...]:
    """What lies among the files and is not used."""
    lists = [store.unused for store in stores if isinstance(store, folders.FolderImages)]
    note = folders.unused_note(request.data_dir, itertools.chain(*lists))
    return (note,) if note else ()


def _stream(
    request: Request, train: ImageStore, test: ImageStore, names: Sequence[str]
) -> StreamedDataset:
    side = request.image_size or 224
    return StreamedDataset(
        request.name,
        train,
        test,
        (side, side, 3),
        # The custom for ImageNet: resize to 256 where the model sees 224.
        round(side * 256 / 224),
        len(names),
        IMAGENET_MEAN,
        IMAGENET_STD,
        255.0,
        tuple(names),
        _notes(request, train, test),
    )
