"""recipes/finetune.py: every task on every stack, wrong input, interruption, and every configuration."""

import json
import logging
import math
import re
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from models.tiny import tiny_config
from peft import AutoPeftModelForSequenceClassification
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, ByT5Tokenizer, Trainer, TrainerCallback, pipeline

from hf_llm import (
    LLMDecoderForCausalLM,
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderForMaskedLM,
    LLMEncoderForSequenceClassification,
)
from hf_llm.data import train_tokenizer
from hf_llm.data.tasks import load_task
from hf_llm.tuning.baselines import naive_bayes, ridge
from hf_llm.tuning.examples import check_tokens
from hf_llm.tuning.finetuning import FinetuneTrainer, Finetuning
from hf_llm.tuning.tasks import make_task


RECIPES = Path(__file__).parents[2] / "recipes"
TEMPLATE = RECIPES.parent / "model_cards" / "template.md"
MODELS = {
    "encoder": LLMEncoderForMaskedLM,
    "decoder": LLMDecoderForCausalLM,
    "encoder_decoder": LLMEncoderDecoderForConditionalGeneration,
}
NAMES = ("Ann Lee", "Bob", "Carl May", "Dora")
# task -> the n-th example
EXAMPLES = {
    "sequence_classification": lambda n: {
        "text": f"it is {'good' if n % 2 else 'bad'} {n}",
        "label": ["no", "yes"][n % 2],
    },
    "regression": lambda n: {"text": "x" * (n % 7) + str(n), "label": n % 7 / 3},
    "token_classification": lambda n: {
        "words": ["call", *NAMES[n % 4].split(), str(n)],
        "tags": ["O", "B-PER", *["I-PER"] * (len(NAMES[n % 4].split()) - 1), "O"],
    },
    "question_answering": lambda n: {
        "question": "who?",
        "context": f"on day {n} " + "or so " * (n % 9) + f"{NAMES[n % 4]} came",
        "answers": {"text": [NAMES[n % 4]], "answer_start": [len(f"on day {n} ") + 6 * (n % 9)]}
        if n % 2
        else {"text": [], "answer_start": []},
    },
    "multiple_choice": lambda n: {"question": f"{n}?", "choices": ["a", f"b{n}", "c"], "label": n % 3},
}
METRICS = {
    "sequence_classification": {"accuracy", "f1_macro", "matthews_correlation"},
    "regression": {"pearsonr", "spearmanr", "mse"},
    "token_classification": {"precision", "recall", "f1", "accuracy"},
    "question_answering": {"exact_match", "f1", "f1_answerable", "f1_unanswerable"},
    "multiple_choice": {"accuracy"},
}
CASES = [(t, s) for t in EXAMPLES for s in MODELS if t != "multiple_choice" or s == "encoder"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A tiny model of each stack with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for stack, model_class in MODELS.items():
        tokenizer = train_tokenizer(["a b c"] * 9, "byte", None, stack=stack.replace("_", "-"), show_progress=False)
        config = tiny_config(stack, vocab_size=384)
        config.eos_token_id = tokenizer.eos_token_id
        model_class(config).save_pretrained(folder / stack)
        tokenizer.save_pretrained(folder / stack)
    return folder


def finetune(config, template: Path | None = None) -> signal.Signals | None:
    return Finetuning(config, template).run()


def write_examples(path: Path, examples: list[dict]) -> str:
    path.write_text("".join(json.dumps(e) + "\n" for e in examples), encoding="utf-8")
    return str(path)


def run_config(tmp_path: Path, model: Path, task, dataset, **more) -> Path:
    """A configuration file of two steps."""
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True}
    settings = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": str(model)},
        "task": task,
        "data": {"dataset": dataset, "max_length": 60},
        **more,
        "training": {**training, **more.get("training", {})},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def make_run(tmp_path: Path, checkpoints: Path, task: str, stack: str, count: int = 90, **more) -> Path:
    data = write_examples(tmp_path / "data.jsonl", [EXAMPLES[task](n) for n in range(count)])
    options = {"name": task, "stride": 8} if task == "question_answering" else task
    return run_config(tmp_path, checkpoints / stack, options, data, **more)


