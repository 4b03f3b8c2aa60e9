"""Lines of the plan that only a diffusion has."""

from pathlib import Path

from model.condition import LabelCondition
from utils.data import ImageSet
from utils.data.symmetry import may_be_mirrored
from utils.training.diffused_images import DiffusedImages


def condition_lines(source: DiffusedImages, folder: Path | None) -> list[str]:
    """On what steers the images, from that folder, or is made with them."""
    if source.masks is not None:
        numbers = ", ".join(map(str, source.masks.values))
        return [f"masks       are made together with the images, of the labels {numbers}"]
    condition = source.condition
    if condition is None:
        return []
    if isinstance(condition, LabelCondition):
        numbers = ", ".join(map(str, condition.values))
        what = f"label maps of {len(condition.values)} labels ({numbers})"
    else:
        what = "grey pictures" if condition.planes == 1 else "RGB pictures"
    return [f"conditions  {what} in {folder}"]


def class_lines(is_labelled: bool) -> list[str]:
    """Where nothing but images is learned."""
    return [] if is_labelled else ["classes     none are learned: the images are one set"]


def optimizer_line(
    optim: str, lr: float, dropout: float, ema_length: float | None, ema_decay: float | None
) -> str:
    """On how the weights are found."""
    if ema_length is None:
        averaged = f"with decay {ema_decay:g}"
    else:
        averaged = f"with a width of {ema_length:.0%} of the steps so far"
    return (
        f"optimizer   {optim}, learning rate up to {lr:g}, dropout {dropout:g}; weights averaged "
        f"{averaged}"
    )


def loss_line(loss_weight: str, time_steps: str) -> str:
    """On what the loss of a time step counts."""
    drawn = "by that weight" if time_steps == "weighted" else "evenly"
    return f"loss        weighed as {loss_weight} at each time step; these are drawn {drawn}"


def augmentation_lines(images: ImageSet, augment: float, flip: bool) -> list[str]:
    """On what happens to the images of a step, or could."""
    if augment > 0:
        return [
            f"augment     {augment:g}: images are mirrored, scaled, turned, stretched and moved "
            "at random; the samples are not (--augment 0: images as they are)"
        ]
    if not flip and may_be_mirrored(images):
        return ["mirror      the images look alike either way round: --flip doubles them"]
    return []
