"""Stands in for tools/evaluate.py in tests of what starts it."""

import json
import sys
from pathlib import Path

options = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[2:])
if options["num_images"] == "666":
    print(f"error: {sys.argv[1]} has too few images", file=sys.stderr)
    sys.exit(2)
figures = {"n": 100, "kid": 0.25, "fd": None, "floor": {"kid": 0.0}, "warnings": []}
Path(options["json"]).write_text(json.dumps({**figures, "weights": options["weight_path"]}))
