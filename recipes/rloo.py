"""Train a decoder on rewards, of functions or models, by REINFORCE leave-one-out.

    accelerate launch recipes/rloo.py --config recipes/configs/rloo-sentiment.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.rlhf.aligning import ALIGNMENTS
from hf_llm.training.command import main


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, ALIGNMENTS["rloo"]))