@pytest.mark.parametrize(("task", "stack"), CASES)
def test_every_task_on_every_stack(task, stack, checkpoints, tmp_path, capsys):
    config = Finetuning.load(make_run(tmp_path, checkpoints, task, stack))
    assert finetune(config, TEMPLATE) is None
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert METRICS[task] <= set(metrics) and metrics["steps"] == 2
    assert metrics["trainable_parameters"] == metrics["parameters"]
    records = [json.loads(line) for line in (run / "predictions.jsonl").open()]
    assert len(records) == metrics["rows"]["test"]
    card = (run / "README.md").read_text()
    assert "model-index" in card and str(round(metrics[min(METRICS[task])], 4))[:5] in card
    usage = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    exec(usage.replace('"run"', repr(str(run))), {})  # the card's own words open it
    assert (run / "curves.png").stat().st_size > 1000 and len(list(run.glob("*.png"))) >= 2
    assert "Held out:" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "stack"), [("masked", "encoder"), ("causal", "decoder")])
def test_language_models_are_fine_tuned_by_the_same_table(task, stack, checkpoints, tmp_path):
    data = write_examples(tmp_path / "data.jsonl", [{"text": f"it is {n} again and again"} for n in range(90)])
    training = {"max_steps": 12, "learning_rate": 0.01}
    path = run_config(tmp_path, checkpoints / stack, f"{task}_language_modeling", data, training=training)
    assert finetune(Finetuning.load(path), TEMPLATE) is None
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["token_loss"])) and metrics["perplexity"] < 200
    assert "| this model |" in (tmp_path / "run" / "README.md").read_text()


def test_the_result_opens_in_a_pipeline_and_learns(checkpoints, tmp_path):
    """Enough steps tell two words apart; the names of the classes are those of the data."""
    training = {"max_steps": 40, "learning_rate": 0.01, "eval_strategy": "no", "save_strategy": "no"}
    training["train_sampling_strategy"] = "group_by_length"  # which must not change the order of predictions
    config = make_run(tmp_path, checkpoints, "sequence_classification", "encoder", training=training)
    finetune(Finetuning.load(config))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"] == 1.0
    classify = pipeline("text-classification", str(tmp_path / "run"))
    assert [p["label"] for p in classify(["it is good 3", "it is bad 8"])] == ["yes", "no"]


def test_an_adapter_run_keeps_its_base_and_opens(checkpoints, tmp_path):
    """The base with the new head is beside the adapter, which names it."""
    peft = {"method": "lora", "r": 2}
    finetune(
        Finetuning.load(make_run(tmp_path, checkpoints, "sequence_classification", "decoder", peft=peft)),
        TEMPLATE,
    )
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["trainable_parameters"] < metrics["parameters"] / 10
    model = AutoPeftModelForSequenceClassification.from_pretrained(run)
    assert model.config.id2label == {0: "no", 1: "yes"}
    record = json.loads((run / "predictions.jsonl").open().readline())
    inputs = AutoTokenizer.from_pretrained(run)(record["text"], return_tensors="pt", return_token_type_ids=False)
    probabilities = model(**inputs).logits.softmax(-1)[0].tolist()
    assert probabilities == pytest.approx(list(record["probabilities"].values()), abs=2e-5)


def test_an_adapter_for_other_classes_keeps_a_base_with_these(checkpoints, tmp_path):
    """The checkpoint has the same kind of head, for two classes; the adapter's base must have one for three."""
    two = LLMEncoderForSequenceClassification.from_pretrained(checkpoints / "encoder", num_labels=2)
    two.save_pretrained(tmp_path / "two")
    examples = [{"text": f"{n}", "label": "abc"[n % 3]} for n in range(90)]
    data = write_examples(tmp_path / "data.jsonl", examples)
    path = run_config(tmp_path, tmp_path / "two", "sequence_classification", data, peft={"method": "lora", "r": 2})
    finetune(Finetuning.load(path, ["--model.tokenizer", str(checkpoints / "encoder")]))
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_all_weights_are_trained_behind_a_merged_adapter(checkpoints, tmp_path):
    peft = {"method": "lora", "r": 2}
    finetune(Finetuning.load(make_run(tmp_path, checkpoints, "sequence_classification", "encoder", peft=peft)))
    path = make_run(tmp_path, checkpoints, "sequence_classification", "encoder", output_dir=str(tmp_path / "whole"))
    finetune(Finetuning.load(path, ["--model.adapter", str(tmp_path / "run")]))
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["trainable_parameters"] == metrics["parameters"]


