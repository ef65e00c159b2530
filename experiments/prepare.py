"""Downloads a dataset with TensorFlow Datasets and prepares it as array_record files.

    pip install "ccl_jax[tfds]"
    python -m experiments.prepare --dataset=cifar10 --data_dir=DIR
    python -m experiments.cifar10 --data_dir=DIR

Preparing needs TensorFlow, reading does not. ImageNet cannot be downloaded freely: put
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into DIR/downloads/manual first.
"""

import sys
from collections.abc import Sequence

from absl import flags

from ccl_jax.data import tfds_sets
from ccl_jax.names import look_up
from experiments import cli
from experiments.flag_values import FlagValues


def prepare(dataset: str, data_dir: str) -> str:
    """Downloads and prepares a dataset, unless that is done already.

    Args:
      dataset: A key of `tfds_sets.SOURCES`.
      data_dir: Where to.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: An unknown dataset, TensorFlow is missing, or the preparation failed.
    """
    source = look_up("dataset to prepare", dataset, tfds_sets.SOURCES)
    try:
        import tensorflow  # noqa: F401 (TFDS would say it less clearly)
    except ImportError as error:
        raise ValueError(
            f'preparing {dataset} needs TensorFlow ({error}): pip install "ccl_jax[tfds]", or put '
            "the original files into data_dir, which need no preparation."
        ) from error
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(source.full_name, data_dir=data_dir, file_format=tfds_sets.FORMAT)
        builder.download_and_prepare()
    # Downloads fail in many ways, each with a type of its own.
    except Exception as error:
        raise ValueError(f"{source.full_name} could not be prepared: {error}") from error
    return str(builder.data_path)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the flags; returns the exit code."""

    def body() -> None:
        values = FlagValues()
        flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
        flags.DEFINE_string("dataset", None, "what to prepare", flag_values=values)
        flags.DEFINE_string("data_dir", None, "where to", flag_values=values)
        cli.parse(values, argv)
        if values["help"].value:
            print(f"{cli.page(__doc__, values)}\n\nDatasets: {', '.join(tfds_sets.SOURCES)}.")
            return
        dataset, data_dir = values["dataset"].value, values["data_dir"].value
        if dataset is None or data_dir is None:
            raise ValueError("give --dataset=NAME and --data_dir=DIR; --help tells more.")
        print(f"prepared: {prepare(dataset, data_dir)}")

    return cli.guard(body)


if __name__ == "__main__":
    sys.exit(main())
