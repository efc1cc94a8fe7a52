"""Write the golden checkpoints of the current version, once, when it is released:

    python tests/golden/make.py

`v<version>/{decoder,encoder,encoder_decoder}` hold a tiny model each, with inputs and the logits that this version
gives (`golden.safetensors`); `v<version>/code` holds the code files that they carry, which are the same for the three.
Later versions must open them and give these logits (test_golden.py). They are never written again.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import hf_llm


ROOT = Path(__file__).parent
VOCABULARY = 48
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
# between them, the parts that checkpoints are most likely to have
DECODER = {
    **SIZES,
    "num_key_value_heads": 2,
    "norm_placement": "sandwich",
    "layer_types": "SL",
    "sliding_window": 3,
    "mlp_layer_types": "DE",
    "num_experts": 4,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "final_logit_softcapping": 20.0,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.5},
}
ENCODER = {
    **SIZES,
    "position_embedding": "learned",
    "norm_type": "layernorm",
    "norm_bias": True,
    "norm_placement": "post",
    "final_norm": False,
    "embedding_norm": True,
    "qk_norm": None,
    "attention_bias": True,
    "feed_forward": "plain",
    "hidden_act": "gelu",
    "mlp_bias": True,
    "type_vocab_size": 2,
    "head_transform": True,
    "lm_head_bias": True,
}
T5 = {
    **SIZES,
    "position_embedding": "relative_bias",
    "qk_norm": None,
    "attention_scale": 1.0,
    "hidden_act": "gelu_new",
}
MODELS = {
    "decoder": lambda: hf_llm.LLMDecoderForCausalLM(hf_llm.LLMDecoderConfig(**DECODER)),
    "encoder": lambda: hf_llm.LLMEncoderForMaskedLM(hf_llm.LLMEncoderConfig(**ENCODER)),
    "encoder_decoder": lambda: hf_llm.LLMEncoderDecoderForConditionalGeneration(
        hf_llm.LLMEncoderDecoderConfig(encoder=T5, decoder=T5, pad_token_id=0, decoder_start_token_id=0)
    ),
}


def some_inputs(stack: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Two rows of packed documents; in an encoder-decoder, with their targets."""
    halves = {"": 9, "decoder_": 7} if stack == "encoder_decoder" else {"": 9}
    inputs = {}
    for half, length in halves.items():
        inputs[f"{half}input_ids"] = torch.randint(3, VOCABULARY, (2, length), generator=generator)
        documents = torch.zeros(2, length, dtype=torch.long)
        documents[0, length // 2 :] = 1
        documents[1, -2:] = -1  # padding
        inputs[f"{half}document_ids"] = documents
    return inputs


@torch.no_grad()
def write(folder: Path, stack: str) -> None:
    """One model with parameters drawn at random, all of them, and what it gives."""
    generator = torch.Generator().manual_seed(0)
    model = MODELS[stack]().eval()
    for parameter in model.parameters():
        parameter.normal_(mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2, generator=generator)
    inputs = some_inputs(stack, generator)
    logits = model(**inputs).logits
    model.save_pretrained(folder)
    save_file({**inputs, "logits": logits.contiguous()}, folder / "golden.safetensors")


def main(root: Path = ROOT) -> int:
    """Write `root/v<version>`; returns the exit code."""
    version = root / f"v{hf_llm.__version__}"
    if version.exists():
        print(f"{version} exists: golden checkpoints of a released version do not change", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as made:
        made = Path(made, version.name)
        (made / "code").mkdir(parents=True)
        for stack in MODELS:
            write(made / stack, stack)
            for file in (made / stack).glob("*.py"):
                file.replace(made / "code" / file.name)
        shutil.move(made, version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
