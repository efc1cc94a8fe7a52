"""A small corpus, tokenizers trained on it, and a datasets cache of the tests' own."""

import datasets
import numpy as np
import pytest

from hf_llm.data import make_objective, train_tokenizer


# what can be packed from plain text
TRAINABLE = [
    ("causal", "decoder"),
    ("prefix_lm", "decoder"),
    ("masked_lm", "encoder"),
    ("span_corruption", "encoder-decoder"),
    ("span_corruption", "decoder"),
    ("bart", "encoder-decoder"),
    ("prefix_lm", "encoder-decoder"),
    ("ul2", "encoder-decoder"),
    ("ul2", "decoder"),
]
WORDS = (
    "the quick brown fox jumps over lazy dogs while seven café owners watch from naïve ☃ hills and print(x)".split()
)


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Random documents of very different lengths, with sentences, line breaks, indents and non-ASCII characters."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        words = rng.choice(WORDS, int(np.exp(rng.uniform(0, 6.5))) + 1)
        ends = rng.choice([" ", " ", " ", ". ", "\n    "], len(words))
        documents.append("".join(w + e for w, e in zip(words, ends, strict=True)) + str(rng.integers(10**9)))
    return documents


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Keeps the tests out of the user's cache."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(200)


@pytest.fixture(scope="session")
def corpus(documents) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": documents})


@pytest.fixture(scope="session")
def tokenizers(documents):
    """stack -> byte-level BPE tokenizer."""
    extra = ["[R]", "[S]", "[X]"]
    return {
        stack: train_tokenizer(documents, "bpe", 520, stack, extra_special_tokens=extra, show_progress=False)
        for stack in ("decoder", "encoder", "encoder-decoder")
    }


@pytest.fixture(params=TRAINABLE, ids="-".join)
def trainable(request) -> tuple[str, str]:
    """(objective, stack)"""
    return request.param


@pytest.fixture(scope="session")
def objective_for(tokenizers):
    """(objective, stack) -> a tokenizer with the tokens that it needs, and the objective."""

    def get(name: str, stack: str):
        tokenizer = tokenizers["encoder-decoder" if name in ("ul2", "span_corruption") else stack]
        return tokenizer, make_objective(name, tokenizer, stack)

    return get
