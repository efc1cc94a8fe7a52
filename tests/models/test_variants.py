"""Variants from outside: the files of docs/your_own_variant.md, used, saved, and opened where nobody knows them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import hf_llm
import hf_llm_cli as cli
from hf_llm.imports import PACKAGE, import_variants
from hf_llm.interop import InteropError, to_native
from hf_llm.models.attention import ATTENTIONS, Attention
from hf_llm.models.checks import TABLES
from hf_llm.models.norms import NORMS
from hf_llm.models.table import SOURCES, Table
from hf_llm.publishing.code import differing, foreign_code

from .tiny import SIZES, redraw, tiny_config, tiny_model, tokens


PAGE = Path(__file__).parents[2] / "docs" / "your_own_variant.md"
FILE = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
CHOSEN = {"attention_type": "my_gated", "norm_type": "my_tanh"}
BARE = """
import sys
sys.modules["hf_llm"] = None  # any import of it raises ImportError
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model.model.layers[0].self_attn).__name__ == "GatedAttention"
ids = torch.tensor([[5, 6, 7, 8]])
settings = {"max_new_tokens": 8, "do_sample": False}
cached, uncached = model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings)
assert cached.equal(uncached)
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[2])
model.save_pretrained(sys.argv[3])
"""


@pytest.fixture
def forget():
    """Takes back what a test imports."""
    before = [(table, dict(table), dict(table.files)) for table in TABLES]
    sources, modules = dict(SOURCES), set(sys.modules)
    yield
    for table, entries, files in before:
        for name in set(table) - set(entries):
            del table[name]
        table.files = files
    SOURCES.clear()
    SOURCES.update(sources)
    for name in set(sys.modules) - modules:
        if name.startswith(f"{PACKAGE}."):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path, forget) -> Path:
    """The page's file, imported."""
    path = tmp_path / "my_variant.py"
    path.write_text(FILE, encoding="utf-8")
    import_variants(path)
    return path


def open_bare(folder: Path, tmp_path: Path, monkeypatch) -> tuple[torch.Tensor, Path]:
    """Logits of a checkpoint in a process that has neither hf_llm nor the file, and the folder that it saved again."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    logits, again = tmp_path / "logits.pt", tmp_path / "again"
    command = [sys.executable, "-c", BARE, str(folder), str(logits), str(again)]
    run = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-4000:]
    return torch.load(logits), again


def test_a_variant_is_trained_saved_and_opened_where_nobody_knows_it(file, tmp_path, monkeypatch):
    model = tiny_model("decoder", **CHOSEN).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for seed in range(2):
        ids = tokens(2, 9, seed=seed)
        model(ids, labels=ids).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["variants"] == ["my_variant.py"]
    found, again = open_bare(tmp_path / "model", tmp_path, monkeypatch)
    torch.testing.assert_close(found, model(torch.tensor([[5, 6, 7, 8]])).logits.detach(), rtol=1e-5, atol=5e-6)
    for name in ("my_variant.py", "variants.py", "attention.py"):
        assert (again / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize("stack", ["encoder", "encoder_decoder"])
def test_every_stack_carries_the_file(stack, file, tmp_path):
    tiny_model(stack, **CHOSEN).save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "my_variant.py").is_file()
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "model")).__name__.startswith("LLM")


def test_a_model_without_the_variant_does_not_carry_it(file, tmp_path):
    folder = tmp_path / "model"
    tiny_model("decoder").save_pretrained(folder)
    assert not (folder / "my_variant.py").exists()
    assert "variants" not in json.loads((folder / "config.json").read_text())


def test_generation_with_a_cache_is_generation_without(file):
    model = tiny_model("decoder", **CHOSEN)
    ids, settings = tokens(2, 6), {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids, use_cache=False, **settings)
    assert model.generate(ids, **settings).equal(expected)
    assert model.generate(ids, cache_implementation="static", **settings).equal(expected)


def test_its_own_parameters_are_initialised(file, tmp_path):
    model = hf_llm.LLMDecoderForCausalLM(tiny_config("decoder", **CHOSEN))
    assert model.model.norm.alpha.item() == 0.5
    redraw(model).save_pretrained(tmp_path)
    reopened = hf_llm.LLMDecoderForCausalLM.from_pretrained(tmp_path)
    assert reopened.model.norm.alpha.equal(model.model.norm.alpha)


def test_plans_adapters_and_export(file):
    model = tiny_model("decoder", **CHOSEN)
    assert model.config.base_model_tp_plan["layers.*.self_attn.gate"] == "colwise"
    with pytest.raises(InteropError, match=r"`attention_type='my_gated'` is a variant of my_variant.py"):
        to_native(model)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    assert adapted.active_peft_config.target_modules == {"q_proj", "v_proj"}


def test_attention_without_a_plan_of_its_own_stays_whole(forget):
    ATTENTIONS["unplanned"] = type("Unplanned", (Attention,), {})
    plan = tiny_config("decoder", attention_type="unplanned").base_model_tp_plan
    assert not any("self_attn" in name for name in plan) and "layers.*.mlp.up_proj" in plan


def test_fields_of_its_own_are_set_and_saved(forget, tmp_path):
    ATTENTIONS["ranked"] = type("Ranked", (Attention,), {"config_fields": {"gate_rank": 8}})
    assert tiny_config("decoder", attention_type="ranked").gate_rank == 8
    config = tiny_config("decoder", attention_type="ranked", gate_rank=4)
    assert type(config).from_dict(config.to_dict()).gate_rank == 4
    assert not hasattr(tiny_config("decoder"), "gate_rank")


def test_a_checkpoint_whose_file_is_not_imported_names_it(tmp_path, forget, capsys, monkeypatch):
    source = tmp_path / "my_variant.py"
    source.write_text(FILE)
    program = f"""
