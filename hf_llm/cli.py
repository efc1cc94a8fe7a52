"""The `hf-llm` command: look at models, exchange them with native checkpoints, check, publish and update them."""

import argparse
import json


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="hf-llm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    trust = "try the code that the checkpoint carries even if it is not the installed package's"
    command = commands.add_parser("info", help="layers, parameters, FLOPs and memory of a model, without building it")
    command.add_argument("source", metavar="PRESET|PATH", help="a preset, a checkpoint, a config.json, or a Hub id")
    command.add_argument("--context", type=int, help="tokens of a sequence; by default as many as the model takes")
    command.add_argument("--optimizer", default="adamw", choices=("adamw", "muon", "sgd"), help="for training memory")
    command.add_argument("--processes", type=int, default=8, help="that train together (default: 8)")
    command.add_argument("--trust-remote-code", action="store_true", help="run the code that the checkpoint carries")
    command.set_defaults(run=info)
    command = commands.add_parser("import", help="write a native checkpoint as one of hf_llm")
    command.add_argument("source", metavar="SRC", help="a native checkpoint, its Hub id, or a PEFT adapter")
    command.add_argument("destination", metavar="DST", help="the folder to write, new or empty")
    command.add_argument("--base", help="for a PEFT adapter: its base model, imported")
    command.set_defaults(run=import_native)
    command = commands.add_parser("export", help="write a checkpoint of hf_llm as a native one")
    command.add_argument("source", metavar="SRC", help="a checkpoint of hf_llm, its Hub id, or a PEFT adapter")
    command.add_argument("destination", metavar="DST", help="the folder to write, new or empty")
    command.add_argument("--as", dest="family", metavar="FAMILY", help="its model_type; by default the nearest")
    command.add_argument("--base", help="for a PEFT adapter: its base model, exported")
    command.set_defaults(run=export_native)
    command = commands.add_parser(
        "check", help="try a checkpoint by the code that it carries; exit code 1 if it fails"
    )
    command.add_argument("source", metavar="PATH|REPO", help="a checkpoint of hf_llm, or a Hub id")
    command.add_argument("--revision", help="of a repository")
    command.add_argument("--json", action="store_true", help="the table as JSON")
    command.add_argument("--trust-remote-code", action="store_true", help=trust)
    command.set_defaults(run=check_checkpoint)
    command = commands.add_parser("publish", help="check a checkpoint and, if nothing fails, upload it to the Hub")
    command.add_argument("source", metavar="PATH", help="a checkpoint of hf_llm")
    command.add_argument("repository", metavar="REPO", help="OWNER/NAME, made if it does not exist")
    command.add_argument("--private", action="store_true", help="a new repository is private")
    command.add_argument("--revision", help="the branch to upload to, made if it does not exist (default: main)")
    command.add_argument("--trust-remote-code", action="store_true", help=trust)
    form = command.add_mutually_exclusive_group()
    native = {"dest": "native", "action": "store_const"}
    form.add_argument("--native", const="main", **native, help="the native form on main, this one on branch hf_llm")
    form.add_argument("--native-on-branch", const="branch", **native, help="the native form on branch native")
    command.set_defaults(run=publish_checkpoint)
    command = commands.add_parser("update", help="replace the code in a checkpoint by that of the installed package")
    command.add_argument("source", metavar="PATH|REPO", help="a checkpoint of hf_llm, or a Hub id")
    command.add_argument("--revision", help="the branch of a repository (default: main)")
    command.set_defaults(run=update_checkpoint)
    command = commands.add_parser("serve", help="`transformers serve` with the models of hf_llm")
    command.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="PATH and options of that command")
    command.set_defaults(run=serve)
    for command in commands.choices.values():
        text = "a file with variants of your own, such as the one in a checkpoint; may be repeated"
        command.add_argument("--imports", action="append", default=[], metavar="FILE", help=text)
    arguments = parser.parse_args(argv)
    try:
        if arguments.imports:
            from hf_llm import import_variants

            import_variants(arguments.imports)
        arguments.run(arguments)
    except (OSError, ValueError) as error:
        parser.exit(1, f"hf-llm: {error}\n")


if __name__ == "__main__":
    main()
