"""No tensor is made on another device than the inputs', and no accelerator has to wait, shown without an accelerator.

On the `meta` device tensors have shapes and no values. An operation on tensors of two devices fails there, and so does
whatever looks at a value.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

from hf_llm.models.compat import CACHE

from .tiny import EXPERTS, MODELS, SIZES, STACKS, inputs_of, packed_batch, tiny_config, tiny_model


WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select", "aten::equal")
VARIANTS = {
    "default": {},
    "windows": {"layer_types": "SL", "sliding_window": 3},
    "alibi": {"position_embedding": "alibi"},
    "relative_bias": {"position_embedding": "relative_bias"},
    "learned": {"position_embedding": "learned", "embedding_norm": True, "type_vocab_size": 2},
    "sinusoidal": {"position_embedding": "sinusoidal", "norm_type": "layernorm", "norm_placement": "post"},
    "softcap": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0},
    "experts": {**EXPERTS, "shared_expert_intermediate_size": 8},
    "latent": {
        "attention_type": "latent",
        "qk_norm": None,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "num_key_value_heads": None,
    },
}


def on_meta(stack: str, **fields):
    with torch.device("meta"):
        model = MODELS[stack](tiny_config(stack, **fields))
    if fields.get("num_experts"):  # torch's grouped product of matrices takes bfloat16 alone on this device
        model.set_experts_implementation("batched_mm")
    return model


def moved(batch: dict, device: str = "meta") -> dict:
    return {name: value.to(device) for name, value in batch.items()}


def plain_batch(stack: str) -> dict:
    """Rows without packing or mask (in a mask, transformers looks for padding), with labels."""
    batch = inputs_of(stack)
    return {**batch, "labels": batch.get("decoder_input_ids", batch["input_ids"]).clone()}


BATCHES = {"rows": plain_batch, "packed": packed_batch}


class Waits(TorchDispatchMode):
    """Counts the operations for whose result an accelerator's queue must run dry."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in WAITS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


# ---- the meta device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stack", STACKS)
def test_a_training_step_stays_on_its_device(stack, variant, batch):
    model = on_meta(stack, **VARIANTS[variant]).train()
    loss = model(**moved(BATCHES[batch](stack))).loss
    loss.backward()
    assert loss.device.type == "meta"
    assert {p.grad.device.type for p in model.parameters() if p.grad is not None} == {"meta"}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stack", STACKS)
def test_logits_stay_on_their_device(stack, variant, batch):
    inputs = moved(BATCHES[batch](stack))
    labels = inputs.pop("labels")
    logits = on_meta(stack, **VARIANTS[variant]).eval()(**inputs).logits
    assert logits.device.type == "meta" and logits.shape[:2] == labels.shape


def meta_cache(model, kind: str):
    config = model.config.get_text_config(decoder=True)
    caches = {"dynamic": lambda: DynamicCache(config=config), "static": lambda: StaticCache(config, max_cache_len=16)}
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(caches[kind](), DynamicCache())
    return caches[kind]()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stack", ["decoder", "encoder_decoder"])
def test_tokens_behind_a_cache_stay_on_their_device(stack, variant, kind):
    model = on_meta(stack, **VARIANTS[variant]).eval()
    inputs = moved(inputs_of(stack))
    name = "decoder_input_ids" if stack == "encoder_decoder" else "input_ids"
    cache = meta_cache(model, kind)
    with torch.no_grad():
        model(**inputs, **{CACHE: cache})
        logits = model(**{**inputs, name: inputs[name][:, :1]}, **{CACHE: cache}).logits
    assert logits.shape[:2] == (2, 1) and logits.device.type == "meta"


# ---- what an accelerator waits for ----------------------------------------------------------------------------------


def waits_of(call) -> list[str]:
    with Waits() as waits, torch.no_grad():
        call()
    return waits.names


def token_waits(model, mask: torch.Tensor | None) -> list[str]:
    """Of one token behind a prompt of five, as `generate` passes them."""
    prompt, cache = inputs_of("decoder", length=6)["input_ids"], DynamicCache(config=model.config)
    given = {} if mask is None else {"attention_mask": mask[:, :5]}
    with torch.no_grad():
        model(prompt[:, :5], **{CACHE: cache}, **given)
    given = {} if mask is None else {"attention_mask": mask}
    positions = torch.full((2, 1), 5)
    return waits_of(lambda: model(prompt[:, 5:], position_ids=positions, **{CACHE: cache}, **given))


def test_a_wait_is_seen():
    assert waits_of(lambda: torch.ones(2).any().item()) == ["aten::_local_scalar_dense"]


@pytest.mark.parametrize("masked", [False, True])
def test_a_generated_token_waits_no_longer_than_llamas(masked):
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    mask = torch.ones(2, 6, dtype=torch.long) if masked else None
    waits = token_waits(tiny_model("decoder"), mask)
    assert len(waits) <= len(token_waits(llama, mask)), waits
    assert masked or not waits
