"""What a trained model has to know of its dataset, in `dataset.json`: to use it, no data are needed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ccl_jax.data.base import Dataset, StreamedDataset


class Facts(NamedTuple):
    """What is known of a dataset without its images.

    Attributes:
      name: What it is called.
      class_names: What each class shows.
      image_shape: (H, W, C) of what the model sees.
      side: Height and width in pixels that image files are brought to, of which the model sees the
        middle `image_shape`.
      mean: Of each channel, in units of pixel / scale.
      std: The same.
      scale: Pixel value that counts as 1.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @classmethod
    def of(cls, dataset: Dataset | StreamedDataset) -> "Facts":
        """Those of a dataset."""
        streamed = isinstance(dataset, StreamedDataset)
        return cls(
            dataset.name,
            tuple(dataset.class_names),
            tuple(dataset.image_shape),
            dataset.stored_side if streamed else max(dataset.image_shape[:2]),
            tuple(dataset.mean),
            tuple(dataset.std),
            dataset.scale,
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Facts":
        """The facts that `_asdict` gave to a JSON file.

        Raises:
          TypeError: They are not of their types.
        """
        facts = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
        many = lambda values, kind: (
            isinstance(values, tuple) and all(isinstance(x, kind) for x in values)
        )
        if not (
            many(facts.class_names, str)
            and many(facts.image_shape, int)
            and many((facts.side,), int)
            and many((*facts.mean, *facts.std, facts.scale), (int, float))
            and len(facts.image_shape) == 3
        ):
            raise TypeError(f"these are no facts of a dataset: {value}")
        return facts
