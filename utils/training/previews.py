"""The picture that a run draws now and then: samples of the averaged network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from model.guidance import needs_null
from utils.generation import ImageGenerator
from utils.pictures import image_grid

MOST_ROWS = 20  # one per class
COLUMNS = 8  # without classes


@dataclass
class PreviewGrid:
    """`per_class` images of each class, one row per class (20 rows at most); without classes,
    `per_class` in all.

    The noise is the same in every preview, so that they compare.
    """

    generator: ImageGenerator
    class_names: list[str]
    per_class: int
    batch_size: int

    @property
    def rows(self) -> list[str]:
        """The names of the rows; none without classes."""
        return self.class_names[:MOST_ROWS]

    @property
    def images(self) -> int:
        return self.per_class * max(1, len(self.rows))

    @property
    def network_rows(self) -> float:
        """Forward passes that a picture takes."""
        generator = self.generator
        is_guided = bool(self.rows) and needs_null(generator.cfg_scale)
        return self.images * generator.calls * (2 if is_guided else 1)

    def draw(self, sign_of_life: Callable[[], None]) -> Image.Image:
        """The picture. `sign_of_life` is called after each network call."""
        labels = [row for row in range(len(self.rows)) for _ in range(self.per_class)]
        parts = []
        for start in range(0, self.images, self.batch_size):
            seeds = range(start, min(start + self.batch_size, self.images))
            part = labels[start : start + self.batch_size] or None
            parts.append(self.generator.images(seeds, part, sign_of_life))
        columns = self.per_class if self.rows else min(COLUMNS, self.images)
        fallbacks = [f"class {row}" for row in range(len(self.rows))]
        return image_grid(torch.cat(parts), columns, self.rows, fallbacks=fallbacks)