import hf_llm
hf_llm.import_variants({str(source)!r})
config = hf_llm.LLMDecoderConfig(**{SIZES!r}, **{CHOSEN!r})
hf_llm.LLMDecoderForCausalLM(config).save_pretrained({str(tmp_path / "model")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200, capture_output=True)
    for trust in (False, True):
        with pytest.raises(ValueError, match="not imported: my_variant.py, beside its config.json"):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=trust)
    with pytest.raises(SystemExit):
        cli.main(["info", str(tmp_path / "model")])
    assert "my_variant.py" in capsys.readouterr().err
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert differing(tmp_path / "model", config) == ([], [])
    assert "my_variant.py" in foreign_code(tmp_path / "model", config)
    cli.main(["info", str(tmp_path / "model"), "--imports", str(tmp_path / "model" / "my_variant.py")])
    assert "self_attn.gate.weight" in capsys.readouterr().out
    assert foreign_code(tmp_path / "model", config) is None


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("missing.py", None, "is no Python file"),
        ("attention.py", FILE, "needs another name"),
        ("my-variant.py", FILE, "needs another name"),
        ("mine.py", "from hf_llm.data import load_corpus\n" + FILE, "line 1: .* not 'hf_llm.data'"),
        ("mine.py", "import helper\n" + FILE, "not 'helper'"),
        ("mine.py", "from hf_llm.models.norms import NORMS, LayerNorm\nNORMS['rmsnorm'] = LayerNorm", "hf_llm's own"),
    ],
)
def test_files_that_cannot_be_variants(name, text, named, tmp_path, forget, monkeypatch):
    (tmp_path / "helper.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=named):
        import_variants(tmp_path / name)


def test_a_file_is_imported_once_and_its_name_is_its_own(file, tmp_path):
    import_variants([file, str(file)])
    other = tmp_path / "other" / "my_variant.py"
    other.parent.mkdir()
    other.write_text(FILE.replace("0.5", "0.6"))
    with pytest.raises(ValueError, match="which is another file"):
        import_variants(other)


def test_an_unknown_key_lists_the_keys(file):
    with pytest.raises(ValueError, match="`norm_type='tanh'` is not known. Legal values: 'layernorm', .*'my_tanh'"):
        tiny_config("decoder", norm_type="tanh")
    assert isinstance(NORMS, Table) and "my_tanh" in NORMS
