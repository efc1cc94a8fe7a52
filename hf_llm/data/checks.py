"""Checks of data against a model and a batch size, to be made before training starts."""

from transformers import PreTrainedTokenizerBase

from .packing import PackedRows


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Whether every id of the tokenizer has an embedding.

    Raises:
        ValueError: the tokenizer is larger than the model's vocabulary.
    """
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the tokenizer has ids up to {needed - 1}; must be at least {needed}"
        )


def check_token_ids(rows: PackedRows, vocab_size: int) -> None:
    """Whether every stored id has an embedding.

    Raises:
        ValueError: an id is out of range.
    """
    largest = int(rows.tokens.max())
    if largest >= vocab_size:
        raise ValueError(
            f"token id {largest}: out of range for vocab_size={vocab_size}; ids must be 0..{vocab_size - 1}"
        )


def check_corpus_size(rows: PackedRows, batch_size: int) -> None:
    """Whether the corpus fills one batch (global: over all processes and accumulation steps).

    Raises:
        ValueError: it does not.
    """
    if len(rows) < batch_size:
        raise ValueError(
            f"batch_size={batch_size}: the corpus fills only {len(rows)} rows of {rows.capacity[0]} tokens; "
            f"must be at most {len(rows)}, or take a larger corpus or shorter rows"
        )
