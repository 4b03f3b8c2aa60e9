"""Which guidance images get: what was asked for, and where nobody says, what suits the weights."""

from dataclasses import dataclass

from model.guidance import needs_null

USUAL_CFG_SCALE = 1.5
USUAL_GUIDE_SCALE = 1.5  # of autoguidance


@dataclass(frozen=True)
class Guidance:
    """How images are guided. Scales of 1 do not guide."""

    cfg_scale: float = 1.0  # of classifier-free guidance
    guide_scale: float = 1.0  # of autoguidance
    guide_labels: bool = True  # whether the guide is told the labels

    @property
    def rows(self) -> int:
        """Rows through a network that each image takes in each call."""
        return self.rows_of(calls=1, guided_calls=1)

    def rows_of(self, calls: int, guided_calls: int) -> int:
        """Rows that each image takes in so many calls, so many of which are within the interval of
        classifier-free guidance.
        """
        without_label = guided_calls if needs_null(self.cfg_scale) else 0
        networks = 1 if self.guide_scale == 1 else 2
        return (calls + without_label) * networks

    def __str__(self) -> str:
        parts = []
        if self.cfg_scale != 1:
            parts.append(f"cfg {self.cfg_scale:g}")
        if self.guide_scale != 1:
            told = "" if self.guide_labels else " without labels"
            parts.append(f"guide {self.guide_scale:g}{told}")
        return " and ".join(parts) or "no guidance"


# Where labels say much about the images.
LED_BY_LABELS = Guidance(guide_scale=1.25, guide_labels=False)


@dataclass(frozen=True)
class Guidable:
    """What weights can be guided by."""

    has_guide: bool
    was_trained: bool  # without labels or conditions at times, so that they can be left out
    can_be_told: bool = True  # labels or conditions
    recommended: Guidance | None = None  # what was found to be best

    def choose(
        self,
        cfg_scale: float | None,  # None: not said, and so the next two
        guide_scale: float | None,
        guide_labels: bool | None,
        is_led: bool = False,  # a guide was named, and so is wanted
    ) -> Guidance:
        """What was said, and for the rest what is usual.

        An image is guided in one way unless both are asked for. Where nothing can be told, a scale
        of guidance by labels is as if it were not said, but for 1: no guidance. Whether the weights
        can do what was said is for the caller to see.
        """
        if not self.can_be_told:
            cfg_scale = 1.0 if cfg_scale == 1 else None
            guide_labels = None
        is_open = cfg_scale is None and guide_scale is None and not is_led
        usual = self.recommended if is_open and self._can_do_recommended else None
        if usual is not None:
            cfg_scale, guide_scale = usual.cfg_scale, usual.guide_scale
        if guide_scale is None:
            is_led = is_led or (self.has_guide and cfg_scale is None)
            guide_scale = USUAL_GUIDE_SCALE if is_led else 1.0
        if cfg_scale is None:
            is_by_labels = guide_scale == 1 and self.was_trained
            cfg_scale = USUAL_CFG_SCALE if is_by_labels else 1.0
        if guide_labels is None:
            guide_labels = True if self.recommended is None else self.recommended.guide_labels
            guide_labels = guide_labels or not self.was_trained
        return Guidance(cfg_scale, guide_scale, guide_labels)

    @property
    def _can_do_recommended(self) -> bool:
        """Not where the guide that was recommended has been taken out of the file, say."""
        found = self.recommended
        if found is None:
            return False
        needs_guide = found.guide_scale != 1
        leaves_labels_out = found.cfg_scale != 1 or not found.guide_labels
        return (self.has_guide or not needs_guide) and (self.was_trained or not leaves_labels_out)
