"""Train a decoder or encoder-decoder on rewards, of models or functions, by proximal policy optimization.

    accelerate launch recipes/ppo.py --config recipes/configs/ppo-sentiment.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import functools
import sys

from hf_llm.rlhf.aligning import align
from hf_llm.rlhf.methods import load_align_config
from hf_llm.training.command import main


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, functools.partial(load_align_config, "ppo"), functools.partial(align, "ppo")))
