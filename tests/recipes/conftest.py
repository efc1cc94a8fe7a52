"""`import studies`, as in the recipes, whose folder Python puts on the path when it runs one of them."""

import sys
from pathlib import Path


# at the end, for recipes/evaluate.py has the name of a library
sys.path.append(str(Path(__file__).parents[2] / "recipes"))
