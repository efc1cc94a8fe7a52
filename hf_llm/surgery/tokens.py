"""What a decoder's tokenizer needs before another stack can be trained with it."""

import math
from collections.abc import Iterable

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from ..data.tokenization import NUM_SENTINELS, STACK_TOKENS, TEMPLATES


# role -> the role whose token it can be: documents stay framed as they were
STAND_INS = {"cls_token": "bos_token", "sep_token": "eos_token"}
OPTIONAL = ("unk_token",)  # byte-level tokenizers do without


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, stack: str, extra_special_tokens: Iterable[str] = ()) -> int:
    """
    Give a tokenizer, in place, the special tokens of a stack, and the frame that a text has there.

    Tokens that it has are used as they are: `cls` is `bos` and `sep` is `eos`, where there are such. Added are, for
    "encoder", mask and padding; for "encoder-decoder", the sentinels `<extra_id_0>`, ... as well, and the end token
    if it is missing. A tokenizer that is prepared already stays as it is.

    extra_special_tokens: further ones, such as UL2's "[R]", "[S]" and "[X]".

    Returns:
        How many ids it had before.
    """
    known = max(tokenizer.get_vocab().values()) + 1
    roles = {}
    for role, token in STACK_TOKENS[stack].items():
        present = getattr(tokenizer, role) or getattr(tokenizer, STAND_INS.get(role, role))
        if present or role not in OPTIONAL:
            roles[role] = present or token
    tokenizer.add_special_tokens(roles)
    sentinels = [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)] if stack == "encoder-decoder" else []
    extra = [*sentinels, *extra_special_tokens]
    tokenizer.add_special_tokens({"extra_special_tokens": extra}, replace_extra_special_tokens=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        single, pair = (template.format(**roles) for template in TEMPLATES[stack])
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in roles.values()]
        backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return known


def token_fields(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, int | None]:
    """What a configuration takes from a prepared tokenizer: special ids, and the rows of embeddings and head: as many
    as the `vocab_size` of the decoder, or a multiple of 64 where these are too few."""
    needed = max(tokenizer.get_vocab().values()) + 1
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {"vocab_size": vocab_size if needed <= vocab_size else math.ceil(needed / 64) * 64, **ids}
