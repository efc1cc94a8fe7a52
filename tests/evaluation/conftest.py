"""Language models of the three stacks with byte tokenizers, opened for evaluation."""

import pytest
from models.tiny import tiny_model

from hf_llm.data import train_tokenizer
from hf_llm.evaluation.opening import opened


TEXTS = [
    "Two roads diverged in a yellow wood, and sorry I could not travel both",
    "naïve café",
    "To be, or not to be",
    "x",
]


@pytest.fixture(scope="session")
def tokenizers():
    sizes = {"decoder": 259, "encoder": 261, "encoder-decoder": 360}
    return {stack: train_tokenizer(TEXTS, "byte", n, stack=stack, show_progress=False) for stack, n in sizes.items()}


@pytest.fixture(scope="session")
def language_models(tokenizers):
    """Stack -> `Opened`: a tiny model with random weights, of 64 positions."""
    models = {}
    for stack, tokenizer in tokenizers.items():
        model = tiny_model(stack.replace("-", "_"), vocab_size=512, position_embedding="rope")
        models[stack] = opened(model, tokenizer)
    return models
