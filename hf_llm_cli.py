"""The `hf-llm` command: look at models, use them, exchange them with native checkpoints, check and publish them.

A module beside the package: importing hf_llm loads torch, which `--help` need not wait for.
"""

import argparse
import json
from collections.abc import Callable


def info(arguments: argparse.Namespace) -> None:
    from hf_llm.info import report

    print(
        report(
            arguments.source,
            context=arguments.context,
            optimizer=arguments.optimizer,
            processes=arguments.processes,
            trust_remote_code=arguments.trust_remote_code,
        )
    )


def import_native(arguments: argparse.Namespace) -> None:
    from hf_llm.interop.folders import import_folder

    if move_adapter(arguments, "imported"):
        return
    model = import_folder(arguments.source, arguments.destination)
    print(f"{arguments.destination}: {type(model).__name__}, {model.num_parameters():,} parameters")


def export_native(arguments: argparse.Namespace) -> None:
    from hf_llm.interop.folders import export_folder

    if move_adapter(arguments, "exported"):
        return
    model = export_folder(arguments.source, arguments.destination, arguments.family)
    print(f"{arguments.destination}: {type(model).__name__} (model_type {model.config.model_type!r})")


def move_adapter(arguments: argparse.Namespace, done: str) -> bool:
    """Convert the source if it is a PEFT adapter. Returns whether it is one."""
    from hf_llm.interop import adapters, folders

    if not adapters.is_adapter(arguments.source):
        return False
    if arguments.base is None:
        raise ValueError(f"{arguments.source} is an adapter: name its base model, {done}, by --base.")
    folders.move_adapter(arguments.source, arguments.destination, arguments.base)
    print(f"{arguments.destination}: adapter for {arguments.base}")
    return True


def check_checkpoint(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from hf_llm.publishing import check

    disable_progress_bar()
    report = check(arguments.source, arguments.revision, arguments.trust_remote_code)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)
    if report.failures:
        raise SystemExit(1)


