"""Compare settings of a pretraining run at equal budget, with several seeds and confidence intervals.

    accelerate launch --cpu recipes/ablate.py --config recipes/configs/evaluation/ablation.yaml \\
        --vary norm_placement=pre,sandwich --vary position_embedding=rope,alibi --seeds 0,1,2 [--section.field value]

Every combination is trained with every seed; what is finished is not trained again. Writes a table (ablation.md,
ablation.json) and a plot (ablation.png) into the configuration's output_dir.
"""

import argparse
import sys
from pathlib import Path

from hf_llm.training.settings import load_yaml
from studies.ablation import MATCHES, Study, parse_variations, table
from studies.command import parser_of, run_study


def ablation(settings: dict, folder: Path, words: argparse.Namespace) -> str:
    variations, seeds = parse_variations(words.vary), load_yaml(f"[{words.seeds}]")
    return table(Study(settings, variations, seeds, folder, words.match).run())


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--vary", action="append", default=[], metavar="FIELD=VALUE,VALUE", help="may be given often")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--match", default="parameters", help=f"what is equal in all runs: {', '.join(MATCHES)} (default: %(default)s)"
    )
    return run_study(__file__, parser, ablation)


if __name__ == "__main__":
    sys.exit(main())
