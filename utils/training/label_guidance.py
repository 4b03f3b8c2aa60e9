"""Whether the images of a finished run are to be led towards their labels."""

from collections.abc import Callable
from dataclasses import asdict

from utils.console import say
from utils.guidance_choice import LED_BY_LABELS
from utils.training.held_out import HeldOutLoss
from utils.training.state import TrainState

# Of `HeldOutLoss.gain_of_labels`. Networks of garments have 0.5 to 0.6, where being led by labels
# paid; those of emoji 0.15, of pixel art 0.07 and of photographs 0.04, where it did harm.
MUCH_IS_SAID = 0.3
MANY_IMAGES = 10_000  # of 2,000 garments a guide that is told led better


class LabelGuidance:
    """Called after the last step of a run on many images that keeps a guide: where the labels say
    much about the images, the checkpoint's config recommends a guide that is not told them.

    Such a guide leads images towards their labels, and where these say little, towards chance.
    """

    def __init__(self, held_out_loss: HeldOutLoss, log: Callable[[str], None] = say):
        self.held_out_loss = held_out_loss
        self.log = log

    def __call__(self, state: TrainState, should_stop: Callable[[], bool]) -> bool:
        """All processes call it together. It takes no longer than an evaluation, so that nobody
        asks it to stop.
        """
        gain = self.held_out_loss.gain_of_labels(state.ema.network)
        if gain >= MUCH_IS_SAID:
            state.config["sampling"]["recommended_guidance"] = asdict(LED_BY_LABELS)
            self.log(
                f"the classes say much about the images ({gain:.0%} of the loss of noisy ones): "
                f"where nobody says otherwise, they are made with {LED_BY_LABELS}"
            )
        return True
