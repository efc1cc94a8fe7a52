"""Continuous batching of the decoder: requests of different lengths share batches and a paged cache."""

import pytest
from transformers import GenerationConfig

from .generating import NEW, PAGED_CACHE, PROMPT, VARIANTS, generate, prompts, since, tiny_model
from .tiny import tokens


PAGED = {name: VARIANTS[name] for name in ("learned", "some layers slide", "experts", "shared layers")}
CASES = [
    pytest.param(
        fields,
        backend,
        marks=since("5.20", "continuous batching of sliding layers by flash attention 2")
        if (name, backend) == ("some layers slide", "flash_attention_2")
        else (),
        id=f"{name}-{backend}",
    )
    for name, fields in PAGED.items()
    for backend in ("sdpa", "flash_attention_2")
]


SETTINGS = {
    "generation_config": GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1),
    "continuous_batching_config": PAGED_CACHE,
}


@pytest.mark.parametrize(("fields", "backend"), CASES)
def test_continuous_batching_gives_the_tokens_of_generate(fields, backend, flash_kernels):
    """More prompts than fit into one batch of tokens."""
    model = tiny_model("decoder", backend, **fields, attention_dropout=0.1)
    lengths = (5, PROMPT, 14, 20)
    outputs = model.generate_batch([tokens(n, seed=n).tolist() for n in lengths], **SETTINGS)
    assert [output.error for output in outputs.values()] == [None] * len(lengths)
    for n, output in zip(lengths, outputs.values()):
        expected, _ = generate(model, {"input_ids": tokens(1, n, seed=n)})
        assert output.generated_tokens == expected[0].tolist()


def test_continuous_batching_in_eager_attention():
    model = tiny_model("decoder", "eager", attention_dropout=0.1)
    outputs = model.generate_batch([prompts()["input_ids"][0].tolist()], **SETTINGS)
    assert next(iter(outputs.values())).generated_tokens == generate(model, prompts(1))[0][0].tolist()
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("position_embedding", ["alibi", "relative_bias"])
def test_continuous_batching_refuses_position_biases(position_embedding):
    model = tiny_model("decoder", position_embedding=position_embedding)
    with pytest.raises(ValueError, match=f"position_embedding='{position_embedding}'"):
        model.generate_batch([[3, 4, 5]], **SETTINGS)
