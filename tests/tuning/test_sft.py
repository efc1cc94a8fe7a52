"""Supervised fine-tuning: what is trained on, packing, chat templates, adapters, bad input."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_llm.data.tasks import load_task
from hf_llm.tuning.conversations import check_calls, read_texts, set_chat_template
from hf_llm.tuning.sft import Prepared, Sft, SftTuner

from .small_models import SHORT_TRAINING, save_checkpoint, sentences, write_config, write_jsonl


CONFIGS = sorted(Path(__file__).parents[2].glob("recipes/configs/sft-*.yaml"))
TEMPLATE = Path(__file__).parents[2] / "model_cards" / "template.md"


def train(config, template: Path | None = None):
    return Sft(config, template).run()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    texts = sentences(100)
    rows = {
        "messages": [
            {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t[::-1]}], "topic": "x"}
            for t in texts
        ],
        "prompts": [{"prompt": t + " =", "completion": " " + t.upper(), "name": "x"} for t in texts],
        "asked": [
            {"prompt": [{"role": "user", "content": t}], "completion": [{"role": "assistant", "content": t.upper()}]}
            for t in texts
        ],
        "plain": [{"text": t} for t in texts],
        "labels": [{"sentence": t, "label": 1} for t in texts],
    }
    return {name: write_jsonl(folder / f"{name}.jsonl", content) for name, content in rows.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {s: str(save_checkpoint(folder / s, s)) for s in ("decoder", "encoder", "encoder-decoder")}
    found["learned"] = str(save_checkpoint(folder / "learned", "decoder", position_embedding="learned"))
    bare = AutoTokenizer.from_pretrained(found["decoder"])
    bare.chat_template = None
    found["no template"] = str(folder / "bare")
    bare.save_pretrained(found["no template"])
    return found


@pytest.fixture
def settings(tmp_path, files, checkpoints):
    """Makes the configuration of a tiny run on conversations, unless `changes` say otherwise."""

    def make(**changes):
        sections = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": checkpoints["decoder"]},
            "data": {"dataset": files["messages"]},
            "training": {**SHORT_TRAINING, "max_length": 96},
            "samples": {"count": 1, "max_new_tokens": 4},
        }
        return Sft.load(write_config(tmp_path / "run.yaml", sections, changes))

    return make


def tuner(config, rows: list[dict], tokenizer=None) -> SftTuner:
    model = AutoModelForCausalLM.from_pretrained(config.model.path)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(config.model.path)
    args = Sft(config).make_arguments()
    data = Dataset.from_list(rows, on_mixed_types="use_json")
    return SftTuner(model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)


def test_assistant_only_loss_covers_what_the_assistant_says_and_its_end(settings):
    config = settings(training={"assistant_only_loss": True})
    said = [("user", "red cat"), ("assistant", "blue dog"), ("user", "now"), ("assistant", "then")]
    trainer = tuner(config, [{"messages": [{"role": r, "content": c} for r, c in said]}] * 2)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"][0]
    assert trainer.processing_class.decode(labels[labels != -100]) == "blue dog<|im_end|>then<|im_end|>"


def test_completion_only_loss(settings):
    trainer = tuner(settings(), [{"prompt": "one two =", "completion": " red cat"}] * 2)
    labels = next(iter(trainer.get_train_dataloader()))["labels"][0]
    assert trainer.processing_class.decode(labels[labels != -100]) == " red cat<|eos|>"


def test_packed_documents_do_not_leak(settings, files):
    """Changing one document of a packed row leaves the logits of all others as they were, to the bit."""
    config = settings(training={"packing": True, "per_device_train_batch_size": 2})
    trainer = tuner(config, [{"text": t} for t in sentences(40)])
    batch = {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if isinstance(v, torch.Tensor)}
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 4 and "attention_mask" not in batch
    model = AutoModelForCausalLM.from_pretrained(config.model.path).eval()
    first, second = starts[1], starts[2]
    changed = batch["input_ids"].clone()
    changed[0, first:second] = (changed[0, first:second] + 7) % 300
    with torch.no_grad():
        before, after = (
            model(input_ids=ids, position_ids=batch["position_ids"]).logits[0] for ids in (batch["input_ids"], changed)
        )
    assert torch.equal(before[:first], after[:first]) and torch.equal(before[second:], after[second:])
    assert not torch.allclose(before[first:second], after[first:second])


def test_samples_while_training(settings):
    config = settings(samples_while_training=True, training={"max_steps": 2, "eval_steps": 1, "save_steps": 2})
    train(config, TEMPLATE)
    state = json.loads((Path(config.output_dir) / "checkpoint-2" / "trainer_state.json").read_text())
    drawn = [entry for entry in state["log_history"] if "samples" in entry]
    assert [entry["step"] for entry in drawn] == [1, 2] and "<|im_start|>user" in drawn[0]["samples"][0][0]


def test_a_run_from_conversations_to_card(settings):
    """The stored loss is cross-entropy over the assistant's tokens of the test split; training lowers it."""
    config = settings(training={"assistant_only_loss": True, "max_steps": 20, "eval_steps": 20, "save_steps": 20})
    train(config, TEMPLATE)
    run = Path(config.output_dir)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["loss"] < metrics["baselines"]["before fine-tuning"]["loss"] - 0.1
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    total, count = 0.0, 0
    for row in load_task(config.data.dataset, "test"):
        encoded = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        mask = torch.as_tensor(encoded["assistant_masks"]).bool().flatten()
        with torch.no_grad():
            logits = model(encoded["input_ids"]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], encoded["input_ids"][0, 1:], reduction="none")
        total, count = total + losses[mask[1:]].sum().item(), count + int(mask[1:].sum())
    assert metrics["loss"] == pytest.approx(total / count, abs=1e-4)
    card = (run / "README.md").read_text()
    assert "before fine-tuning" in card and "**After**" in card and "what the assistant says" in card


