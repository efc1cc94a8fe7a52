"""What models make of texts longer than those they were trained on.

    accelerate launch --cpu recipes/long_context.py positions --config recipes/configs/evaluation/long-context.yaml
    python recipes/long_context.py needle --config recipes/configs/evaluation/needle.yaml

`positions` trains a small model for each kind of positions and draws its loss by position, with and without RoPE
scaling, up to several times the training length. `needle` trains a tiny model to find a marked token in a haystack and
draws how many it finds, by length and depth.
"""

import argparse
import logging
import sys
from pathlib import Path

from datasets import disable_progress_bars

from hf_llm.training.launching import set_cpu_threads
from hf_llm.training.settings import build_section, load_settings
from studies import long_context, needle
from studies.cells import Stopped


def positions(settings: dict, output_dir: Path) -> None:
    print("\n" + long_context.table(long_context.run_study(settings, output_dir)))
    print(f"written to {output_dir}/long_context.md, long_context.json and long_context.png")


def find_needles(settings: dict, output_dir: Path) -> None:
    config = build_section(needle.NeedleConfig, settings.get("needle", {}), "needle")
    found = needle.recall(needle.finder(config, output_dir), config, output_dir)
    needle.plot(found, config, output_dir / "needle.png")
    print(f"written to {output_dir}/needle.json and needle.png")


STUDIES = {"positions": positions, "needle": find_needles}


def main() -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--config", required=True, help="YAML file, see recipes/configs/evaluation/")
    known, overrides = parser.parse_known_args()
    disable_progress_bars()
    try:
        settings = load_settings(known.config, overrides)
        set_cpu_threads(settings.get("cpu_threads"))
        STUDIES[known.study](settings, Path(settings.get("output_dir", f"outputs/{known.study}")))
    except ValueError as error:
        print(f"long_context.py: error: {error}", file=sys.stderr)
        return 1
    except Stopped as error:
        print(f"long_context.py: {error}", file=sys.stderr)
        return 128 + error.signal
    return 0


if __name__ == "__main__":
    sys.exit(main())
