"""What the tests of generation share: models whose next token depends on all before it, and variants of them."""

import inspect

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import ContinuousBatchingConfig

from .tiny import EXPERTS, MODELS, tiny_config, tokens


PROMPT, NEW = 9, 7
# Longer than the window of 4, so that it slides in the prompt already and goes on sliding.
SLIDING = {"layer_types": "SL", "sliding_window": 4}
ABSOLUTE = ("learned", "sinusoidal")
VARIANTS = {
    "rope": {},
    **{name: {"position_embedding": name} for name in (*ABSOLUTE, "alibi", "relative_bias", "none")},
    "some layers slide": SLIDING,
    "all layers slide": {"layer_types": "S", "sliding_window": 4},
    "sliding alibi": {**SLIDING, "position_embedding": "alibi"},
    "bias per layer": {**SLIDING, "position_embedding": "relative_bias", "relative_attention_bias_per_layer": True},
    "rope by layer type": {
        **SLIDING,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    },
    "no positions in a layer": {"rope_layers": [True, False]},
    "positions by the mask": {
        "position_embedding": "learned",
        "position_offset": 2,
        "position_ids_source": "attention_mask",
    },
    "softcap": {"attn_logit_softcapping": 3.0},
    "sinks": {"attention_sinks": True},
    "experts": EXPERTS,
    "shared layers": {"layer_sharing": [0, 0]},
    "factorised embeddings": {"embedding_size": 16, "embedding_projection": "tokens"},
    "parallel": {"norm_placement": "parallel"},
}


# a small paged cache: the default takes most of the machine's memory
PAGE_SIZE = "page_size" if "page_size" in inspect.signature(ContinuousBatchingConfig).parameters else "block_size"
PAGED_CACHE = ContinuousBatchingConfig(**{PAGE_SIZE: 16}, num_blocks=8, max_batch_tokens=32)


def since(version: str, what: str):
    """Marks a test of what native models cannot do in older versions of transformers either."""
    older = Version(transformers.__version__) < Version(version)
    return pytest.mark.skipif(older, reason=f"transformers has no {what} before {version}")


def tiny_model(stack: str, attn_implementation: str | None = None, seed: int = 0, **fields):
    """Weights so large that the next token depends on all before it."""
    torch.manual_seed(seed)
    return MODELS[stack](tiny_config(stack, attn_implementation, initializer_range=0.3, **fields)).eval()


def prompts(batch: int = 2, length: int = PROMPT) -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(batch, length), "attention_mask": torch.ones(batch, length, dtype=torch.long)}


def generate(model, inputs, **kwargs):
    """New tokens (batch, new) and their logits (new, batch, vocabulary); greedy unless told otherwise."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(**inputs, **(settings | kwargs))
    prompt = 1 if model.config.is_encoder_decoder else inputs.get("input_ids", torch.empty(1, 0)).shape[1]
    return output.sequences[:, prompt:], torch.stack(output.logits)


def assert_same(actual, expected):
    assert actual[0].tolist() == expected[0].tolist()
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-4, atol=1e-5)


def pad(inputs: dict[str, torch.Tensor], side: str, count: int = 3) -> dict[str, torch.Tensor]:
    padding = (count, 0) if side == "left" else (0, count)
    return {name: torch.nn.functional.pad(tensor, padding) for name, tensor in inputs.items()}
