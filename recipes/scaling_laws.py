"""Train a ladder of small models, fit a scaling law, predict a larger run, and train it to see.

    accelerate launch --cpu recipes/scaling_laws.py --config recipes/configs/evaluation/scaling-laws.yaml

The configuration is that of a pretraining run with a section `ladder`. What is finished is not trained again. Writes
scaling.json, scaling.md and scaling.png into output_dir.
"""

import sys

from studies import scaling_study
from studies.command import parser_of, run_study


def main() -> int:
    def study(settings, folder, words) -> str:
        return scaling_study.table(scaling_study.run_study(settings, folder))

    return run_study(__file__, parser_of(__doc__), study)


if __name__ == "__main__":
    sys.exit(main())
