"""What has alignment changed? Rewards, an independent judge, KL, perplexity, variety and samples, on one page.

python recipes/rlhf_report.py --config recipes/configs/demo-rlhf/report.yaml [--key value ...]
"""

import sys

from hf_llm.training.command import main
from studies.comparison import Comparison


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, Comparison))