def test_both_texts_of_a_pair_are_read(checkpoints, tmp_path):
    """By the baselines too: the second one alone tells the classes apart."""
    examples = [{"text": f"{n}", "text_pair": "good" if n % 2 else "bad", "label": n % 2} for n in range(90)]
    data = write_examples(tmp_path / "data.jsonl", examples)
    finetune(Finetuning.load(run_config(tmp_path, checkpoints / "encoder", "sequence_classification", data)))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["baselines"]["naive Bayes on words"]["accuracy"] == 1.0
    assert "\n" in json.loads((tmp_path / "run" / "predictions.jsonl").open().readline())["text"]


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_a_tokenizer_that_pads_on_the_left_changes_nothing(task, checkpoints, tmp_path):
    """Labels, offsets and predictions belong to places that padding before them would move."""
    runs = {}
    for side in ("right", "left"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoints / "decoder", padding_side=side)
        tokenizer.save_pretrained(tmp_path / side)
        assert AutoTokenizer.from_pretrained(tmp_path / side).padding_side == side
        path = make_run(tmp_path, checkpoints, task, "decoder", output_dir=str(tmp_path / f"{side} run"))
        finetune(Finetuning.load(path, ["--model.tokenizer", str(tmp_path / side)]))
        runs[side] = (tmp_path / f"{side} run" / "predictions.jsonl").read_text()
    assert runs["left"] == runs["right"]


def test_words_of_which_nothing_is_left_do_not_move_the_tags_of_others(checkpoints, tmp_path):
    examples = [{"words": ["", "Ann", "", "came", str(n)], "tags": ["O", "B-PER", "O", "O", "O"]} for n in range(90)]
    data = write_examples(tmp_path / "data.jsonl", examples)
    finetune(Finetuning.load(run_config(tmp_path, checkpoints / "encoder", "token_classification", data)))
    record = json.loads((tmp_path / "run" / "predictions.jsonl").open().readline())
    assert record["words"][:2] == ["Ann", "came"] and record["tags"] == ["B-PER", "O", "O"]


def test_spans_that_training_has_not_seen_have_a_figure_of_their_own():
    """Ann is known and right; of two unseen names one is found, and Ed is a false alarm."""
    examples = [{"words": ["Ann", "saw", "Di", "Fox"], "tags": ["B-PER", "O", "B-PER", "I-PER"]}]
    task = make_task("token_classification")
    task.prepare({"train": Dataset.from_list(examples)})
    record = {
        "words": ["Ann", "saw", "Bo", "Lee", "and", "Cy", ",", "Ed", "not"],
        "tags": ["B-PER", "O", "B-PER", "I-PER", "O", "B-PER", "O", "O", "O"],
        "prediction": ["B-PER", "O", "B-PER", "I-PER", "O", "O", "O", "B-PER", "O"],
    }
    scores = task.score([record])
    assert scores["f1"] == pytest.approx(2 / 3) and scores["f1_unseen"] == pytest.approx(1 / 2)
    assert record["tags"][0] == "B-PER"
    seen = {key: value[:2] for key, value in record.items()}
    assert "f1_unseen" not in task.score([seen])


