"""The command line that the training recipes share."""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

import yaml

from .checkpoints import CheckpointError
from .launching import check_num_processes
from .run import Run
from .saving import TrainingDiverged


def main(recipe: str, about: str, job: type[Run]) -> int:
    """
    Run a recipe with the words behind its name.

    Args:
        recipe: its file; the template of the model card is `model_cards/template.md` beside the folder of recipes.
        about: its docstring.
        job: what it does.

    Returns:
        Exit status: 2 after a user's mistake and 1 after another error, which are printed as one line; 128 + its
        number after a signal.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of the run, see recipes/README.md")
    parser.add_argument("--num-processes", type=int, help="stop unless the launcher has started as many processes")
    parser.add_argument("--print_config", action="store_true", help="print the checked settings as YAML, and stop")
    parser.add_argument("-h", "--help", action="store_true", help="print this and every key of a configuration")
    known, overrides = parser.parse_known_args()
    if known.help:
        print(parser.format_help(), "\nsettings, in the file or as --section.key value:\n", *job.describe(), sep="\n")
        return 0
    if known.config is None:
        parser.error("the following arguments are required: --config")
    try:
        check_num_processes(known.num_processes)
        config = job.load(known.config, overrides)
        if known.print_config:
            print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
            return 0
        stopped_by = job(config, Path(recipe).resolve().parents[1] / "model_cards" / "template.md").run()
    except (ValueError, CheckpointError, TrainingDiverged) as error:
        print(f"{Path(recipe).name}: error: {error}", file=sys.stderr)
        tell_torchrun(f"{Path(recipe).name}: error: {error}")
        return 2 if isinstance(error, ValueError) else 1
    return 128 + stopped_by if stopped_by else 0


def tell_torchrun(message: str) -> None:
    """Write an error where torchrun looks for it, so that its report of failed processes ends with the error itself
    (the format of `torch.distributed.elastic.multiprocessing.errors.ErrorHandler`)."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": details}}), encoding="utf-8")
