"""How tfds.zip was made: two tiny sets that TensorFlow Datasets prepared as array_record files.

python tests/data/make_tfds.py        (needs the extra "tfds"; made with tensorflow-datasets 4.9.10)
"""

import pathlib
import tempfile
import zipfile

import numpy as np
import tensorflow_datasets as tfds

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGENETTE = [
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
]


def picture(height: int, width: int, number: int) -> np.ndarray:
    """`[height, width, 3]` uint8 that is easily told from others, and compresses well."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((7 * number + 3 * y + 5 * x + 11 * c) % 256).astype(np.uint8)


class Cifar10(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("3.0.2")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=CIFAR10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40, 0), "test": self._generate_examples(10, 100)}

    def _generate_examples(self, count, first):
        for k in range(first, first + count):
            yield k, {"id": f"{k:03d}", "image": picture(32, 32, k), "label": 3 * k % 10}


class Imagenette(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="full-size-v2", version="1.0.0"),)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=IMAGENETTE),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(20, 0),
            "validation": self._generate_examples(10, 100),
        }

    def _generate_examples(self, count, first):
        for k in range(first, first + count):
            yield k, {"image": picture(32 + k % 3, 40, k), "label": k % 10}


def main() -> None:
    target = pathlib.Path(__file__).with_name("tfds.zip")
    with tempfile.TemporaryDirectory() as folder:
        for builder in (Cifar10, Imagenette):
            builder(data_dir=folder, file_format="array_record").download_and_prepare()
        root = pathlib.Path(folder)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for path in sorted(p for p in root.rglob("*/*.*.*/*") if p.is_file()):
                file.write(path, path.relative_to(root))


if __name__ == "__main__":
    main()
