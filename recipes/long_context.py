"""What models make of texts longer than those they were trained on.

    accelerate launch --cpu recipes/long_context.py positions --config recipes/configs/evaluation/long-context.yaml
    python recipes/long_context.py needle --config recipes/configs/evaluation/needle.yaml

`positions` trains a small model for each kind of positions and draws its loss by position, with and without RoPE
scaling, up to several times the training length. `needle` trains a tiny model to find a marked token in a haystack and
draws how many it finds, by length and depth.
"""

import sys
from pathlib import Path

from studies import long_context, needle
from studies.command import parser_of, run_study


def positions(settings: dict, folder: Path) -> str:
    return long_context.table(long_context.run_study(settings, folder))


STUDIES = {"positions": positions, "needle": needle.run_study}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("study", choices=STUDIES)
    return run_study(__file__, parser, lambda settings, folder, words: STUDIES[words.study](settings, folder))


if __name__ == "__main__":
    sys.exit(main())
