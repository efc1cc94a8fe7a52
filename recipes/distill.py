"""Distil a fine-tuned or pretrained model into a student with fewer layers.

    accelerate launch recipes/distill.py --config recipes/configs/distill-sentiment.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.training.command import main
from hf_llm.tuning.distillation import Distillation


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, Distillation))
