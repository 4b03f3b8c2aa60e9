"""generate.py that also keeps each image as numbers, before they become pixels: NNNNN.pt beside
NNNNN.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tools import generate  # noqa: E402
from utils.generation import ImageGenerator  # noqa: E402


def generate_raw(args, ranks) -> None:
    write, finished = generate.write_image, ImageGenerator.finished
    numbers = []

    def finished_and_kept(self, last, edit=None):
        numbers.extend(self.sampler.finished_images(last.trajectory).cpu())
        return finished(self, last, edit)

    def write_both(pixels, file, settings):
        torch.save(numbers.pop(0).clone(), file.with_suffix(".pt"))
        write(pixels, file, settings)

    ImageGenerator.finished, generate.write_image = finished_and_kept, write_both
    original(args, ranks)


original, generate.generate = generate.generate, generate_raw
if __name__ == "__main__":
    generate.opt.run_script(generate.main)
