"""The command line that recipes beside the training ones share."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
from transformers.utils.logging import disable_progress_bar

from hf_llm.training.launching import set_cpu_threads
from hf_llm.training.settings import load_settings


class Stopped(Exception):
    """A run was stopped by a signal; the same command goes on.

    Attributes:
        signal: which.
    """

    def __init__(self, received: signal.Signals):
        super().__init__(f"stopped by {received.name}; the same command goes on from there")
        self.signal = received


def exit_status(recipe: str, job: Callable[[], None]) -> int:
    """Do a job. A user's error (ValueError) is printed as one line.

    Args:
        recipe: its file.

    Returns:
        Exit status: 2 after an error, 128 + its number after a signal.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    disable_progress_bar()  # of loading and filtering: the result is all that is to be read
    datasets.disable_progress_bars()
    try:
        job()
    except ValueError as error:
        print(f"{Path(recipe).name}: error: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"{Path(recipe).name}: {error}", file=sys.stderr)
        return 128 + error.signal
    return 0


def parser_of(about: str) -> argparse.ArgumentParser:
    """A parser whose help is a recipe's docstring."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def run_study(
    recipe: str, parser: argparse.ArgumentParser, study: Callable[[dict, Path, argparse.Namespace], str]
) -> int:
    """
    Run a study on the settings of `--config FILE` and of `--section.field value` behind it, and print its table.

    Args:
        recipe: its file.
        parser: of further words.
        study: takes settings, the folder of the results and the words; returns what is printed.

    Returns:
        Exit status, as `exit_status`.
    """
    parser.add_argument("--config", required=True, help="YAML file, see recipes/configs/evaluation")
    words, overrides = parser.parse_known_args()

    def job() -> None:
        settings = load_settings(words.config, overrides)
        set_cpu_threads(settings.get("cpu_threads"))
        folder = Path(settings.get("output_dir", f"outputs/{Path(recipe).stem}"))
        print(f"\n{study(settings, folder, words)}\nwritten to {folder}")

    return exit_status(recipe, job)
