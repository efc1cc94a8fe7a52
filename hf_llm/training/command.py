"""The command line that the training recipes share."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .checkpoints import CheckpointError
from .launching import check_num_processes
from .saving import TrainingDiverged


Config = TypeVar("Config")


def main(
    recipe: str,
    about: str,
    load: Callable[[str, list[str]], Config],
    train: Callable[[Config, Path], signal.Signals | None],
    card_template: str = "tuning_template.md",
) -> int:
    """
    Run a recipe with the words behind its name.

    Args:
        recipe: its file.
        about: its docstring.
        load: makes the configuration of a YAML file's path and overrides.
        train: does what it says; its second argument is the path of the card's template.
        card_template: name of that template, in `model_cards/` beside the folder of recipes.

    Returns:
        Exit status: 1 after an error, which is printed, 128 + its number after a signal.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML file of the run, see recipes/README.md")
    parser.add_argument("--num-processes", type=int, help="stop unless the launcher has started as many processes")
    known, overrides = parser.parse_known_args()
    template = Path(recipe).resolve().parents[1] / "model_cards" / card_template
    try:
        check_num_processes(known.num_processes)
        stopped_by = train(load(known.config, overrides), template)
    except (ValueError, CheckpointError, TrainingDiverged) as error:
        print(f"{Path(recipe).name}: error: {error}", file=sys.stderr)
        return 1
    return 128 + stopped_by if stopped_by else 0
