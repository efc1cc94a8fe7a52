"""Distillation: the losses, the student, runs with every kind of head, bad input."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainingArguments,
)

import hf_llm
from hf_llm.surgery.adapters import merge_adapter, open_adapter
from hf_llm.tuning.distillation import (
    Distillation,
    DistillationSection,
    DistillationTrainer,
    cosine_loss,
    kept_layers,
    make_student,
    soft_loss,
)

from .small_models import SHORT_TRAINING, save_checkpoint, sentences, write_config, write_jsonl


CONFIGS = sorted(Path(__file__).parents[2].glob("recipes/configs/distill-*.yaml"))
TEMPLATE = Path(__file__).parents[2] / "model_cards" / "template.md"


def train(config, template: Path | None = None):
    return Distillation(config, template).run()


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    """Sentences; the label says whether there is a colour in it."""
    rows = [{"text": s, "label": int(bool({"red", "green", "blue"} & set(s.split())))} for s in sentences(150)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {
        "encoder": save_checkpoint(folder / "encoder", "encoder", num_hidden_layers=4),
        "decoder": save_checkpoint(
            folder / "decoder", "decoder", num_hidden_layers=4, layer_types="SSSL", sliding_window=8
        ),
        "shared": save_checkpoint(folder / "shared", "encoder", layer_sharing=[0, 0]),
    }
    tokenizer = AutoTokenizer.from_pretrained(found["encoder"])
    classifier = AutoModelForSequenceClassification.from_pretrained(found["encoder"], num_labels=2)
    found["classifier"] = folder / "classifier"
    classifier.save_pretrained(found["classifier"])
    tokenizer.save_pretrained(found["classifier"])
    return {name: str(path) for name, path in found.items()}


@pytest.fixture
def settings(tmp_path, texts, checkpoints):
    def make(**changes):
        sections = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": checkpoints["classifier"]},
            "task": "sequence_classification",
            "data": {"dataset": texts},
            "student": {"layers": 2},
            "training": SHORT_TRAINING,
        }
        return Distillation.load(write_config(tmp_path / "run.yaml", sections, changes))

    return make


def test_soft_loss_by_hand():
    """Two classes: the divergence and its gradient as Hinton et al. (2015) write them."""
    student = torch.tensor([[0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[4.0, 0.0]])
    p, q = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(1.0))  # of class 0 at temperature 2
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    loss = soft_loss(student, teacher, 2.0)
    assert loss.item() == pytest.approx(4 * expected, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[2 * (q - p), 2 * (p - q)]]))


def test_soft_loss_of_a_single_output_and_of_nothing():
    """A number has no distribution, and a batch may have no masked token at all."""
    assert soft_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [0.0]]), 2.0).item() == 5.0
    assert soft_loss(torch.zeros(0, 7), torch.zeros(0, 7), 2.0).item() == 0.0


def test_cosine_loss_is_torchs():
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    expected = torch.nn.CosineEmbeddingLoss()(a, b, torch.ones(5))
    torch.testing.assert_close(cosine_loss(a, b, torch.full((5,), 0.2)), expected)


@pytest.mark.parametrize(
    ("total", "layers", "expected"),
    [(6, 3, [0, 2, 4]), (12, 6, [0, 2, 4, 6, 8, 10]), (4, 4, [0, 1, 2, 3])],
)
def test_kept_layers(total, layers, expected):
    assert kept_layers(total, layers) == expected


@pytest.mark.parametrize("layers", [0, 5, [], [2, 1], [1, 1], [3, 4]])
def test_bad_layers(layers):
    with pytest.raises(ValueError, match="student.layers"):
        kept_layers(4, layers)


def test_a_student_of_all_layers_is_the_teacher(checkpoints):
    ids = torch.arange(5, 17)[None]
    for auto_class, name in ((AutoModelForMaskedLM, "encoder"), (AutoModelForCausalLM, "decoder")):
        teacher = auto_class.from_pretrained(checkpoints[name]).eval()
        with torch.no_grad():
            assert torch.equal(make_student(teacher, 4).eval()(ids).logits, teacher(ids).logits)
        student = make_student(teacher, [1, 3])
        for mine, yours in enumerate([1, 3]):
            ours, theirs = student.base_model.layers[mine], teacher.base_model.layers[yours]
            pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        assert student.config.layer_types == [teacher.config.layer_types[i] for i in (1, 3)]


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_loss_is_the_weighted_sum(checkpoints, tmp_path, name):
    """Against DistilBERT's own formula, on the places that have a label."""
    auto_class = AutoModelForCausalLM if name == "decoder" else AutoModelForMaskedLM
    teacher = auto_class.from_pretrained(checkpoints[name]).eval()
    student = make_student(teacher, 2)
    causal = name == "decoder"
    settings = DistillationSection(temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = DistillationTrainer(model=student, args=args, teacher=teacher, settings=settings)
    ids = torch.randint(5, 300, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100) if causal else torch.where(torch.rand(3, 9) < 0.4, ids, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    loss = trainer.compute_loss(student.train(), batch)
    with torch.no_grad():
        s, t = (m.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True) for m in (student, teacher))
    where = labels
    ours, theirs = s.logits, t.logits
    if causal:
        where, ours, theirs = labels[:, 1:], ours[:, :-1], theirs[:, :-1]
    chosen = where != -100
    ours, theirs = ours[chosen], theirs[chosen]
    kl = torch.nn.KLDivLoss(reduction="batchmean")((ours / 2).log_softmax(-1), (theirs / 2).softmax(-1)) * 4
    cross = torch.nn.functional.cross_entropy(ours, where[chosen])
    real = mask.bool()
    states = s.hidden_states[-1][real], t.hidden_states[-1][real]
    cosine = torch.nn.CosineEmbeddingLoss()(*states, torch.ones(int(real.sum())))
    torch.testing.assert_close(loss, 5 * kl + 2 * cross + cosine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["classifier", "encoder", "decoder"])
def test_losses_of_divided_batches_add_up(checkpoints, tmp_path, name):
    auto_class = {"decoder": AutoModelForCausalLM, "encoder": AutoModelForMaskedLM}.get(
        name, AutoModelForSequenceClassification
    )
    teacher = auto_class.from_pretrained(checkpoints[name]).eval()
    student = make_student(teacher, 2)
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    settings = DistillationSection(temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)
    trainer = DistillationTrainer(model=student, args=args, teacher=teacher, settings=settings)
    ids = torch.randint(5, 300, (4, 9))
    mask = (torch.arange(9) < torch.tensor([[3], [9], [5], [7]])).long()
    labels = (
        torch.arange(4) % 2 if name == "classifier" else ids.masked_fill((torch.rand(4, 9) < 0.5) | (mask == 0), -100)
    )
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    items = trainer._get_num_items_in_batch([batch], args.device)
    student.train()
    whole = trainer.compute_loss(student, batch, num_items_in_batch=items)
    parts = [
        trainer.compute_loss(student, {k: v[rows] for k, v in batch.items()}, num_items_in_batch=items)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)


def test_a_run_from_a_classifier_to_card(settings):
    config = settings()
    train(config, TEMPLATE)
    run = Path(config.output_dir)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["speedup"] > 1 and set(metrics["baselines"]["teacher"]) >= {"accuracy"}
    student = AutoModelForSequenceClassification.from_pretrained(run)
    assert isinstance(student, hf_llm.LLMEncoderForSequenceClassification)
    assert student.config.num_hidden_layers == 2
    card = (run / "README.md").read_text()
    assert "began with layers 0, 2 of the teacher's 4" in card and "| teacher |" in card


@pytest.mark.parametrize(
    ("name", "task"), [("encoder", "masked_language_modeling"), ("decoder", "causal_language_modeling")]
)
def test_language_models(settings, checkpoints, name, task):
    weights = {"soft": 5.0, "hard": 2.0, "cosine": 1.0}
    config = settings(model={"path": checkpoints[name]}, task=task, distillation=weights)
    train(config)
    metrics = json.loads(Path(config.output_dir, "metrics.json").read_text())
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["token_loss"]))
    assert 0 <= metrics["accuracy"] <= 1 and metrics["baselines"]["teacher"]["perplexity"] > 1


