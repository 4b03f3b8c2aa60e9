"""How the images of a run are to be made, where that was found out after its last step."""

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.runs.checkpoint import Checkpoint
from utils.runs.files import read_metadata
from utils.runs.names import SLIM
from utils.training.length import RunLength
from utils.training.state import TrainState

# Keys of config["sampling"]: compare_samplers.py writes both, the end of a run the second alone.
STEPS, GUIDANCE = "sample_steps", "recommended_guidance"

FOR_EARLIER_WEIGHTS = (
    "the sampler that compare_samplers.py recommended was for the weights before these steps: it "
    "is dropped; compare again afterwards"
)


def recommended_sampling(resumed: Checkpoint) -> dict[str, Any]:
    """What is recommended for the weights that a run resumes from, in its checkpoint or in
    ema_last.pt of the same step beside it, as config["sampling"]; empty where nothing is.
    """
    recommended: dict[str, Any] = resumed.config.get("sampling", {})
    file = Path(resumed.source).with_name(SLIM)
    try:
        slim = Checkpoint.parse(read_metadata(file), file)
    except UserError:
        slim = None
    if slim is not None and slim.state["step"] == resumed.state["step"]:
        of_slim = slim.config.get("sampling", {})
        if STEPS in of_slim:
            recommended = of_slim
    return dict(recommended) if recommended.keys() & {STEPS, GUIDANCE} else {}


def usual_sampler(resumed: Checkpoint) -> str | None:
    """The sampler of the previews of a run that is resumed; None where it is not known. One that
    compare_samplers.py has recommended since is that of earlier weights.
    """
    sampling = resumed.config.get("sampling", {})
    if STEPS in sampling:
        return resumed.args.get("sample")
    return sampling.get("sampler")


def keep_recommended(state: TrainState, recommended: dict[str, Any], length: RunLength) -> str:
    """A run that is resumed after its last step keeps what is recommended; a remark where steps
    follow, after which it would not hold.
    """
    if not recommended:
        return ""
    if state.step >= length.total_steps:
        state.config["sampling"] = recommended
        return ""
    return FOR_EARLIER_WEIGHTS if STEPS in recommended else ""
