"""Fine-tune a decoder on conversations, instructions or text (supervised fine-tuning).

    accelerate launch recipes/sft.py --config recipes/configs/sft-chitchat.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.training.command import main
from hf_llm.tuning.sft import Sft


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, Sft))