def test_adapter(settings):
    config = settings(peft={"method": "lora", "r": 4}, training={"packing": True})
    train(config)
    model = AutoPeftModelForCausalLM.from_pretrained(config.output_dir)
    assert sum("lora_A" in name for name, _ in model.named_parameters())


def test_prompts_and_completions_of_messages(settings, files, checkpoints):
    """They are read through the chat template, and answered after all of the prompt."""
    config = settings(data={"dataset": files["asked"]}, training={"max_steps": 2})
    train(config, TEMPLATE)
    card = Path(config.output_dir, "README.md").read_text()
    assert "The loss is over completions." in card and "<|im_start|>assistant" in card
    with pytest.raises(ValueError, match="no chat template.*data.chat_template"):
        silent = {"data": {"dataset": files["asked"]}, "model": {"tokenizer": checkpoints["no template"]}}
        train(settings(**silent, output_dir=f"{config.output_dir}-silent"))


LONG = "red green blue one two three four five"
FATES = [
    ({}, Prepared(7, cut=3, left_out=2)),
    ({"truncation_mode": "keep_end"}, Prepared(7, cut=5)),
    ({"completion_only_loss": False}, Prepared(7, cut=5)),
    ({"packing": True}, Prepared(7, cut=5)),
    ({"packing": True, "packing_strategy": "bfd_split"}, Prepared(7, cut=5, fate="were split over rows")),
    ({"max_length": None}, Prepared(7)),
]


@pytest.mark.parametrize(("training", "expected"), FATES)
def test_what_max_length_does_is_counted(settings, training, expected):
    """Two examples fit, three lose the end of a completion, of two the prompt alone is too long."""
    rows = [{"prompt": "now =", "completion": " then"}] * 2
    rows += [{"prompt": "now =", "completion": f" {LONG}"}] * 3 + [{"prompt": f"{LONG} =", "completion": " then"}] * 2
    trainer = tuner(settings(training={"max_length": 8, **training}), rows)
    assert list(trainer.prepared.values()) == [expected]
    if "packing" not in training:
        left = trainer.train_dataset
        assert len(left) == expected.given - expected.left_out
        assert sum(row["input_ids"][-1] != trainer.processing_class.eos_token_id for row in left) == (
            expected.cut if training.get("truncation_mode") != "keep_end" else 0
        )


