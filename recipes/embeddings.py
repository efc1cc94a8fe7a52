"""Train sentence embeddings on pairs of texts that belong together, for sentence-transformers.

    accelerate launch recipes/embeddings.py --config recipes/configs/embeddings-docstrings.yaml [--section.field value]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.training.command import main
from hf_llm.tuning.embeddings import Embeddings


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, Embeddings))
