"""The picture that a run draws now and then: samples of the averaged network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from model.guidance import needs_null
from utils.condition_pictures import behind_conditions, in_turn, label_map_of
from utils.generation import ImageGenerator
from utils.pictures import image_grid

MOST_ROWS = 20  # one per class
COLUMNS = 8  # without classes


@dataclass
class PreviewGrid:
    """`per_class` images of each class, one row per class (20 rows at most); without classes,
    `per_class` in all. Each stands behind its condition or mask, where there is one.

    The noise is the same in every preview, so that they compare.
    """

    generator: ImageGenerator
    class_names: list[str]
    per_class: int
    batch_size: int
    conditions: Tensor | None = None  # (n,P,H,W) uint8: what steers the images, in turn

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
        is_told = bool(self.rows) or self.conditions is not None
        is_guided = is_told and needs_null(generator.cfg_scale)
        return self.images * generator.calls * (2 if is_guided else 1)

    def draw(self, sign_of_life: Callable[[], None]) -> Image.Image:
        """The picture. `sign_of_life` is called after each network call."""
        labels = [row for row in range(len(self.rows)) for _ in range(self.per_class)]
        parts = []
        for start in range(0, self.images, self.batch_size):
            seeds = range(start, min(start + self.batch_size, self.images))
            part = labels[start : start + self.batch_size] or None
            conditions = None
            if self.conditions is not None:
                conditions = in_turn(self.conditions, seeds)
            for denoised in self.generator.denoise(seeds, part, conditions=conditions):
                sign_of_life()
                last = denoised
            images = self.generator.finished(last)
            if conditions is not None:
                images = behind_conditions(self.generator.condition, conditions, images)
            masks = self.generator.masks(last)
            if masks is not None:
                images = behind_conditions(label_map_of(self.generator.codec), masks, images)
            parts.append(images)
        columns = self.per_class if self.rows else min(COLUMNS, self.images)
        if self.conditions is not None or self.generator.makes_masks:
            columns *= 2
        fallbacks = [f"class {row}" for row in range(len(self.rows))]
        return image_grid(torch.cat(parts), columns, self.rows, fallbacks=fallbacks)
