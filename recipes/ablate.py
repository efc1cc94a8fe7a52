"""Compare settings of a pretraining run at equal budget, with several seeds and confidence intervals.

    accelerate launch --cpu recipes/ablate.py --config recipes/configs/evaluation/ablation.yaml \\
        --vary norm_placement=pre,sandwich --vary position_embedding=rope,alibi --seeds 0,1,2 [--section.field value]

Every combination is trained with every seed; what is finished is not trained again. Writes a table (ablation.md,
ablation.json) and a plot (ablation.png) into the configuration's output_dir.
"""

import argparse
import logging
import sys
from pathlib import Path

from datasets import disable_progress_bars

from hf_llm.training.settings import load_settings, load_yaml
from studies.ablation import MATCHES, Study, parse_variations, table
from studies.cells import Stopped


def main() -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the pretraining run that is varied")
    parser.add_argument("--vary", action="append", default=[], metavar="FIELD=VALUE,VALUE", help="may be given often")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--match", default="parameters", help=f"what is equal in all runs: {', '.join(MATCHES)} (default: %(default)s)"
    )
    known, overrides = parser.parse_known_args()
    disable_progress_bars()
    try:
        settings = load_settings(known.config, overrides)
        output_dir = Path(settings.get("output_dir", "outputs/ablation"))
        variations, seeds = parse_variations(known.vary), load_yaml(f"[{known.seeds}]")
        result = Study(settings, variations, seeds, output_dir, known.match).run()
    except ValueError as error:
        print(f"ablate.py: error: {error}", file=sys.stderr)
        return 1
    except Stopped as error:
        print(f"ablate.py: {error}", file=sys.stderr)
        return 128 + error.signal
    print(f"\n{table(result)}\nwritten to {output_dir}/ablation.md, ablation.json and ablation.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
