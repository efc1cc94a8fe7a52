"""Open a language model, as anybody would open it, and print what it makes of some prompts.

    python recipes/generate.py outputs/demo [--prompt TEXT ...] [--max-new-tokens 96] [--temperature 0.6]

Without --prompt, the prompts in the configuration of the run that made the model are used. transformers' Auto classes
open it, with the code that was saved beside the weights. For files and other kinds of models: `hf-llm predict`.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from hf_llm import import_variants
from hf_llm.training.checkpoints import last_good_checkpoint
from hf_llm.training.samples import draw_samples
from hf_llm.training.saving import RUN_CONFIG
from hf_llm.training.stacks import stack_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a trained model")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.6, help="0 decodes greedily")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--imports", action="append", default=[], metavar="FILE", help="variants of your own")
    options = parser.parse_args()

    if not (options.model / "config.json").is_file():
        print(f"generate.py: error: {options.model} holds no model (config.json is missing)", file=sys.stderr)
        return 2
    import_variants(options.imports)
    prompts = options.prompt or run_prompts(options.model)
    config = AutoConfig.from_pretrained(options.model)
    stack, architecture = stack_of(config), (config.architectures or [""])[0]
    if not architecture.endswith(("LM", "ForConditionalGeneration")):
        print(
            f"generate.py: error: {options.model} is a {architecture}, no language model: use hf-llm predict",
            file=sys.stderr,
        )
        return 2
    if not prompts:
        print(f"generate.py: error: no run is recorded in {options.model}: give --prompt TEXT", file=sys.stderr)
        return 2
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = stack.auto_class.from_pretrained(options.model, trust_remote_code=True)
    settings = {"max_new_tokens": options.max_new_tokens, "temperature": options.temperature, "seed": options.seed}
    for sample in draw_samples(model, tokenizer, prompts, **settings):
        join = "" if stack.name == "decoder" else "\n-> "
        print(f"{'-' * 80}\n{sample.prompt}{join}{sample.output}")
    print("-" * 80)
    return 0


def run_prompts(model: Path) -> list[str]:
    """The prompts that the run in this directory was configured with."""
    checkpoint = last_good_checkpoint(model, contents=False)
    if checkpoint is None:
        return []
    return json.loads((checkpoint / RUN_CONFIG).read_text(encoding="utf-8"))["samples"]["prompts"]


if __name__ == "__main__":
    sys.exit(main())
