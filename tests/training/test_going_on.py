"""Pretraining that goes on with a checkpoint: `model.path`, with other fields and further tokens."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_llm import to_native
from hf_llm.training.opening import ModelSection, open_model
from hf_llm.training.pretraining import Pretraining, pretrain
from hf_llm.training.stacks import stack_of


pytestmark = pytest.mark.usefixtures("no_plots")


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.fixture
def run(settings, tmp_path):
    """`run(stack, **model)`: trains a checkpoint of two steps in the folder `run`, and returns its weights."""

    def train(stack="decoder", **model):
        plan = settings(stack, max_steps=2)
        (plan["model"]["decoder"] if stack == "encoder-decoder" else plan["model"]).update(model)
        pretrain(Pretraining.from_dict(plan))
        return weights(tmp_path / "run")

    return train


@pytest.fixture
def go_on(settings, tmp_path):
    """`go_on(stack, ...)`: goes on with it in the folder `second`, changing no weight, and returns its weights."""

    def train(stack="decoder", source="run", fields=None, row_length=48, **sections):
        plan = settings(stack, max_steps=1, learning_rate=1e-30, weight_decay=0.0)
        del plan["tokenizer"]
        plan["data"]["row_length"] = row_length
        plan["model"] = {"path": str(tmp_path / source), "fields": fields or {}}
        pretrain(Pretraining.from_dict({**plan, "output_dir": str(tmp_path / "second"), **sections}))
        return weights(tmp_path / "second")

    return train


@pytest.mark.parametrize("stack", ["decoder", "encoder", "encoder-decoder"])
def test_weights_and_tokenizer_are_the_checkpoint_s(stack, run, go_on, tmp_path):
    assert_same(run(stack), go_on(stack))
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("run", "second"))
    assert ours.get_vocab() == theirs.get_vocab()


def test_a_native_checkpoint_is_imported_on_the_way(run, go_on, tmp_path):
    trained = run()
    to_native(AutoModelForCausalLM.from_pretrained(tmp_path / "run")).save_pretrained(tmp_path / "native")
    AutoTokenizer.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "native")
    assert AutoConfig.from_pretrained(tmp_path / "native").model_type == "qwen3"
    assert_same(trained, go_on(source="native"))


@pytest.mark.parametrize(("stack", "layers"), [("decoder", 3), ("encoder", 2), ("encoder-decoder", 3)])
def test_fields_are_changed(stack, layers, run, go_on, tmp_path):
    """Longer rows, scaled positions, windows, and layers that are dropped, or appended without an effect at first."""
    old = run(stack, num_hidden_layers={3: 2, 2: 3}[layers])
    fields = {
        "num_hidden_layers": layers,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        "sliding_window": 16,
        "layer_types": "LS",
        "residual_dropout": 0.0,
    }
    new = go_on(stack, fields={"decoder": fields} if stack == "encoder-decoder" else fields, row_length=96)
    opened = stack_of(AutoConfig.from_pretrained(tmp_path / "second")).auto_class.from_pretrained(tmp_path / "second")
    config = opened.config.get_text_config(decoder=True)
    assert (config.num_hidden_layers, config.sliding_window, config.residual_dropout) == (layers, 16, 0.0)
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"][:layers]
    assert config.rope_parameters["factor"] == 2.0 and config.max_position_embeddings == 96
    common = old.keys() & new.keys()
    assert_same({name: new[name] for name in common}, {name: old[name] for name in common})
    silent = [weight for name, weight in new.items() if name not in old and ("o_proj" in name or "down_proj" in name)]
    assert len(silent) == {3: 2 if stack == "decoder" else 3, 2: 0}[layers] and all(
        weight.abs().max() < 1e-20 for weight in silent
    )
    assert (old.keys() - new.keys() != set()) == (layers == 2)


@pytest.mark.parametrize("placement", ["pre", "sandwich", "parallel"])
def test_appended_layers_change_nothing_at_first(placement, run, tmp_path):
    run(norm_placement=placement)
    small = open_model(ModelSection(str(tmp_path / "run")), AutoModelForCausalLM).eval()
    section = ModelSection(str(tmp_path / "run"), fields={"num_hidden_layers": 4})
    deep = open_model(section, AutoModelForCausalLM).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(deep(ids).logits, small(ids).logits)
    deep(ids, labels=ids).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in deep.parameters())
    assert deep.model.layers[-1].self_attn.o_proj.weight.grad is not None


@pytest.mark.parametrize("stack", ["decoder", "encoder-decoder"])
def test_tokens_are_added(stack, run, go_on, tmp_path):
    """Embeddings grow, and the new rows start around the mean of the others."""
    old = run(stack)
    first = len(AutoTokenizer.from_pretrained(tmp_path / "run"))
    added = [f"<|tool_{i}|>" for i in range(200)]
    new = go_on(stack, tokenizer={"add": added})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "second")
    assert tokenizer.convert_tokens_to_ids(added) == list(range(first, first + 200))
    name = next(name for name in old if "embed_tokens" in name)
    assert len(new[name]) % 64 == 0 and len(new[name]) >= first + 200
    assert_same(new[name][: len(old[name])], old[name])
    torch.testing.assert_close(new[name][first:].mean(0), old[name].mean(0), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"word_vectors": __file__}, "word_vectors has no effect with model.path"),
        ({"from_decoder": {"path": "x"}}, "from_decoder has no effect with model.path"),
        ({"tokenizer": {"vocab_size": 500}}, "algorithm and vocab_size are of a new tokenizer"),
        ({"model": {"path": "x", "hidden_size": 3}}, "unknown key 'model.hidden_size'"),
        ({"model": {"path": "x", "add_tokens": ["a"]}}, "use tokenizer.path and tokenizer.add"),
    ],
)
def test_settings_that_contradict_the_checkpoint(sections, message, go_on):
    with pytest.raises(ValueError, match=message):
        go_on(**sections)


def test_fields_that_the_checkpoint_cannot_take(run, go_on):
    run()
    for fields, message in (
        ({"num_hidden_layers": 0}, "model.fields.num_hidden_layers = 0 must be a whole number, at least 1"),
        ({"hidden_size": 64}, "lacks weights of a LLMDecoderForCausalLM: model.embed_tokens.weight"),
        ({"rope_parameters": {"rope_type": "yarnn"}}, "model.fields: .*'yarnn'` is not known"),
        ({"norm_tipe": "rmsnorm"}, "unknown key 'model.fields.norm_tipe'; did you mean 'norm_type'"),
    ):
        with pytest.raises(ValueError, match=message):
            go_on(fields=fields)
