"""Fine-tune a checkpoint: sequence or token classification, regression, question answering, multiple choice,
masked or causal language modelling.

    accelerate launch recipes/finetune.py --config recipes/configs/finetune-sentiment.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.training.command import main
from hf_llm.tuning.finetuning import Finetuning


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, Finetuning))
