"""What has alignment changed? Rewards, an independent judge, KL, perplexity, variety and samples, on one page.

python recipes/rlhf_report.py --config recipes/configs/demo-rlhf/report.yaml [--key value ...]
"""

import argparse
import logging
import sys

from studies.comparison import compare, load_comparison_config


def main() -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the comparison")
    known, overrides = parser.parse_known_args()
    try:
        compare(load_comparison_config(known.config, overrides))
    except ValueError as error:
        print(f"rlhf_report.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
