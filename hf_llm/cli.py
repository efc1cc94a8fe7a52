"""The `hf-llm` command: look at models, and exchange them with native checkpoints, from the shell."""

import argparse
import re
from collections import Counter


# the first pattern that matches a parameter's name decides its group
GROUPS = {
    "head": r"^(lm_head|score|classifier|qa_outputs|final_logits_bias)",
    "norms": r"norm",
    "experts": r"\bexperts\b",
    "attention": r"attn|attention",
    "feed-forward": r"\bmlp\b|feed_forward|\bfc\d",
    "embeddings": r"embed|\bwte\b|\bwpe\b|shared",
}


def parameter_groups(model) -> dict[str, int]:
    """Parameters of `model` by group of `GROUPS` (anything else is "other"). Tied parameters count once, under the
    name that comes first, so the groups sum to the model's size."""
    groups = Counter()
    for name, parameter in model.named_parameters():
        group = next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "other")
        groups[group] += parameter.numel()
    return dict(groups.most_common())


def build_on_meta(source: str, trust_remote_code: bool = False):
    """The model that the config at `source` (a directory, a JSON file or a Hub id) describes, without storage.

    Its class is the one named in `architectures`, else the language-model head of its model type, else the bare model.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    import hf_llm  # noqa: F401  (registers the Auto classes)

    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    auto_classes = (AutoModelForSeq2SeqLM, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel)
    candidates = [auto._model_mapping[type(config)] for auto in auto_classes if type(config) in auto._model_mapping]
    if not candidates:
        raise ValueError(f"no model class is registered for model_type {config.model_type!r} of {source}")
    named = [cls for cls in candidates if cls.__name__ in (config.architectures or ())]
    with torch.device("meta"):
        return (named or candidates)[0](config)


def info(arguments: argparse.Namespace) -> None:
    model = build_on_meta(arguments.source, arguments.trust_remote_code)
    groups = parameter_groups(model)
    total = model.num_parameters()
    assert sum(groups.values()) == total, f"the groups sum to {sum(groups.values())}, the model has {total} parameters"
    print(f"{type(model).__name__} ({model.config.model_type})")
    for group, count in groups.items():
        print(f"  {group:13} {count:16,}  {count / total:6.1%}")
    print(f"  {'total':13} {total:16,}  {2 * total / 2**30:.2f} GiB in bfloat16, {4 * total / 2**30:.2f} in float32")


def import_native(arguments: argparse.Namespace) -> None:
    from hf_llm.interop.folders import import_folder

    model = import_folder(arguments.source, arguments.destination)
    print(f"{arguments.destination}: {type(model).__name__}, {model.num_parameters():,} parameters")


def export_native(arguments: argparse.Namespace) -> None:
    from hf_llm.interop.folders import export_folder

    model = export_folder(arguments.source, arguments.destination, arguments.family)
    print(f"{arguments.destination}: {type(model).__name__} (model_type {model.config.model_type!r})")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="hf-llm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("info", help="parameters of a model by group, counted on the meta device")
    command.add_argument("source", metavar="CONFIG_OR_PATH", help="a checkpoint, a config.json, or a Hub id")
    command.add_argument("--trust-remote-code", action="store_true", help="run the code that the checkpoint carries")
    command.set_defaults(run=info)
    command = commands.add_parser("import", help="write a native checkpoint as one of hf_llm")
    command.add_argument("source", metavar="SRC", help="a native checkpoint, or a Hub id")
    command.add_argument("destination", metavar="DST", help="the folder to write, new or empty")
    command.set_defaults(run=import_native)
    command = commands.add_parser("export", help="write a checkpoint of hf_llm as a native one")
    command.add_argument("source", metavar="SRC", help="a checkpoint of hf_llm, or a Hub id")
    command.add_argument("destination", metavar="DST", help="the folder to write, new or empty")
    command.add_argument("--as", dest="family", metavar="FAMILY", help="its model_type; by default the nearest")
    command.set_defaults(run=export_native)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (OSError, ValueError) as error:
        parser.exit(1, f"hf-llm: {error}\n")


if __name__ == "__main__":
    main()
