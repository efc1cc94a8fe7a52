"""Train sentence embeddings on pairs of texts that belong together, for sentence-transformers.

    accelerate launch recipes/embeddings.py --config recipes/configs/embeddings-docstrings.yaml [--section.field value]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import argparse
import logging
import sys
from pathlib import Path

from hf_llm.training.checkpoints import CheckpointError
from hf_llm.training.saving import TrainingDiverged
from hf_llm.tuning.embeddings import load_embeddings_config, train_embeddings


CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "tuning_template.md"


def main() -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the run, see recipes/README.md")
    known, overrides = parser.parse_known_args()
    try:
        stopped_by = train_embeddings(load_embeddings_config(known.config, overrides), CARD_TEMPLATE)
    except (ValueError, CheckpointError, TrainingDiverged) as error:
        print(f"embeddings.py: error: {error}", file=sys.stderr)
        return 1
    return 128 + stopped_by if stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
