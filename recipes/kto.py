"""Align a decoder with single completions judged good or bad, by Kahneman-Tversky optimization.

    accelerate launch recipes/kto.py --config recipes/configs/kto-piqa.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.rlhf.aligning import ALIGNMENTS
from hf_llm.training.command import main


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, ALIGNMENTS["kto"]))
