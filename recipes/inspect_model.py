"""Look inside a model on one text: attention maps, logit lens, token attributions, on one HTML page and as PNGs.

    python recipes/inspect_model.py outputs/demo --text "def fibonacci(n):"
    python recipes/inspect_model.py outputs/encoder-tiny --text "import [MASK]" --output inspected
    python recipes/inspect_model.py outputs/translator --text "In the beginning" --target "En el"

A decoder's next token is explained, an encoder's mask, and what an encoder-decoder writes after --target.
"""

import argparse
import sys
from pathlib import Path

from hf_llm.evaluation.opening import open_language_model
from studies import pictures
from studies.command import exit_status, parser_of
from studies.interpretation import attention_maps, integrated_gradients, logit_lens, make_example, shown


ATTENTION = {
    "attention": ("read", "read", "Which tokens (columns) each token (rows) attends to."),
    "encoder": ("read", "read", "Which tokens of the source each of them attends to."),
    "decoder": ("written", "written", "Which tokens of the target each of them attends to."),
    "cross": ("written", "read", "Which tokens of the source (columns) each token of the target (rows) attends to."),
}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("model", help="folder, Hub id, or a name of hf_llm.data.checkpoints")
    parser.add_argument("--text", required=True)
    parser.add_argument("--target", default="", help="beginning of what an encoder-decoder writes")
    parser.add_argument("--predict", help="the token to explain (default: the likeliest one)")
    parser.add_argument("--points", type=int, default=64, help="of the integration (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder (default: inspection in the model's)")
    parser.add_argument("--trust-remote-code", action="store_true")
    options = parser.parse_args()
    return exit_status(__file__, lambda: print(f"open {inspect(options)}/index.html"))


def inspect(options: argparse.Namespace) -> Path:
    """Write the page and the pictures; returns their folder."""
    opened = open_language_model(options.model, trust_remote_code=options.trust_remote_code)
    example = make_example(opened, options.text, options.target)
    token_id = None
    if options.predict is not None:
        ids = opened.tokenizer(options.predict, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"--predict {options.predict!r} is {len(ids)} tokens; name a single one")
        token_id = ids[0]
    attributions = integrated_gradients(opened, example, token_id, options.points)
    lens = logit_lens(opened, example)

    def decode(i: int) -> str:
        return shown(opened.tokenizer, lens.new_tensor([i], dtype=int))[0]

    predicted = decode(attributions.token_id)
    figures = {
        "Attributions": (
            "Integrated gradients of the prediction's log-probability, from neutral tokens to the text.",
            pictures.png(pictures.draw_attributions(attributions, example.read, predicted)),
        ),
        "Logit lens": (
            "What would be predicted at each token if the layers ended there; the last row is the model's own output.",
            pictures.png(pictures.draw_logit_lens(lens.cpu(), example.written, decode)),
        ),
    }
    for kind, maps in attention_maps(opened, example).items():
        rows, columns, text = ATTENTION[kind]
        name = "Attention" if kind == "attention" else f"Attention {kind}"
        drawn = pictures.draw_attention(maps, getattr(example, rows), getattr(example, columns), name)
        figures[name] = (text, pictures.png(drawn))
    local = Path(options.model)
    folder = options.output or (local if local.is_dir() else Path()) / "inspection"
    title = f"{local.name}: {options.text}" + (f" → {options.target}" if options.target else "")
    pictures.write(folder, pictures.page(title, example, attributions, predicted, figures), figures)
    return folder


if __name__ == "__main__":
    sys.exit(main())
