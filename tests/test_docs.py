"""The Python of README and docs/ runs as it stands there, on tiny checkpoints at the places that it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import hf_llm
from hf_llm.data import train_tokenizer


ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
NAMES = {  # what a page leaves to its reader
    "docs/align.md": {"prompts": Dataset.from_dict({"prompt": ["def one", "def two"] * 4})},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with outputs/demo and outputs/sft, decoders, and outputs/reward-model."""
    folder = tmp_path_factory.mktemp("docs")
    texts = [f"def function_{i}(x):\n    return x + {i}" for i in range(40)]
    tokenizer = train_tokenizer(texts, vocab_size=300, stack="decoder", show_progress=False)
    config = hf_llm.LLMDecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=1,
    )
    for path, model_class in {
        "outputs/demo": hf_llm.LLMDecoderForCausalLM,
        "outputs/sft": hf_llm.LLMDecoderForCausalLM,
        "outputs/reward-model": hf_llm.LLMDecoderForSequenceClassification,
    }.items():
        model_class(config).save_pretrained(folder / path)
        tokenizer.save_pretrained(folder / path)
    return folder


def code_of(page: str) -> str:
    return "\n".join(BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/define.md", "docs/use.md", "docs/libraries.md", "docs/align.md", "docs/engines.md"],
)
def test_snippets_run(page, folder, monkeypatch):
    if page == "docs/engines.md":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("the page's code waits for an answer"))
    names = {"__name__": page, **NAMES.get(page, {})}
    exec(compile(code_of(page), page, "exec"), names)
    if page == "docs/engines.md":  # the graph of the page gives the model's logits, with padding too
        ids, mask = torch.randint(5, 200, (2, 9)), torch.ones(2, 9, dtype=torch.long)
        mask[1, 6:] = 0
        graph = names["ExportedModel"].from_pretrained("outputs/demo-onnx", trust_remote_code=True)
        found = graph(input_ids=ids, attention_mask=mask).logits
        right = names["model"](input_ids=ids, attention_mask=mask).logits
        assert (found - right)[mask.bool()].abs().max() < 1e-4


def test_a_stranger_opens_a_checkpoint_by_the_page(folder):
    """The code of "Open and serve", where hf_llm cannot be imported and nobody answers a question."""
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (code,) = [block for block in blocks if "trust_remote_code=True" in block]
    code = f"import sys\nsys.modules['hf_llm'] = None\n{code}"
    command = [sys.executable, "-P", "-c", code]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stderr[-3000:]
