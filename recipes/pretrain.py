"""Pretrain an encoder, a decoder or an encoder-decoder on text.

    accelerate launch recipes/pretrain.py --config recipes/configs/demo.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.training.command import main
from hf_llm.training.pretraining import Pretraining


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, Pretraining))
