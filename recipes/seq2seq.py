"""Train an encoder-decoder, or a decoder from prompt to completion, to translate or to summarise.

    accelerate launch recipes/seq2seq.py --config recipes/configs/seq2seq-verses.yaml [--section.field value ...]

A run that was stopped, by Ctrl-C, SIGTERM or a crash, goes on with the same command.
"""

import sys

from hf_llm.training.command import main
from hf_llm.tuning.seq2seq import Seq2Seq


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, Seq2Seq))
