"""What is compared, and which of it is installed. Imports nothing that a contender needs, so that a
fresh process pays for one of them alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from utils.benchmarks.case import Case
    from utils.devices import Precision

# What train.py imports before its first step.
IMPORTS_OF_TRAINING = (
    "utils.data",
    "utils.data.flatness",
    "utils.data.pairs",
    "utils.training.diffused_images",
    "utils.training.run",
    "utils.training.diffusion_task",
    "utils.training.evaluation",
    "utils.evaluation.features",
    "utils.training.held_out",
    "utils.training.label_guidance",
    "utils.training.previews",
    "utils.training.recipe_choice",
    "utils.training.recommendation",
    "utils.runs.autoencoders",
    "utils.generation",
    "utils.data.symmetry",
)

# What a contender can be asked for.
TRAIN, CALL, SAMPLE, OVERHEAD = "train", "call", "sample", "overhead"

OTHER_LAYERS = "other layers"


@dataclass(frozen=True)
class Entry:
    """A contender, before anything of it is imported."""

    name: str  # library, optimizer
    module: str  # of this package, with a function `build`
    package: str | None = None  # what it needs: its name for Python, None: nothing
    pip_name: str = ""  # and for pip
    settings: tuple[str, ...] = ()  # for `build`, last
    only_trains: bool = False  # its network is another entry's, so its calls are not measured again
    same_weights: bool = True  # layers and weights are ours
    imports: tuple[str, ...] = ()  # what a training script of this kind imports besides

    @property
    def label(self) -> str:
        """The name, and what is to be known of its network."""
        return self.name if self.same_weights else f"{self.name} ({OTHER_LAYERS})"

    @property
    def network_label(self) -> str:
        """The same where the optimizer does not matter."""
        library = self.name.partition(",")[0]
        return library if self.same_weights else f"{library} ({OTHER_LAYERS})"


DIFFUSERS = "diffusers"
ENTRIES = {
    "ours_muon": Entry("ours, muon", "ours", settings=("muon",), imports=IMPORTS_OF_TRAINING),
    "ours_adamw": Entry(
        "ours, adamw",
        "ours",
        settings=("adamw",),
        only_trains=True,
        imports=IMPORTS_OF_TRAINING,
    ),
    DIFFUSERS: Entry("diffusers, adamw", "diffusers_peer", DIFFUSERS, DIFFUSERS),
    "denoising_diffusion_pytorch": Entry(
        "denoising_diffusion_pytorch, adam",
        "lucidrains_peer",
        "denoising_diffusion_pytorch",
        "denoising-diffusion-pytorch",
        same_weights=False,
    ),
}


@dataclass(frozen=True)
class Contender:
    """A network, and what is measured of it."""

    network: "nn.Module"  # which `train` trains
    frozen: "Callable[[], nn.Module]"  # as `call` and `sample` call it; made at the first time
    operations: float  # floating-point, of a forward pass on one image
    train: Callable[[], None]  # one step
    call: Callable[[], None]  # the network on a batch, without gradients
    sample: Callable[[], Any]  # a batch of images


def is_installed(entry: Entry) -> bool:
    return entry.package is None or find_spec(entry.package) is not None


def left_out_lines() -> list[str]:
    """A line for each peer that is not installed."""
    return [
        f"{entry.package} is left out: it is not installed (pip install {entry.pip_name})"
        for entry in ENTRIES.values()
        if not is_installed(entry)
    ]


def import_contender(key: str) -> Any:
    """The module of a contender, with all that it imports."""
    for name in ENTRIES[key].imports:
        import_module(name)
    return import_module(f"utils.benchmarks.{ENTRIES[key].module}")


def build_contender(
    key: str,
    case: "Case",
    precision: "Precision",
    weights: "dict[str, Tensor] | None" = None,  # of our network; None: untrained
) -> Contender:
    """The contender on its device, ready to be measured."""
    return import_contender(key).build(case, precision, weights, *ENTRIES[key].settings)