def test_card_log_and_metrics_tell_what_was_cut_and_left_out(settings, tmp_path, caplog):
    texts = sentences(60)
    rows = [{"prompt": f"{t} =" if n % 2 else f"{t} {LONG} =", "completion": " then"} for n, t in enumerate(texts)]
    config = settings(
        data={"dataset": write_jsonl(tmp_path / "rows.jsonl", rows)}, training={"max_length": 14, "max_steps": 1}
    )
    train(config, TEMPLATE)
    given, tokenizer = load_task(config.data.dataset, "train"), AutoTokenizer.from_pretrained(config.model.path)
    prompts, wholes = (
        [len(tokenizer(row["prompt"] + end)["input_ids"]) for row in given] for end in ("", " then<|eos|>")
    )
    left_out = sum(prompt >= 14 for prompt in prompts)
    cut = sum(whole > 14 > prompt for prompt, whole in zip(prompts, wholes))
    assert 0 < cut and 0 < left_out
    card = Path(config.output_dir, "README.md").read_text()
    for count, fate in (
        (cut, "are longer than training.max_length = 14 tokens and were cut"),
        (left_out, "were left"),
    ):
        sentence = f"{count} of {len(given)} examples of the train split {fate}"
        assert sentence in card and sentence in caplog.text
    assert json.loads(Path(config.output_dir, "metrics.json").read_text())["rows"]["train"] == len(given) - left_out


def test_chatml_begins_once():
    """SmolLM2's beginning-of-text token is the one that begins a turn: ChatML must not put it there twice."""
    from .small_models import small_tokenizer

    tokenizer = small_tokenizer("decoder")
    tokenizer.bos_token = "<|im_start|>"
    set_chat_template(tokenizer, "chatml", assistant_only=True)
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "now"}], tokenize=False)
    assert shown == "<|im_start|>user\nnow<|im_end|>\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"path": "encoder-decoder"}}, "is an encoder-decoder.*take recipes/seq2seq.py"),
        ({"model": {"path": "encoder"}}, "has no head for AutoModelForCausalLM"),
        ({"model": {"tokenizer": "no template"}}, "no chat template.*data.chat_template"),
        (
            {"data": {"dataset": "labels"}},
            r"\['sentence', 'label'\]; needed are `messages`, `prompt` and",
        ),
        ({"data": {"chat_template": "missing.jinja"}}, "neither 'chatml' nor a file"),
        ({"data": {"dataset": "plain"}, "training": {"assistant_only_loss": True}}, "needs conversations"),
        ({"data": {"dataset": "plain"}, "model": {"tokenizer": "encoder"}}, "has no end token"),
        ({"model": {"path": "learned"}, "training": {"max_length": 200}}, "the model reads 128 tokens at most"),
        ({"training": {"gradient_checkpointing": True}}, "not set here: use training.activation_checkpointing"),
        ({"training": {"chat_template_path": "x"}}, "not set here: use data.chat_template"),
        ({"training": {"max_lenght": 2}}, "did you mean 'max_length'"),
    ],
)
def test_bad_configurations(settings, checkpoints, files, changes, message):
    model = {key: checkpoints.get(value, value) for key, value in changes.get("model", {}).items()}
    data = {key: files.get(value, value) for key, value in changes.get("data", {}).items()}
    with pytest.raises(ValueError, match=message):
        train(settings(**{**changes, "model": model, "data": data}))


USER = {"role": "user", "content": "red"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "sing"}}]}
SAYS = r"example 0 of train has 'messages' whose message 1 (\(assistant\) )?"