class _Interrupt(TrainerCallback):
    """SIGTERM in the middle of the third step."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)


def _interrupted_train(trainer, **kwargs):
    trainer.add_callback(_Interrupt())
    return Trainer.train(trainer, **kwargs)


@pytest.mark.parametrize("peft", [None, {"method": "lora", "r": 2, "lora_dropout": 0.1}], ids=["full", "lora"])
def test_an_interrupted_run_goes_on_to_the_same_weights(peft, checkpoints, tmp_path, monkeypatch):
    training = {"max_steps": 5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    more = {"training": training, "peft": peft}
    path = make_run(tmp_path, checkpoints, "sequence_classification", "encoder", **more)
    assert finetune(Finetuning.load(path, ["--output_dir", str(tmp_path / "whole")])) is None
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "train", _interrupted_train)
        assert finetune(Finetuning.load(path)) == signal.SIGTERM
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert finetune(Finetuning.load(path)) is None
    name = "adapter_model.safetensors" if peft else "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---- wrong input ----------------------------------------------------------------------------------------------------


def refusal(path: Path, overrides: list[str] = ()) -> str:
    with pytest.raises(ValueError) as caught:
        finetune(Finetuning.load(path, overrides))
    return str(caught.value)


def test_wrong_columns_are_listed(checkpoints, tmp_path):
    data = write_examples(tmp_path / "data.jsonl", [{"txt": f"a{n}", "label": n % 2} for n in range(60)])
    message = refusal(run_config(tmp_path, checkpoints / "encoder", "sequence_classification", data))
    assert "has no column 'text'; did you mean 'txt'? Its columns are txt, label" in message.replace("?.", "?")


def test_classes_that_differ_between_splits_are_named(checkpoints, tmp_path):
    """The test split has a class that training never saw."""
    for name, classes in {"train": "ab", "validation": "ab", "test": "abz"}.items():
        write_examples(
            tmp_path / f"{name}.jsonl", [{"text": f"{c}{n}", "label": c} for n in range(9) for c in classes]
        )
    dataset = {
        "name": str(tmp_path / "train.jsonl"),
        "splits": {name: str(tmp_path / f"{name}.jsonl") for name in ("validation", "test")},
    }
    message = refusal(run_config(tmp_path, checkpoints / "encoder", "sequence_classification", dataset))
    assert "classes in test that train does not have: ['z']; train has ['a', 'b']" in message


@pytest.mark.parametrize(
    ("task", "example", "message"),
    [
        ("sequence_classification", {"text": "a", "label": "same"}, "has one class only"),
        (
            "sequence_classification",
            {"text": "a", "label": 0.5},
            "which is no class; for numbers take task: regression",
        ),
        ("regression", {"text": "a", "label": "five"}, "has 'five', which is no number"),
        ("regression", {"text": "a", "label": float("nan")}, "has nan, which is no number"),
        ("token_classification", {"words": ["a", "b"], "tags": ["O"]}, "has 2 words, but 1 tags"),
        ("token_classification", {"words": ["a", None], "tags": ["O", "O"]}, "as 'words', which is no list of texts"),
        ("token_classification", {"words": ["a"], "tags": None}, "has 1 words, but None as 'tags'"),
        ("multiple_choice", {"question": "?", "choices": ["a", None], "label": 0}, "which is no list of texts"),
        (
            "question_answering",
            {"question": "?", "context": "abc", "answers": "a"},
            "answers 'a', which are not those",
        ),
        (
            "question_answering",
            {"question": "?", "context": "abc", "answers": {"text": ["a"], "answer_start": []}},
            "a place in the context for each text",
        ),
        (
            "question_answering",
            {"question": "?", "context": "abc", "answers": {"text": ["x"], "answer_start": [1]}},
            "the context has no 'x' at 1",
        ),
        ("multiple_choice", {"question": "?", "choices": ["a", "b"], "label": 2}, "label 2 is none of 0 to 1"),
    ],
)
def test_labels_that_make_no_sense_are_refused(task, example, message, checkpoints, tmp_path):
    column = next(name for name in ("text", "words", "question") if name in example)
    varied = [{**example, "number": n, column: example[column]} for n in range(60)]
    data = write_examples(tmp_path / "data.jsonl", varied)
    options = {"name": task, "stride": 8} if task == "question_answering" else task
    assert message in refusal(run_config(tmp_path, checkpoints / "encoder", options, data))


@pytest.fixture(scope="module")
def python_tokenizers(tmp_path_factory):
    """A tiny encoder and a tokenizer without offsets: ByT5's, which is written in Python."""
    folder = tmp_path_factory.mktemp("byt5")
    LLMEncoderForMaskedLM(tiny_config("encoder", vocab_size=384)).save_pretrained(folder / "encoder")
    ByT5Tokenizer().save_pretrained(folder / "encoder")
    return folder


