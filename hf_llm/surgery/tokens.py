"""What a decoder's tokenizer needs before another stack can be trained with it."""

import math
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from ..data.tokenization import NUM_SENTINELS, STACK_TOKENS, TEMPLATES, mask_token, post_processor


# role -> the role whose token it can be: documents stay framed as they were
STAND_INS = {"cls_token": "bos_token", "sep_token": "eos_token"}
MASKS = {tokens["mask_token"] for tokens in STACK_TOKENS.values() if "mask_token" in tokens}
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
    if not tokenizer.mask_token and "mask_token" in roles:
        tokenizer.add_special_tokens({"mask_token": mask_token(roles["mask_token"], tokenizer.get_vocab())})
    tokenizer.add_special_tokens({role: token for role, token in roles.items() if role != "mask_token"})
    sentinels = [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)] if stack == "encoder-decoder" else []
    extra = [*sentinels, *extra_special_tokens]
    tokenizer.add_special_tokens({"extra_special_tokens": extra}, replace_extra_special_tokens=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        single, pair = (template.format(**roles) for template in TEMPLATES[stack])
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in roles.values()]
        backend.post_processor = post_processor(backend, single, pair, ids)
    return known


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    """Give a tokenizer, in place, further special tokens: chat markers, sentinels; "[MASK]" or "<mask>" is its mask
    unless it has one."""
    tokens = list(tokens)
    mask = next((token for token in tokens if token in MASKS), None)
    if mask is not None and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": mask_token(mask, tokenizer.get_vocab())})
        tokens.remove(mask)
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)


def token_fields(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, int | None]:
    """What a configuration takes from a prepared tokenizer: special ids, and the rows of embeddings and head: as many
    as the `vocab_size` of the decoder, or a multiple of 64 where these are too few."""
    needed = max(tokenizer.get_vocab().values()) + 1
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {"vocab_size": vocab_size if needed <= vocab_size else math.ceil(needed / 64) * 64, **ids}