@pytest.mark.parametrize(
    ("name", "task", "auto_class"),
    [
        ("classifier", "sequence_classification", AutoModelForSequenceClassification),
        ("encoder", "masked_language_modeling", AutoModelForMaskedLM),
        ("decoder", "causal_language_modeling", AutoModelForCausalLM),
    ],
)
def test_a_student_with_an_adapter(settings, checkpoints, name, task, auto_class):
    """The student as it began is beside its adapter, which opens there, and merges."""
    config = settings(
        model={"path": checkpoints[name]},
        task=task,
        distillation={"soft": 5.0, "hard": 0.0, "cosine": 1.0},  # labels teach an untrained head nothing steady
        peft={"method": "lora", "r": 4, "lora_alpha": 32},
        training={"max_steps": 16, "eval_steps": 16, "save_steps": 16, "logging_steps": 1, "learning_rate": 3e-3},
    )
    train(config, TEMPLATE)
    run = Path(config.output_dir)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["trainable_parameters"] < metrics["parameters"] / 4
    history = json.loads((run / "checkpoint-16" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert sum(losses[8:]) < sum(losses[:8])
    teacher = auto_class.from_pretrained(checkpoints[name]).eval()
    begun = auto_class.from_pretrained(run / "base").eval()
    assert begun.config.num_hidden_layers == 2
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        assert torch.equal(begun(ids).logits, make_student(teacher, 2).eval()(ids).logits)
        plain = begun(ids).logits
        adapted = open_adapter(begun, run).eval()(ids).logits
        assert (adapted - plain).abs().max() > 1e-3
        merged = merge_adapter(auto_class.from_pretrained(run / "base"), run).eval()
        torch.testing.assert_close(merged(ids).logits, adapted, rtol=0, atol=1e-5)
        namespace = {}
        usage = re.search(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)[1]
        exec(usage.replace('"run"', repr(str(run))), namespace)  # the card's own words
        torch.testing.assert_close(namespace["model"].eval()(ids).logits, adapted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"layers": 9}}, "student.layers = 9: the teacher has 4"),
        ({"model": {"path": "shared"}, "task": "masked_language_modeling"}, "shares its layers"),
        (
            {"model": {"path": "encoder"}},
            "no trained head for AutoModelForSequenceClassification: a teacher",
        ),
        ({"distillation": {"temperature": 0}}, "temperature = 0 must be above 0"),
        ({"distillation": {"soft": 0, "hard": 0}}, "one of them above it"),
        ({"distillation": {"sfot": 1}}, "did you mean 'soft'"),
        ({"task": "sequence_clasification"}, "did you mean 'sequence_classification'"),
        ({"peft": {"method": "prompt"}}, "'prompt': virtual tokens have no counterpart in the teacher"),
        ({"data": {"dataset": {"name": "texts", "columns": {"body": "text"}}}}, "text"),
    ],
)
def test_bad_configurations(settings, checkpoints, texts, changes, message):
    text = json.dumps(changes)
    for name, path in {**checkpoints, "texts": texts}.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    changes = json.loads(text)
    with pytest.raises(ValueError, match=message):
        train(settings(**changes))


def test_a_teacher_of_other_classes_is_refused(settings, checkpoints, tmp_path):
    """The same two classes in another order: what it teaches would be wrong."""
    teacher = AutoModelForSequenceClassification.from_pretrained(
        checkpoints["classifier"], id2label={0: "1", 1: "0"}, label2id={"1": 0, "0": 1}
    )
    teacher.save_pretrained(tmp_path / "teacher")
    model = {"path": str(tmp_path / "teacher"), "tokenizer": checkpoints["classifier"]}
    with pytest.raises(ValueError, match=r"classes are \['1', '0'\], and those of the data \['0', '1'\]"):
        train(settings(model=model))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_run_two_steps(path, checkpoints, texts, tmp_path):
    model = checkpoints["classifier" if "sentiment" in path.stem else "encoder"]
    overrides = ["--output_dir", str(tmp_path), "--model.path", model, "--data.dataset", texts]
    overrides += ["--training.max_steps", "2", "--student.layers", "2"]
    train(Distillation.load(path, overrides))
    assert (tmp_path / "metrics.json").is_file()