@pytest.mark.parametrize(
    ("rows", "training", "message"),
    [
        ([{"messages": ["red"]}], {}, "example 0 of train has .* as 'messages': must be a list of messages"),
        ([{"messages": []}], {}, "must be a list of messages"),
        ([{"messages": [{"from": "human", "value": "red"}]}], {}, "must be a list of messages, with role and content"),
        ([{"text": 5}], {}, "has 5 as 'text', which is no text"),
        ([{"text": "red"}, {"text": None}], {}, "example .* of train has None as 'text', which is no text"),
        ([{"messages": [USER, {"role": "assistant", "content": None}]}], {}, SAYS + "has the content null"),
        (
            [{"messages": [USER, {"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}]}],
            {},
            SAYS + "has a part .*image_url.*: a language model reads parts of type text alone",
        ),
        ([{"messages": [USER, {"role": "assistant", "content": 5}]}], {}, SAYS + "has the content 5"),
        (
            [{"messages": [USER, CALL]}],
            {},
            "a message with tool_calls in 'messages', which the chat template does not",
        ),
        (
            [{"messages": [{"role": "user", "content": "red"}]}],
            {"assistant_only_loss": True},
            "in example 0 of train no assistant says anything",
        ),
    ],
)
def test_bad_examples(settings, tmp_path, rows, training, message):
    dataset = write_jsonl(tmp_path / "rows.jsonl", [{**row, "number": n} for row in rows for n in range(60)])
    with pytest.raises(ValueError, match=message):
        train(settings(data={"dataset": dataset}, training=training))


PARTS = [{"type": "text", "text": "red cat"}, {"type": "text", "text": "sings"}]
WITH_CALLS = """{% for message in messages %}{{ message.role + ': ' }}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}{{ '<call>' + call.function.name }}{% endfor %}{% endfor %}"""


def test_contents_of_parts_and_calls_of_tools(settings, tmp_path):
    """Text parts are joined by line breaks; a null content beside a call is the template's to write."""
    template = tmp_path / "calls.jinja"
    template.write_text(WITH_CALLS)
    rows = [
        {"messages": [{"role": "user", "content": c}, CALL, {"role": "assistant", "content": PARTS}]}
        for c in ("now", PARTS)
    ]
    dataset = load_task(write_jsonl(tmp_path / "rows.jsonl", rows * 9), "train")
    dataset = read_texts(dataset, ["messages"], "train")
    tokenizer = AutoTokenizer.from_pretrained(settings().model.path)
    set_chat_template(tokenizer, str(template), assistant_only=False)
    check_calls(dataset, ["messages"], "train", tokenizer)
    trainer = tuner(settings(), list(dataset), tokenizer)
    texts = set(tokenizer.batch_decode(trainer.train_dataset["input_ids"][:]))
    answer = "assistant: <call>singassistant: red cat\nsings"
    assert texts == {f"user: now{answer}", f"user: red cat\nsings{answer}"}


def test_prompts_without_tokens_are_answered_from_the_beginning(settings, tmp_path):
    """Of texts of less than four characters, nothing is the prompt; this tokenizer adds no token of its own."""
    model = Path(settings().model.path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer._tokenizer.post_processor = TemplateProcessing("$A", "$A $B")
    tokenizer.save_pretrained(tmp_path / "plain")
    rows = [{"text": "red green blue" if n % 4 == 0 else "red"[: n % 2 * 3], "number": n} for n in range(60)]
    config = settings(
        model={"path": str(model), "tokenizer": str(tmp_path / "plain")},
        data={"dataset": write_jsonl(tmp_path / "rows.jsonl", rows)},
        training={"max_steps": 1},
    )
    train(config)
    assert Path(config.output_dir, "metrics.json").is_file()


def test_a_length_that_leaves_nothing_to_learn(settings):
    with pytest.raises(ValueError, match="max_length = 3 leaves nothing to learn of the train split"):
        train(settings(training={"max_length": 3, "assistant_only_loss": True}))


def test_packing_that_leaks_is_refused(settings):
    """TRL's strategy that tells no positions, and adapters that drop them."""
    with pytest.raises(ValueError, match="'wrapped' lets packed texts see each other"):
        train(settings(training={"packing": True, "packing_strategy": "wrapped"}))
    with pytest.raises(ValueError, match="training.packing = True.*'prompt' drops the positions"):
        train(settings(peft={"method": "prompt", "num_virtual_tokens": 2}, training={"packing": True}))


def test_template_without_marks(settings, checkpoints, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="marks what the assistant says"):
        train(settings(data={"chat_template": str(template)}, training={"assistant_only_loss": True}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_run_two_steps(path, checkpoints, files, tmp_path):
    dataset = files["messages" if "chitchat" in path.stem else "prompts"]
    overrides = ["--output_dir", str(tmp_path), "--model.path", checkpoints["decoder"], "--data.dataset", dataset]
    overrides += ["--training.max_steps", "2", "--samples.max_new_tokens", "2", "--data.max_test_samples", "2"]
    train(Sft.load(path, overrides))
    assert (tmp_path / "metrics.json").is_file()
