"""A checkpoint in the hands of someone who has no hf_llm: opened by its own code and tried. Run by `checking.py`:

    python -P bare.py '{"sources": ["FOLDER or REPOSITORY", ...], "revision": null, "weights": true, "rows": "FILE"}'

Imports torch and transformers alone. Each row of the table is written to FILE as a line of JSON when it is known, so
that what was found remains if the process dies. Everything runs in float32 on the CPU; the head that was saved is
loaded once for all that is tried with it, and every other head once.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers


TOLERANCE = 1e-4  # of the largest logit: what float32 leaves between two orders of summation
LEAK = 1e-6  # of the largest logit: nothing at all, but for the shapes of experts' batches
DOCUMENTS = (5, 4)  # tokens
TARGETS = (3, 4)  # tokens of their targets, in an encoder-decoder
PADDING = 3
NEW_TOKENS = 12
PROMPT = "def main(arguments):"


class NotApplicable(Exception):
    """There is nothing to check; the message says why."""


def outcome(check: Callable[..., str], *arguments) -> tuple[str, str]:
    """How a check went, "passed", "failed" or "skipped", and what it saw. It raises ValueError where what it finds is
    wrong; other errors are what a user would have met, and are shown by their names."""
    try:
        return "passed", check(*arguments)
    except NotApplicable as reason:
        return "skipped", str(reason)
    except Exception as error:
        text = " ".join(str(error).split())
        return "failed", text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass
class Trial:
    """A checkpoint that is being tried. `tokenizer` is None unless it opens and fits; `model` is in float32.

    weights: whether it has any, and a tokenizer; else its classes are made from its configuration alone.
    """

    source: str
    revision: str | None
    weights: bool
    rows: Path
    config: object = None
    tokenizer: object = None
    model: object = None

    @property
    def arguments(self) -> dict:
        return {"revision": self.revision, "trust_remote_code": True}


def attempt(trial: Trial, name: str, check: Callable[..., str], *arguments) -> None:
    """Write the row of one check."""
    result, seen = outcome(check, trial, *arguments)
    row = {"source": trial.source, "check": name, "result": result, "seen": seen}
    with open(trial.rows, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def own_code(thing: object) -> str:
    """The name of the thing's class, which must come from the checkpoint."""
    require(
        type(thing).__module__.startswith("transformers_modules."),
        f"{type(thing).__module__}.{type(thing).__name__} is not the checkpoint's own code",
    )
    return type(thing).__name__


# ---- opening -------------------------------------------------------------------------------------------------------


def open_config(trial: Trial) -> str:
    config = transformers.AutoConfig.from_pretrained(trial.source, **trial.arguments)
    name, trial.config = own_code(config), config
    return name


def open_tokenizer(trial: Trial) -> str:
    """It opens, no id is beyond the embeddings, and a text becomes ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(trial.source, **trial.arguments)
    size = trial.config.get_text_config(decoder=True).vocab_size
    require(len(tokenizer), "it has no tokens: tokenizer files are missing")
    last = max(tokenizer.get_vocab().values())
    require(last < size, f"its ids go up to {last}, but the model has embeddings for {size} (`vocab_size`)")
    ids = tokenizer(PROMPT)["input_ids"]
    require(ids, f"{PROMPT!r} becomes no ids at all")
    trial.tokenizer = tokenizer
    template = ", with a chat template" if tokenizer.chat_template else ""
    return f"{type(tokenizer).__name__} of {len(tokenizer):,} tokens{template}; the model has {size:,} embeddings"


def open_head(trial: Trial, auto_name: str, saved: bool) -> str:
    """The head opens with the checkpoint's weights and answers. One that was not saved has new weights of its own."""
    auto_class = getattr(transformers, auto_name)
    if trial.model is not None or not trial.weights:  # the same class under another name: its weights are known
        with torch.device("meta"):
            name = own_code(auto_class.from_config(trial.config, trust_remote_code=True))
        return f"{name}, as above" if trial.weights else f"{name}, without weights"
    settings = {"output_loading_info": True, "ignore_mismatched_sizes": True, **trial.arguments}
    if saved:
        settings["dtype"] = torch.float32
    model, found = auto_class.from_pretrained(trial.source, **settings)
    name = own_code(model)
    new = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    body = "" if model.base_model is model else f"{model.base_model_prefix}."
    lacking = [key for key in new if saved or key.startswith(body)]
    require(not lacking, f"{name}: the checkpoint lacks, or has in other shapes, {shortened(lacking)}")
    extra = sorted(found["unexpected_keys"]) if saved else []
    require(not extra, f"{name}: the checkpoint has weights that the class does not: {shortened(extra)}")
    with torch.no_grad():
        output = model.eval()(**some_inputs(trial.config, auto_name))
    values = [value for value in output.values() if isinstance(value, torch.Tensor)]
    require(all(bool(value.isfinite().all()) for value in values), f"{name}: outputs that are not finite")
    if saved:
        trial.model = model
        return f"{name}, {model.num_parameters():,} parameters"
    return f"{name}; new: {shortened(new)}" if new else name


