"""Train a reward model on preferences or on human ratings, and judge it on held-out pairs.

    accelerate launch recipes/reward_model.py --config recipes/configs/reward-sentiment.yaml [--section.field value]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.rlhf.reward_modeling import RewardModeling
from hf_llm.training.command import main


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, RewardModeling))
