"""generate.py that also keeps each image as numbers, before they become pixels: NNNNN.pt beside
NNNNN.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tools import generate  # noqa: E402


def generate_raw(args, ranks) -> int:
    write = generate.write_image

    def write_both(image, file, settings):
        torch.save(image.clone(), file.with_suffix(".pt"))
        write(image, file, settings)

    generate.write_image = write_both
    return original(args, ranks)


original, generate.generate = generate.generate, generate_raw
if __name__ == "__main__":
    generate.opt.run_script(generate.main)