def test_python_tokenizers_serve_where_no_offsets_are_needed(python_tokenizers, tmp_path):
    """And cut texts are counted: "it is good 7" is 12 bytes and an end token."""
    path = make_run(tmp_path, python_tokenizers, "sequence_classification", "encoder")
    config = Finetuning.load(path, ["--data.max_length", "13"])
    assert finetune(config, TEMPLATE) is None
    texts = [json.loads(line)["text"] for line in Path(config.data.dataset).read_text().splitlines()]
    card = (tmp_path / "run" / "README.md").read_text()
    cut = re.findall(r"([\d,]+) of [\d,]+ \w+ examples .* are longer than 13 tokens: cut", card)
    assert sum(map(int, cut)) == sum(len(text) + 1 > 13 for text in texts)


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_python_tokenizers_are_refused_where_offsets_are_needed(task, python_tokenizers, tmp_path):
    message = refusal(make_run(tmp_path, python_tokenizers, task, "encoder"))
    assert f"task.name = '{task}' needs to know which characters a token stands for, which a ByT5Tokenizer" in message


def test_empty_texts(checkpoints, tmp_path):
    """Special tokens make them examples like others; where a tokenizer adds none, the first of them is named."""
    examples = [EXAMPLES["sequence_classification"](n) | {"number": n} for n in range(90)]
    data = write_examples(tmp_path / "data.jsonl", [e | {"text": ""} if e["number"] % 3 else e for e in examples])
    path = run_config(tmp_path, checkpoints / "encoder", "sequence_classification", data)
    assert finetune(Finetuning.load(path)) is None
    bare = AutoTokenizer.from_pretrained(checkpoints / "encoder")
    bare._tokenizer.post_processor = TemplateProcessing("$A", "$A $B")
    bare.save_pretrained(tmp_path / "bare")
    message = refusal(path, ["--model.tokenizer", str(tmp_path / "bare"), "--output_dir", str(tmp_path / "other")])
    first = load_task(data, "train")["text"][:].index("")
    assert f"data: the text of example {first} of train has no tokens, and the tokenizer adds none" in message


@pytest.mark.parametrize(
    ("features", "number"),
    [
        ({"input_ids": [[1], []]}, 1),
        ({"input_ids": [[[1], [2]], [[3], [4]], [[5], []]]}, 2),
        ({"input_ids": [[1], [1], []], "example": [0, 7, 7]}, 7),
    ],
    ids=["texts", "choices", "windows"],
)
def test_the_example_without_tokens_is_named(features, number):
    with pytest.raises(ValueError, match=f"the text of example {number} of test has no tokens"):
        check_tokens(Dataset.from_dict(features), "test")


def test_baselines_of_texts_without_words():
    assert naive_bayes(["a", "?"], ["x", "x"], ["b"]) == ["x"] and ridge(["a", ""], [1.0, 3.0], ["b"]) == [2.0]


def test_questions_with_fewer_choices_are_refused(checkpoints, tmp_path):
    examples = [{"question": f"{n}?", "choices": ["a", "b", "c"][: 2 + n % 2], "label": 0} for n in range(60)]
    data = write_examples(tmp_path / "data.jsonl", examples)
    assert "all must have equally many" in refusal(
        run_config(tmp_path, checkpoints / "encoder", "multiple_choice", data)
    )


def test_empty_splits_are_refused(checkpoints, tmp_path):
    path = make_run(tmp_path, checkpoints, "sequence_classification", "encoder", count=1)
    assert "is empty" in refusal(path)


def test_cut_texts_are_counted(checkpoints, tmp_path, caplog):
    path = make_run(tmp_path, checkpoints, "sequence_classification", "encoder")
    with caplog.at_level(logging.WARNING):
        finetune(Finetuning.load(path, ["--data.max_length", "9"]), TEMPLATE)
    train = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]["train"]
    sentence = f"{train} of {train} train examples (100.0 %) are longer than 9 tokens: cut."
    assert sentence in caplog.text and sentence in (tmp_path / "run" / "README.md").read_text()


