"""Train an encoder-decoder, or a decoder from prompt to completion, to translate or to summarise.

    accelerate launch recipes/seq2seq.py --config recipes/configs/seq2seq-verses.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import argparse
import logging
import sys
from pathlib import Path

from hf_llm.training.checkpoints import CheckpointError
from hf_llm.training.saving import TrainingDiverged
from hf_llm.tuning.seq2seq import train_seq2seq
from hf_llm.tuning.seq2seq_config import load_seq2seq_config


CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "tuning_template.md"


def main() -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the run, see recipes/README.md")
    known, overrides = parser.parse_known_args()
    try:
        stopped_by = train_seq2seq(load_seq2seq_config(known.config, overrides), CARD_TEMPLATE)
    except (ValueError, CheckpointError, TrainingDiverged) as error:
        print(f"seq2seq.py: error: {error}", file=sys.stderr)
        return 1
    return 128 + stopped_by if stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
