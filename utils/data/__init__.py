"""From a folder of images to the batches of each training step.

index       what lies in the folder, with an account of every file
opening     a file -> its pixels as they are stored, and what it says of them
decode      a file -> pixels, as a colour-managed viewer shows them
cache       each image decoded once per machine
image_set   the data set; describe says in the plan what was found
order       which images each step sees
loader      batches
"""

from utils.data.cache import CACHE_CHOICES
from utils.data.decode import read_image
from utils.data.describe import describe
from utils.data.image_set import MODES, ImageSet, load_image_set
from utils.data.loader import Batches, TrainingSet, build_loader
from utils.data.order import StepSampler, steps_per_epoch

__all__ = [
    "CACHE_CHOICES",
    "MODES",
    "Batches",
    "ImageSet",
    "StepSampler",
    "TrainingSet",
    "build_loader",
    "describe",
    "load_image_set",
    "read_image",
    "steps_per_epoch",
]
