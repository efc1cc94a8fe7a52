"""What objectives need to know of a tokenizer, read once: special ids, sentinels, and tables over the vocabulary."""

import re
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase


ROLES = ("bos", "eos", "pad", "cls", "sep", "mask")
MODE_TOKENS = ("[R]", "[S]", "[X]")  # of UL2
SENTINEL = re.compile(r"<extra_id_(\d+)>")
SENTENCE_ENDS = (".", "!", "?", "\n", "。", "！", "？")


@dataclass(frozen=True)
class SpecialTokens:
    """Special ids of a tokenizer.

    Attributes:
        ids: role ("bos", "eos", "pad", "cls", "sep", "mask") -> id, roles that the tokenizer lacks left out.
        sentinels: (count,) int64, `<extra_id_0>` first.
        is_special: (vocab_size,) bool.
        ordinary: ids that are not special, int64.
        mode_ids: UL2's mode token -> id, those of `MODE_TOKENS` that the tokenizer has.
    """

    ids: dict[str, int]
    sentinels: np.ndarray
    is_special: np.ndarray
    ordinary: np.ndarray = field(repr=False)
    mode_ids: dict[str, int]

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        vocabulary = tokenizer.get_vocab()
        sentinels = sorted((int(m[1]), i) for token, i in vocabulary.items() if (m := SENTINEL.fullmatch(token)))
        is_special = np.zeros(max(vocabulary.values()) + 1, bool)
        special = [*tokenizer.all_special_ids, *(i for _, i in sentinels)]
        special += [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        is_special[special] = True
        roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
        return cls(
            ids={role: i for role, i in roles.items() if i is not None},
            sentinels=np.array([i for _, i in sentinels], np.int64),
            is_special=is_special,
            ordinary=np.flatnonzero(~is_special),
            mode_ids={token: vocabulary[token] for token in MODE_TOKENS if token in vocabulary},
        )

    def require(self, role: str, why: str) -> int:
        """Id of a role.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        if role not in self.ids:
            raise ValueError(
                f"tokenizer: has no {role}_token, which {why} needs; it has {', '.join(self.ids) or 'none'}"
            )
        return self.ids[role]


def sentence_ends(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Which tokens end a sentence or a line: (vocab_size,) bool."""
    size = max(tokenizer.get_vocab().values()) + 1
    texts = tokenizer.batch_decode([[i] for i in range(size)])
    return np.array([text.rstrip(" ").endswith(SENTENCE_ENDS) for text in texts])