def test_a_new_head_is_said(checkpoints, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        finetune(Finetuning.load(make_run(tmp_path, checkpoints, "sequence_classification", "encoder")))
    assert "has no such head: score.bias, score.weight are newly initialised" in caplog.text


def test_a_head_that_a_stack_does_not_have_is_refused(checkpoints, tmp_path):
    message = refusal(make_run(tmp_path, checkpoints, "multiple_choice", "decoder"))
    assert "has no head for AutoModelForMultipleChoice; it has: AutoModel," in message


def test_texts_longer_than_the_model_reads_are_refused(checkpoints, tmp_path):
    LLMEncoderForMaskedLM(tiny_config("encoder", vocab_size=384, position_embedding="learned")).save_pretrained(
        tmp_path / "learned"
    )
    data = write_examples(tmp_path / "data.jsonl", [EXAMPLES["regression"](n) for n in range(90)])
    path = run_config(tmp_path, tmp_path / "learned", "regression", data)
    overrides = ["--model.tokenizer", str(checkpoints / "encoder"), "--data.max_length", "65"]
    assert "data.max_length = 65: the model and its tokenizer read 1 to 64 tokens" in refusal(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--task", "classify"], "task.name = 'classify' is unknown"),
        (
            ["--task.name", "question_answering", "--task.strid", "8"],
            "unknown key 'task.strid'; did you mean 'stride'?",
        ),
        (["--peft.method", "lorra"], "peft.method = 'lorra' is unknown; did you mean 'lora'?"),
        (["--training.learning_rat", "1"], "unknown key 'training.learning_rat'; did you mean 'learning_rate'?"),
        (["--training.label_names", "[x]"], "training.label_names is not set here: the task decides"),
        (["--model.dtype", "float33"], "model.dtype = 'float33' is no dtype"),
        (["--model.path", "/nowhere/at/all"], "model.path = '/nowhere/at/all' cannot be opened"),
        (["--model.fields.classifier_droput", "0.1"], "unknown key 'model.fields.classifier_droput'; did you mean"),
    ],
)
def test_wrong_settings_are_named(overrides, message, checkpoints, tmp_path):
    settings = {"name": "sequence_classification"}
    data = write_examples(tmp_path / "data.jsonl", [EXAMPLES["sequence_classification"](n) for n in range(60)])
    path = run_config(tmp_path, checkpoints / "encoder", settings, data)
    assert message in refusal(path, overrides)


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [
        (
            "sequence_classification of two stacks",
            "prompt",
            "ForSequenceClassification reads in both of its stacks",
        ),
        ("token_classification", "prompt", "labels of a LLMEncoderForTokenClassification belong to places in it"),
        ("question_answering", "p_tuning", "labels of a LLMEncoderForQuestionAnswering belong to places in it"),
        ("multiple_choice", "prompt", "belong to places in it"),
        ("sequence_classification", "prefix", "needs a cache, which a LLMEncoderForSequenceClassification has not"),
    ],
)
def test_virtual_tokens_that_would_move_the_labels_are_refused(task, method, message, checkpoints, tmp_path):
    peft = {"method": method, "num_virtual_tokens": 2}
    task, _, two = task.partition(" of two ")
    path = make_run(tmp_path, checkpoints, task, "encoder_decoder" if two else "encoder", peft=peft)
    assert refusal(path).startswith(f"peft.method = {method!r}") and message in refusal(path)


def test_a_question_that_fills_the_window_is_refused(checkpoints, tmp_path):
    path = make_run(tmp_path, checkpoints, "question_answering", "encoder")
    assert "leaves no room: the longest question takes" in refusal(path, ["--data.max_length", "12"])


@pytest.mark.parametrize("path", sorted((RECIPES / "configs").glob("finetune-*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_legal_and_runs_two_steps(path, checkpoints, tmp_path):
    """With examples of its task and a tiny model in the place of the real ones."""
    config = Finetuning.load(path)
    name = config.task if isinstance(config.task, str) else config.task["name"]
    config.data.dataset = write_examples(tmp_path / "data.jsonl", [EXAMPLES[name](n) for n in range(90)])
    config.output_dir, config.cpu_threads, config.model.path = str(tmp_path / "run"), 1, str(checkpoints / "encoder")
    config.training |= {"max_steps": 2, "warmup_steps": 1, "report_to": "none", "disable_tqdm": True}
    finetune(config, TEMPLATE)
    if config.peft is not None:
        reopened = LLMEncoderForSequenceClassification.from_pretrained(tmp_path / "run" / "base")
        assert torch.isfinite(reopened.score.weight).all()
    assert (tmp_path / "run" / "README.md").is_file()
