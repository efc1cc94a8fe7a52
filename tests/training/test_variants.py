"""Variants from outside in a training run: an attention and a norm, an optimizer and an objective, a whole stack."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_own_variant.md").read_text(encoding="utf-8")
VARIANT = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
MIXER = """
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class MyMixerConfig(PreTrainedConfig):
    model_type = "my_mixer"
    vocab_size: int = 64
    hidden_size: int = 16
    num_hidden_layers: int = 1
    num_attention_heads: int = 1


class MyMixerForCausalLM(PreTrainedModel, GenerationMixin):
    config: MyMixerConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, labels=None, attention_mask=None, **kwargs):
        logits = self.lm_head(self.mix(self.embed_tokens(input_ids))[0])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)

""" + PAGE.split("```python\n")[-1].split("```")[0]
OPTIMIZER = """
import torch
from torch.optim.lr_scheduler import ConstantLR

from hf_llm.training.optimizers import OPTIMIZERS, SCHEDULES

OPTIMIZERS["rprop"] = lambda groups, args: torch.optim.Rprop(groups, lr=args.learning_rate)
SCHEDULES["constant"] = lambda optimizer, args, steps: ConstantLR(optimizer, 1.0)
"""


def pretrain(settings: dict, folder: Path, *words: str) -> Path:
    """The folder of a run of recipes/pretrain.py, a process of its own, that takes two steps."""
    settings["training"] |= {"max_steps": 2, "save_steps": 2, "eval_steps": 2}
    settings["samples"] = {"prompts": []}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), "--config", str(folder / "run.yaml"), *words]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return Path(settings["output_dir"])


@pytest.mark.slow
def test_attention_norm_optimizer_and_schedule(settings, tmp_path):
    (tmp_path / "my_variant.py").write_text(VARIANT)
    (tmp_path / "my_optimizer.py").write_text(OPTIMIZER)
    settings = settings("decoder", optimizer="rprop", schedule="constant")
    settings["imports"] = ["my_variant.py", "my_optimizer.py"]
    settings["model"] |= {"attention_type": "my_gated", "norm_type": "my_tanh"}
    run = pretrain(settings, tmp_path)
    assert json.loads((run / "config.json").read_text())["variants"] == ["my_variant.py"]
    for folder in (run, run / "checkpoint-2"):
        assert (folder / "my_variant.py").is_file() and not (folder / "my_optimizer.py").exists()


@pytest.mark.slow
def test_a_whole_stack(settings, tmp_path):
    """Named on the command line; transformers saves its file."""
    (tmp_path / "my_mixer.py").write_text(MIXER)
    settings = settings("decoder")
    settings["model"] = {"model_type": "my_mixer"}
    run = pretrain(settings, tmp_path, "--imports", "my_mixer.py")
    assert json.loads((run / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "my_mixer.MyMixerConfig",
        "AutoModelForCausalLM": "my_mixer.MyMixerForCausalLM",
    }
    opened = "import sys; from transformers import AutoModelForCausalLM as A; "
    opened += "print(type(A.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)"
    shown = subprocess.run([sys.executable, "-c", opened, str(run)], capture_output=True, text=True, cwd="/")
    assert shown.stdout.split() == ["MyMixerForCausalLM"]