def shortened(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- inputs --------------------------------------------------------------------------------------------------------


def some_ids(config, length: int, seed: int) -> torch.LongTensor:
    """(1, length) ids that are no special tokens."""
    special = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        value = getattr(config, name, None)
        special.update(value if isinstance(value, list) else [value])
    size = config.get_text_config(decoder=True).vocab_size
    words = torch.tensor([i for i in range(min(size, 1000)) if i not in special])
    return words[torch.randint(len(words), (1, length), generator=torch.Generator().manual_seed(seed))]


def some_inputs(config, auto_name: str | None) -> dict[str, torch.Tensor]:
    """A batch of one text for a head; of two choices where it chooses."""
    if auto_name == "AutoModelForMultipleChoice":
        return {"input_ids": some_ids(config, 2 * DOCUMENTS[0], 0).view(1, 2, -1)}
    inputs = {"input_ids": some_ids(config, DOCUMENTS[0], 0)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = some_ids(config, TARGETS[0], 1)
    return inputs


@torch.no_grad()
def outputs(model, **inputs) -> torch.Tensor:
    """(seq, size) logits of a language model, last hidden states of any other."""
    if model.get_output_embeddings() is not None:
        return model(**inputs).logits[0]
    return model.base_model(**inputs).last_hidden_state[0]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit where that is above one; infinite for what is none."""
    share = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    return float(share.nan_to_num(nan=float("inf")))


def within(share: float) -> str:
    return f"within {share:.0e}" if share else "equal"


# ---- trying --------------------------------------------------------------------------------------------------------


def generate(trial: Trial) -> str:
    """Greedy tokens with a cache and without: the logits agree up to the first token that differs (a tie), if any."""
    ids = some_ids(trial.config, DOCUMENTS[0], 0)
    if trial.tokenizer is not None:
        ids = trial.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1, "use_cache": True}
    settings |= {"output_logits": True, "return_dict_in_generate": True, "attention_mask": torch.ones_like(ids)}
    cached = trial.model.generate(ids, **settings)
    uncached = trial.model.generate(ids, **{**settings, "use_cache": False})
    worst, steps = 0.0, 0
    for found, expected in zip(cached.logits, uncached.logits):
        worst, steps = max(worst, difference(found, expected)), steps + 1
        if not found.argmax(-1).equal(expected.argmax(-1)):
            break
    require(worst <= TOLERANCE, f"logits with a cache and without differ by {worst:.1e} within {steps} tokens")
    new = cached.sequences[0] if trial.config.is_encoder_decoder else cached.sequences[0, ids.shape[1] :]
    shown = f"ids -> {new.tolist()}"
    if trial.tokenizer is not None:
        shown = f"{PROMPT!r} -> {trial.tokenizer.decode(new, skip_special_tokens=True)!r}"
    return f"{shown}; with a cache and without {within(worst)}"


def fill_mask(trial: Trial) -> str:
    """A masked token gets a guess."""
    if trial.tokenizer is None:
        raise NotApplicable("needs the tokenizer")
    require(trial.tokenizer.mask_token_id is not None, "the tokenizer has no mask token")
    ids = trial.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    ids[0, ids.shape[1] // 2] = trial.tokenizer.mask_token_id
    guess = outputs(trial.model, input_ids=ids)[ids.shape[1] // 2].argmax()
    return f"{trial.tokenizer.decode(ids[0])!r}: {trial.tokenizer.decode(guess)!r}"


def halves(trial: Trial, first_seed: int, second_seed: int) -> list[dict[str, torch.LongTensor]]:
    """Two documents, each as the inputs of a batch of its own."""
    documents = []
    for i, seed in enumerate((first_seed, second_seed)):
        document = {"input_ids": some_ids(trial.config, DOCUMENTS[i], seed)}
        if trial.config.is_encoder_decoder:
            document["decoder_input_ids"] = some_ids(trial.config, TARGETS[i], seed + 100)
        documents.append(document)
    return documents


def pack(trial: Trial, documents: list[dict[str, torch.LongTensor]]) -> list[torch.Tensor]:
    """Outputs of the documents in one row, cut where they end."""
    row = {}
    for name in documents[0]:
        parts = [document[name] for document in documents]
        row[name] = torch.cat(parts, dim=-1)
        numbers = [torch.full_like(part, number) for number, part in enumerate(parts)]
        row[name.replace("input_ids", "document_ids")] = torch.cat(numbers, dim=-1)
    lengths = TARGETS if trial.config.is_encoder_decoder else DOCUMENTS
    return list(outputs(trial.model, **row).split(lengths))


def check_packing(trial: Trial) -> str:
    """Two documents in a row: each as if alone, and neither hears of a change in the other."""
    documents = halves(trial, 1, 2)
    packed = pack(trial, documents)
    worst = max(difference(found, outputs(trial.model, **alone)) for found, alone in zip(packed, documents))
    require(worst <= TOLERANCE, f"a document packed with another and alone differ by {worst:.1e} of the largest logit")
    others = halves(trial, 3, 4)
    changes = (([others[0], documents[1]], 1), ([documents[0], others[1]], 0))
    leak = max(difference(pack(trial, row)[kept], packed[kept]) for row, kept in changes)
    require(leak <= LEAK, f"changing one document changes the other by {leak:.1e} of the largest logit")
    return f"packed and alone {within(worst)}; beside a document that changes, {within(leak)}"


def check_padding(trial: Trial) -> str:
    """Padding on either side, with the positions that real tokens have, changes nothing."""
    alone = halves(trial, 1, 2)[0]
    expected, worst = outputs(trial.model, **alone), {}
    fill = getattr(trial.config, "pad_token_id", None) or 0
    for side, widths in {"left": (PADDING, 0), "right": (0, PADDING)}.items():
        batch = {}
        for name, ids in alone.items():
            mask = torch.nn.functional.pad(torch.ones_like(ids), widths)
            batch[name] = torch.nn.functional.pad(ids, widths, value=fill)
            batch[name.replace("input_ids", "attention_mask")] = mask
            batch[name.replace("input_ids", "position_ids")] = (mask.cumsum(-1) - 1).clamp(min=0)
        found = outputs(trial.model, **batch)[widths[0] : widths[0] + len(expected)]
        worst[side] = difference(found, expected)
        require(worst[side] <= TOLERANCE, f"padding on the {side} changes outputs by {worst[side]:.1e}")
    return f"left {within(worst['left'])}, right {within(worst['right'])}"


def trials(model) -> dict[str, Callable[[Trial], str]]:
    """What is tried with a model."""
    if model.can_generate():
        use = {"generation": generate}
    else:
        use = {} if model.get_output_embeddings() is None else {"filling masks": fill_mask}
    return {**use, "packing": check_packing, "padding": check_padding}


def try_checkpoint(trial: Trial) -> None:
    attempt(trial, "AutoConfig", open_config)
    if trial.config is None:
        return
    if trial.weights:
        attempt(trial, "AutoTokenizer", open_tokenizer)
    heads = {auto: target for auto, target in trial.config.auto_map.items() if auto.startswith("AutoModel")}
    named = [auto for auto, target in heads.items() if target.split(".")[-1] in (trial.config.architectures or ())]
    for auto_name in named:
        attempt(trial, auto_name, open_head, auto_name, True)
    for name, check in () if trial.model is None else trials(trial.model).items():
        attempt(trial, name, check)
    trial.model = None  # two at a time might be more than there is memory for
    for auto_name in (auto_name for auto_name in heads if auto_name not in named):
        attempt(trial, auto_name, open_head, auto_name, False)


if __name__ == "__main__":
    sys.modules["hf_llm"] = None  # any import of it, or of a part of it, raises ImportError
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    request = json.loads(sys.argv[1])
    for source in request["sources"]:
        try_checkpoint(Trial(source, request["revision"], request["weights"], Path(request["rows"])))
