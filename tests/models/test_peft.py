"""Adapters of PEFT on every stack: they train, generate, and merge."""

import peft
import pytest
import torch
from packaging.version import Version
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

from hf_llm.models.compat import CACHE

from .tiny import STACKS, inputs_of, redraw, tiny_model, tokens


TASKS = {"decoder": "CAUSAL_LM", "encoder": None, "encoder_decoder": "SEQ_2_SEQ_LM"}
ADAPTERS = {
    "lora": lambda task: LoraConfig(task_type=task, r=2, target_modules=["q_proj", "down_proj"]),
    "lora_everywhere": lambda task: LoraConfig(task_type=task, r=2, target_modules="all-linear"),
    "lora_embeddings": lambda task: LoraConfig(task_type=task, r=2, target_modules=["embed_tokens"]),
    "lora_tokens": lambda task: LoraConfig(
        task_type=task, r=2, target_modules=["q_proj"], trainable_token_indices=[5, 6]
    ),
    "adalora": lambda task: AdaLoraConfig(
        task_type=task, target_modules=["q_proj"], total_step=10, init_r=4, target_r=2
    ),
    "ia3": lambda task: IA3Config(
        task_type=task, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "oft": lambda task: OFTConfig(task_type=task, target_modules=["q_proj"], oft_block_size=4, r=0),
    "prompt": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    "p_tuning": lambda task: PromptEncoderConfig(task_type=task, num_virtual_tokens=3),
    "prefix": lambda task: PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
}
VIRTUAL = ("prompt", "p_tuning", "prefix")
# native Llama gives wrong tokens there as well
behind_virtual_tokens = pytest.mark.skipif(
    CACHE == "cache" and Version(peft.__version__) < Version("0.22"),
    reason="PEFT before 0.22 does not know the cache of transformers 5.24",
)
PAIRS = [
    pytest.param(name, stack, marks=behind_virtual_tokens if name in VIRTUAL else ())
    for name in ADAPTERS
    for stack in STACKS
    if stack != "encoder" or name not in VIRTUAL  # virtual tokens are for models that generate
]


def padded(stack: str) -> dict[str, torch.Tensor]:
    """A batch with padding on the left of its second row."""
    inputs = inputs_of(stack)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, :3] = 0
    return {**inputs, "attention_mask": mask}


@pytest.mark.parametrize(("name", "stack"), PAIRS)
def test_adapters_train_and_generate(name, stack):
    """Every adapter parameter gets a gradient, and nothing else; training and evaluation give the same loss."""
    base = tiny_model(stack, tie_word_embeddings=name != "lora_everywhere")
    model = get_peft_model(base, ADAPTERS[name](TASKS[stack]))
    adapter = torch.nn.ParameterList(parameter for parameter in model.parameters() if parameter.requires_grad)
    redraw(adapter, std=0.05)
    inputs = padded(stack)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    loss = model.train()(**inputs, labels=labels).loss
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
    torch.testing.assert_close(model.eval()(**inputs, labels=labels).loss, loss, rtol=1e-5, atol=1e-5)
    if stack != "encoder":
        prompt = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
        output = model.generate(**prompt, max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
        assert output.shape == (2, 9 + 4 if stack == "decoder" else 1 + 4)


@behind_virtual_tokens
@pytest.mark.parametrize("fields", [{}, {"position_embedding": "learned"}, {"position_embedding": "alibi"}])
def test_virtual_tokens_act_like_tokens(fields):
    """Prompt tuning whose vectors are those of real tokens gives what these tokens give, alone and generating."""
    base = tiny_model("decoder", **fields)
    real, inputs = tokens(1, 3, seed=5), {"input_ids": tokens(2, 6)}
    prompted = {"input_ids": torch.cat((real.expand(2, -1), inputs["input_ids"]), dim=1)}
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    with torch.no_grad():
        expected, generated = base(**prompted).logits, base.generate(**prompted, **settings)
        model = get_peft_model(base, ADAPTERS["prompt"]("CAUSAL_LM")).eval()
        model.prompt_encoder["default"].embedding.weight.copy_(base.get_input_embeddings().weight[real[0]])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
        assert model.generate(**inputs, **settings)[:, 6:].equal(generated[:, 9:])


@behind_virtual_tokens
@pytest.mark.parametrize("stack", ("decoder", "encoder_decoder"))
def test_a_prefix_stays_in_the_cache(stack):
    """Tokens generated behind a prefix are those that whole forward passes with the prefix give."""
    model = redraw(get_peft_model(tiny_model(stack), ADAPTERS["prefix"](TASKS[stack]))).eval()
    inputs = padded(stack)
    prompt = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    output = model.generate(**prompt, **settings)
    start = output.shape[1] - 5
    for step in range(start, output.shape[1]):
        if stack == "decoder":
            mask = torch.nn.functional.pad(prompt["attention_mask"], (0, step - start), value=1)
            logits = model(input_ids=output[:, :step], attention_mask=mask).logits
        else:
            logits = model(**prompt, decoder_input_ids=output[:, :step]).logits
        assert logits[:, -1].argmax(-1).equal(output[:, step])
