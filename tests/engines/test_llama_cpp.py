"""Exports as GGUF files in llama.cpp, in float32 (its cache of keys and values too): the same logits and tokens.

llama-cpp-python is built from its sources, which takes minutes; the variable LLAMA_CPP names the folder that has
llama.cpp's converter, such as `vendor/llama.cpp` of the same sources.

Left out: GPT-J and MPT, which its converter does not know; Gemma, Gemma 2 and Phi-3, for which it wants a tokenizer of
SentencePiece; Qwen2, whose tokenizer transformers opens as Qwen's own; GPT-NeoX, of which it reads a field that
transformers 5 has dropped; and Gemma 3 and gpt-oss, whose logits are others in llama.cpp for these configurations.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interop import parity
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_llm.data import train_tokenizer

from .conftest import REPOSITORY
from .exports import SMALL


TOLERANCE = 1e-5  # relative to the greatest logit
TABLE_OF_GELU = 1e-3  # ggml looks it up in half precision
PROMPT = "def main(a): return"

MHA = {"num_key_value_heads": 4}
# family -> native fields on top of the small configuration of its tests, and the tolerance
FAMILIES = {
    "qwen3": ({}, TOLERANCE),
    "qwen3_moe": ({"norm_topk_prob": True}, TOLERANCE),
    "qwen2_moe": ({}, TOLERANCE),
    "llama": ({}, TOLERANCE),
    "mistral": ({}, TOLERANCE),
    "mixtral": ({}, TOLERANCE),
    "gpt2": ({}, TABLE_OF_GELU),
    "bloom": ({}, TABLE_OF_GELU),
    "falcon": ({}, TABLE_OF_GELU),
    "phi": (MHA | {"intermediate_size": 128}, TABLE_OF_GELU),
    "starcoder2": ({}, TABLE_OF_GELU),
    "olmo": ({}, TOLERANCE),
    "olmo2": ({}, TOLERANCE),
    "olmoe": (MHA, TOLERANCE),
    "stablelm": ({}, TOLERANCE),
    "cohere": ({}, TOLERANCE),
    "granite": ({"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}, TOLERANCE),
    "smollm3": ({}, TOLERANCE),
}
DEMO_PROMPTS = (
    "def fibonacci(n):",
    "class Stack:",
    "import os\nimport sys\n\n\ndef main():",
    "    def __init__(self, name='x', *args):  # I'd say 12345 things\n\n\n   ",
)
NEW = 96

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no folder with convert_hf_to_gguf.py"),
]


@pytest.fixture
def open_gguf(tmp_path):
    """`open_gguf(checkpoint, *options)` writes a checkpoint of ours as a GGUF file and opens it in llama.cpp."""
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed: pip install '.[llama_cpp]'"
    )

    def run(checkpoint: Path, *options: str):
        command = [sys.executable, REPOSITORY / "recipes" / "export_gguf.py", checkpoint, tmp_path / "model.gguf"]
        command += ["--llama-cpp", os.environ["LLAMA_CPP"], *options]
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
        file = str(tmp_path / "model.gguf")
        return llama_cpp.Llama(file, n_ctx=256, n_threads=1, logits_all=True, verbose=False, **exact)

    return run


@pytest.fixture(scope="module")
def tokenizer():
    sources = [file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("*.py")]
    return train_tokenizer(sources, "bpe", 320, show_progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, open_gguf, tokenizer, tmp_path):
    fields, tolerance = FAMILIES[family]
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = parity.imported(parity.native_model(family, **SMALL[family] | ids | fields))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "ours")
    engine = open_gguf(tmp_path / "ours", "--as", family)

    prompt = tokenizer(PROMPT)["input_ids"]
    assert engine.tokenize(PROMPT.encode(), add_bos=True) == prompt
    engine.eval(prompt)
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0]
    found = torch.from_numpy(engine.scores[: len(prompt), : len(tokenizer)].copy())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_decoder_of_the_demo(demo, open_gguf):
    engine = open_gguf(demo)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(demo).eval(), AutoTokenizer.from_pretrained(demo)
    for prompt in DEMO_PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        assert engine.tokenize(prompt.encode(), add_bos=True) == ids
        expected = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, len(ids) :].tolist()
        stream = engine.generate(ids, temp=0.0, repeat_penalty=1.0)
        found = [next(stream) for _ in expected]  # as many as generate() gave before its end
        assert found == expected
