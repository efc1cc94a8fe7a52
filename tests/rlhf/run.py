"""One PPO run on the toy language, in processes of its own: run.py SETUP FOLDER SETTINGS-AS-JSON

It goes on from the last checkpoint in the folder, if there is one. Launched by test_resuming.py.
"""

import json
import sys
from pathlib import Path

import torch

from hf_llm.training.checkpoints import last_good_checkpoint
from rlhf.test_resuming import make


if __name__ == "__main__":
    torch.set_num_threads(1)
    setup, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    checkpoint = last_good_checkpoint(folder)
    run = make(folder, setup, **settings)
    run.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    run.accelerator.end_training()
