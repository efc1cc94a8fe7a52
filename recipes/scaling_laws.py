"""Train a ladder of small models, fit a scaling law, predict a larger run, and train it to see.

    accelerate launch --cpu recipes/scaling_laws.py --config recipes/configs/evaluation/scaling-laws.yaml

The configuration is that of a pretraining run with a section `ladder`. What is finished is not trained again. Writes
scaling.json, scaling.md and scaling.png into output_dir.
"""

import argparse
import logging
import sys
from pathlib import Path

from datasets import disable_progress_bars

from hf_llm.training.launching import set_cpu_threads
from hf_llm.training.settings import load_settings
from studies.cells import Stopped
from studies.scaling_study import run_study, table


def main() -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file: a pretraining run with a section `ladder`")
    known, overrides = parser.parse_known_args()
    disable_progress_bars()
    try:
        settings = load_settings(known.config, overrides)
        set_cpu_threads(settings.get("cpu_threads"))
        output_dir = Path(settings.get("output_dir", "outputs/scaling-laws"))
        result = run_study(settings, output_dir)
    except ValueError as error:
        print(f"scaling_laws.py: error: {error}", file=sys.stderr)
        return 1
    except Stopped as error:
        print(f"scaling_laws.py: {error}", file=sys.stderr)
        return 128 + error.signal
    print(f"\n{table(result)}\nwritten to {output_dir}/scaling.md, scaling.json and scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
