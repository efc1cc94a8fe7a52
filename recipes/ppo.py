"""Train a decoder or encoder-decoder on rewards, of models or functions, by proximal policy optimization.

    accelerate launch recipes/ppo.py --config recipes/configs/ppo-sentiment.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.rlhf.aligning import ALIGNMENTS
from hf_llm.training.command import main


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, ALIGNMENTS["ppo"]))