def publish_checkpoint(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from hf_llm.publishing import publish

    disable_progress_bar()
    report, commit = publish(
        arguments.source,
        arguments.repository,
        private=True if arguments.private else None,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        native=arguments.native,
    )
    print(f"{report}\n{commit.commit_url}")


def update_checkpoint(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from hf_llm.publishing import update

    disable_progress_bar()
    print(update(arguments.source, revision=arguments.revision))


def serve(arguments: argparse.Namespace) -> None:
    from transformers.cli.transformers import app

    import hf_llm  # noqa: F401 - transformers looks the class of a checkpoint up by its name

    app(args=["serve", *arguments.words], prog_name="hf-llm")


def merge_adapter(arguments: argparse.Namespace) -> None:
    from hf_llm.interop.folders import merge_folder

    model = merge_folder(arguments.source, arguments.destination, arguments.base)
    print(f"{arguments.destination}: {type(model).__name__}, {model.num_parameters():,} parameters")


def predict(arguments: argparse.Namespace) -> None:
    from hf_llm.use import predict_file

    columns = dict(pair.split("=", 1) for pair in arguments.columns)
    count = predict_file(opened(arguments), arguments.input, arguments.output, columns, arguments.resume)
    if arguments.output:
        print(f"{arguments.output}: {count:,} predictions")


def chat(arguments: argparse.Namespace) -> None:
    from hf_llm.use.chatting import chat

    arguments.task = "chat"
    chat(opened(arguments))


def demo(arguments: argparse.Namespace) -> None:
    from hf_llm.use.page import make_page

    make_page(opened(arguments)).launch(server_port=arguments.port, share=False, quiet=False)


def opened(arguments: argparse.Namespace):
    """The model that the command line names, with its options."""
    from dataclasses import fields

    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from hf_llm.use.tasks import Options, open_model

    disable_progress_bar()
    set_verbosity_error()
    given = {f.name: getattr(arguments, f.name, None) for f in fields(Options)}
    options = Options(**{name: value for name, value in given.items() if value is not None})
    return open_model(arguments.model, arguments.task, options)


# ---- the command line -----------------------------------------------------------------------------------------------

Argument = tuple[tuple[str, ...], dict]  # of `add_argument`


def argument(*names: str, **options) -> Argument:
    return names, options


_TRUST = argument(
    "--trust-remote-code",
    action="store_true",
    help="try the code that the checkpoint carries even if it is not the installed package's",
)
_BASE = "for a PEFT adapter: its base model"
_REVISION = argument("--revision", help="branch of a repository (default: main)")
_USE = (
    argument("model", metavar="MODEL", help="a checkpoint, ours or native, a PEFT adapter, or a Hub id"),
    argument("--max-new-tokens", type=int, help="of text that is generated (default: 256)"),
    argument("--temperature", type=float, help="of sampling (default: 0, the likeliest tokens)"),
    argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: float32)"),
    argument("--trust-remote-code", action="store_true", help="run the code that the checkpoint carries"),
)
_SYSTEM = argument("--system", help="system message of a chat")
_TASK = argument("--task", help="what the model is for, where its head does not say it; see below")

# name -> what it does, the function, its arguments
COMMANDS: dict[str, tuple[str, Callable, tuple[Argument, ...]]] = {
    "info": (
        "layers, parameters, FLOPs and memory of a model, without building it",
        info,
        (
            argument("source", metavar="PRESET|PATH", help="a preset, a checkpoint, a config.json, or a Hub id"),
            argument("--context", type=int, help="tokens of a sequence; by default as many as the model takes"),
            argument("--optimizer", default="adamw", choices=("adamw", "muon", "sgd"), help="for training memory"),
            argument("--processes", type=int, default=8, help="that train together (default: 8)"),
            argument("--trust-remote-code", action="store_true", help="run the code that the checkpoint carries"),
        ),
    ),
    "predict": (
        "what a model makes of each input of a file",
        predict,
        (
            *_USE,
            argument("input", metavar="INPUT", help="lines, .jsonl, .csv, .tsv, .parquet, also .gz; - is stdin"),
            argument(
                "-o", "--output", metavar="OUT", help=".jsonl, .csv, .tsv, .txt; by default JSON lines on stdout"
            ),
            _TASK,
            argument("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="inputs with another name"),
            argument("--batch-size", type=int, help="inputs of a batch (default: 16)"),
            argument("--num-beams", type=int, help="of beam search (default: 1)"),
            argument("--top-k", type=int, help="candidates for a mask (default: 5)"),
            argument("--prefix", help="before each text (default: as the model was trained)"),
            _SYSTEM,
            argument("--resume", action="store_true", help="go on after the records that OUT holds"),
        ),
    ),
    "chat": ("talk with a model in the terminal", chat, (*_USE, _SYSTEM)),
    "demo": (
        "a page in the browser for what a model is for (needs Gradio: the extra demo)",
        demo,
        (*_USE, _TASK, _SYSTEM, argument("--port", type=int, help="of localhost (default: the first free from 7860)")),
    ),
    "merge": (
        "write an adapter's base with the adapter merged into it",
        merge_adapter,
        (
            argument("source", metavar="ADAPTER", help="the folder of a PEFT adapter, or a Hub id"),
            argument("destination", metavar="DST", help="the folder to write, new or empty"),
            argument("--base", help="its base model, where the adapter names one that is not there"),
        ),
    ),
    "import": (
        "write a native checkpoint as one of hf_llm",
        import_native,
        (
            argument("source", metavar="SRC", help="a native checkpoint, its Hub id, or a PEFT adapter"),
            argument("destination", metavar="DST", help="the folder to write, new or empty"),
            argument("--base", help=f"{_BASE}, imported"),
        ),
    ),
    "export": (
        "write a checkpoint of hf_llm as a native one",
        export_native,
        (
            argument("source", metavar="SRC", help="a checkpoint of hf_llm, its Hub id, or a PEFT adapter"),
            argument("destination", metavar="DST", help="the folder to write, new or empty"),
            argument("--as", dest="family", metavar="FAMILY", help="its model_type; by default the nearest"),
            argument("--base", help=f"{_BASE}, exported"),
        ),
    ),
    "check": (
        "try a checkpoint by the code that it carries; exit code 1 if it fails",
        check_checkpoint,
        (
            argument("source", metavar="PATH|REPO", help="a checkpoint of hf_llm, or a Hub id"),
            _REVISION,
            argument("--json", action="store_true", help="the table as JSON"),
            _TRUST,
        ),
    ),
    "publish": (
        "check a checkpoint and, if nothing fails, upload it to the Hub",
        publish_checkpoint,
        (
            argument("source", metavar="PATH", help="a checkpoint of hf_llm"),
            argument("repository", metavar="REPO", help="OWNER/NAME, made if it does not exist"),
            argument("--private", action="store_true", help="a new repository is private"),
            argument("--revision", help="the branch to upload to, made if it does not exist (default: main)"),
            _TRUST,
            argument("--native", const="main", action="store_const", help="the native form on main, ours on hf_llm"),
            argument(
                "--native-on-branch",
                dest="native",
                const="branch",
                action="store_const",
                help="the native form on branch native",
            ),
        ),
    ),
    "update": (
        "replace the code in a checkpoint by that of the installed package",
        update_checkpoint,
        (argument("source", metavar="PATH|REPO", help="a checkpoint of hf_llm, or a Hub id"), _REVISION),
    ),
    "serve": (
        "`transformers serve` with the models of hf_llm",
        serve,
        (argument("words", nargs=argparse.REMAINDER, metavar="...", help="PATH and options of that command"),),
    ),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="hf-llm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (about, run, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        for names, options in arguments:
            command.add_argument(*names, **options)
        text = "a file with variants of your own, such as the one in a checkpoint; may be repeated"
        command.add_argument("--imports", action="append", default=[], metavar="FILE", help=text)
        command.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    try:
        if arguments.imports:
            from hf_llm import import_variants

            import_variants(arguments.imports)
        arguments.run(arguments)
    except (OSError, ValueError) as error:
        parser.exit(2, f"hf-llm: {error}\n")


if __name__ == "__main__":
    main()
