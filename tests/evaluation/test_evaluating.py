"""Evaluations from settings to JSON, table and card."""

import json

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from models.tiny import redraw, tiny_config
from peft import LoraConfig, get_peft_model
from transformers import pipeline

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMEncoderForSequenceClassification,
    LLMEncoderForTokenClassification,
)
from hf_llm.evaluation import perplexity
from hf_llm.evaluation.evaluating import EvaluationConfig, evaluate
from hf_llm.evaluation.opening import opened
from hf_llm.training.settings import build_section, parse_overrides
from hf_llm.tuning.finetuning import Finetuning

from .conftest import TEXTS


def save(folder, model, tokenizer) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def decoder(language_models, tmp_path):
    language_model = language_models["decoder"]
    return save(tmp_path / "decoder", language_model.model, language_model.tokenizer)


def config_of(*words: str):
    settings = parse_overrides([word for pair in zip(words[::2], words[1::2]) for word in (f"--{pair[0]}", pair[1])])
    return build_section(EvaluationConfig, dict(settings))


def test_perplexity_reaches_file_table_and_card(language_models, decoder, tmp_path):
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS * 6])
    ModelCard.from_template(
        ModelCardData(pipeline_tag="text-generation"), template_str="---\n{{card_data}}\n---"
    ).save(f"{decoder}/README.md")
    config = config_of("model", decoder, "data", data, "split", "train", "held_out_fraction", "0", "prompts", "[To]")
    result = evaluate(config)
    expected = perplexity.figures(s.sums() for s in perplexity.score_texts(language_models["decoder"], TEXTS * 6))
    assert result["metrics"] == pytest.approx(expected)
    assert json.loads(config.output_path.read_text())["metrics"] == result["metrics"]
    assert [sample["source"] for sample in result["samples"]] == ["To"]

    evaluate(config)  # a second time replaces the figures
    results = ModelCard.load(f"{decoder}/README.md").data.eval_results
    shown = {r.metric_type: r.metric_value for r in results}
    assert len(results) == 3
    assert shown == pytest.approx({k: expected[k] for k in ("loss", "perplexity", "bits_per_byte")}, abs=1e-4)


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "tied head"])
def test_an_adapter_is_evaluated_on_its_base(language_models, decoder, tmp_path, fields):
    base, config = LLMDecoderForCausalLM.from_pretrained(decoder), LoraConfig(task_type="CAUSAL_LM", r=2, **fields)
    model = get_peft_model(base, config)
    redraw(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = language_models["decoder"].tokenizer
    tokenizer.save_pretrained(tmp_path / "adapter")
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    words = ("model", str(tmp_path / "adapter"), "data", data, "split", "train", "held_out_fraction", "0")
    scored = perplexity.score_texts(opened(model, tokenizer, "decoder"), TEXTS)
    expected = perplexity.figures(s.sums() for s in scored)
    assert evaluate(config_of(*words))["metrics"] == pytest.approx(expected, rel=1e-5)


def test_max_examples_and_columns(decoder, tmp_path):
    data = write(tmp_path / "texts.jsonl", [{"body": text} for text in TEXTS])
    settings = ("model", decoder, "data", data, "split", "train", "held_out_fraction", "0", "columns", "{text: body}")
    assert evaluate(config_of(*settings, "max_examples", "2"))["metrics"]["texts"] == 2


def test_figures_of_masked_models_are_called_pseudo(language_models, tmp_path):
    language_model = language_models["encoder"]
    path = save(tmp_path / "model", language_model.model, language_model.tokenizer)
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS[1:3]])
    settings = ("model", path, "data", data, "split", "train", "held_out_fraction", "0")
    metrics = evaluate(config_of(*settings))["metrics"]
    expected = perplexity.figures(s.sums() for s in perplexity.score_texts(language_model, TEXTS[1:3]))
    assert metrics["pseudo_perplexity"] == pytest.approx(expected["perplexity"]) and "perplexity" not in metrics


def test_text_classification_agrees_with_the_pipeline(tokenizers, tmp_path):
    names = {0: "no", 1: "yes"}
    config = tiny_config("encoder", vocab_size=512, id2label=names, label2id={v: k for k, v in names.items()})
    model = redraw(LLMEncoderForSequenceClassification(config), std=0.5).eval()
    path = save(tmp_path / "model", model, tokenizers["encoder"])
    labels = ["yes", "no", "yes", "yes"]
    data = write(tmp_path / "data.jsonl", [{"sentence": t, "label": y} for t, y in zip(TEXTS, labels)])
    spec = f"{{name: {data}, splits: {{validation: {data}}}}}"
    settings = ("model", path, "data", spec, "columns", "{text: sentence}", "task", "text-classification")
    metrics = evaluate(config_of(*settings))["metrics"]
    # tokens beyond the model's positions are cut by neither here: the texts are short
    found = [answer["label"] for answer in pipeline("text-classification", path)(TEXTS)]
    assert metrics["accuracy"] == sum(f == y for f, y in zip(found, labels)) / 4
    assert set(metrics) == {"accuracy", "f1", "matthews_correlation"}

    wrong = write(tmp_path / "wrong.jsonl", [{"sentence": t, "label": "maybe"} for t in TEXTS])
    spec = f"{{name: {wrong}, splits: {{validation: {wrong}}}}}"
    with pytest.raises(ValueError, match="labels maybe are unknown to the model; it has no, yes"):
        evaluate(config_of(*settings, "data", spec))


def test_token_classification_scores_first_tokens_of_words(tokenizers, tmp_path):
    names = {0: "B-X", 1: "B-Y", 2: "B-Z"}
    config = tiny_config("encoder", vocab_size=512, id2label=names, label2id={v: k for k, v in names.items()})
    model = redraw(LLMEncoderForTokenClassification(config), std=0.5).eval()
    tokenizer = tokenizers["encoder"]
    path = save(tmp_path / "model", model, tokenizer)
    words = ["ab", "c", "de"]
    ids = tokenizer("".join(words), return_tensors="pt")
    with torch.no_grad():
        best = model(**ids).logits[0].argmax(-1)[[1, 3, 4]].tolist()
    rows = [{"words": words, "tags": [names[i] for i in best]}] * 2
    data = write(tmp_path / "data.jsonl", rows)
    spec = f"{{name: {data}, splits: {{validation: {data}}}}}"
    metrics = evaluate(config_of("model", path, "data", spec, "task", "token-classification"))["metrics"]
    assert metrics["overall_accuracy"] == 1.0

    rows[1] = {"words": words, "tags": [names[(best[0] + 1) % 3], *rows[0]["tags"][1:]]}  # one of six is wrong
    plain = [{**row, "tags": [tag[2:] for tag in row["tags"]]} for row in rows]
    model.config.id2label = {i: name[2:] for i, name in names.items()}
    model.config.label2id = {name[2:]: i for i, name in names.items()}
    model.save_pretrained(path)
    write(tmp_path / "data.jsonl", plain)
    metrics = evaluate(config_of("model", path, "data", spec, "task", "token-classification"))["metrics"]
    assert metrics["accuracy"] == pytest.approx(5 / 6) and set(metrics) == {"accuracy", "f1"}


def test_texts_that_are_cut_and_labels_that_the_model_lacks(tokenizers, tmp_path, caplog):
    config = tiny_config("encoder", vocab_size=512, num_labels=2)
    path = save(tmp_path / "model", LLMEncoderForSequenceClassification(config), tokenizers["encoder"])
    data = write(tmp_path / "data.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)])
    spec = f"{{name: {data}, splits: {{validation: {data}}}}}"
    evaluate(config_of("model", path, "data", spec, "task", "text-classification", "window", "8"))
    assert "3 of 4 validation examples (75.0 %) are longer than 8 tokens: cut." in caplog.text
    write(tmp_path / "data.jsonl", [{"text": text, "label": 2} for text in TEXTS])
    with pytest.raises(ValueError, match="label 2 is unknown to the model; it has 0 to 1"):
        evaluate(config_of("model", path, "data", spec, "task", "text-classification"))


TUNED = {
    "question_answering": lambda n: {
        "question": "who?",
        "context": "on some day " * (n % 9) + f"{NAMES[n % 3]} came",
        "answers": {"text": [NAMES[n % 3]][: n % 4], "answer_start": [12 * (n % 9)][: n % 4]},
    },
    "multiple_choice": lambda n: {"question": f"{n}?", "choices": ["a", f"b{n}", "c"], "label": n % 3},
}
NAMES = ("Ann Lee", "Bob", "Dora")


@pytest.mark.parametrize("task", TUNED)
def test_answers_and_choices_score_as_the_run_that_trained_them(task, language_models, tmp_path):
    """Windows, batches and the missing answer included."""
    language_model = language_models["encoder"]
    path = save(tmp_path / "model", language_model.model, language_model.tokenizer)
    data = write(tmp_path / "data.jsonl", [TUNED[task](n) for n in range(90)])
    training = {
        "max_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "learning_rate": 0.01,
    }
    settings = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": path},
        "task": {"name": task, "stride": 12} if task == "question_answering" else task,
        "data": {"dataset": data, "max_length": 48},
        "training": training,
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    Finetuning(Finetuning.load(tmp_path / "run.yaml")).run()
    expected = json.loads((tmp_path / "run" / "metrics.json").read_text())
    words = ("model", str(tmp_path / "run"), "data", data, "split", "test", "task", task.replace("_", "-"))
    metrics = evaluate(config_of(*words, "window", "48", "batch_size", "3"))["metrics"]
    assert metrics == pytest.approx({name: expected[name] for name in metrics})
    assert ("f1_unanswerable" in metrics) == (task == "question_answering")


@pytest.mark.parametrize("stack", ["decoder", "encoder-decoder"])
def test_generation_is_batched_without_change(language_models, tmp_path, stack):
    language_model = language_models[stack]
    path = save(tmp_path / "model", language_model.model, language_model.tokenizer)
    expected = []
    for text in TEXTS[1:3]:
        ids = language_model.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        output = language_model.model.generate(**ids, max_new_tokens=8, do_sample=False)[0]
        start = ids["input_ids"].shape[1] if stack == "decoder" else 0
        expected.append(language_model.tokenizer.decode(output[start:], skip_special_tokens=True).strip())
    rows = [{"source": s, "target": t} for s, t in zip(TEXTS[1:3], expected)]
    data = write(tmp_path / "data.jsonl", rows)
    spec = f"{{name: {data}, splits: {{validation: {data}}}}}"
    settings = ("model", path, "data", spec, "task", "generation", "max_new_tokens", "8", "batch_size", "2")
    assert evaluate(config_of(*settings))["metrics"]["exact_match"] == 1.0


@pytest.mark.parametrize(
    "words, message",
    [
        (("modle", "x"), "unknown key 'modle'; did you mean 'model'"),
        (("model", "x"), "data is missing"),
        (("model", "x", "data", "y", "task", "perplexty"), "did you mean 'perplexity'"),
        (("model", "x", "data", "y", "batch_size", "0"), "batch_size = 0: must be at least 1"),
        (("model", "x", "data", "y", "dtype", "half-ish"), "dtype = 'half-ish' is no dtype"),
    ],
)
def test_bad_settings(words, message):
    with pytest.raises(ValueError, match=message):
        config_of(*words)


def test_bad_models_and_data(decoder, tokenizers, tmp_path):
    LLMDecoderConfig(**tiny_config("decoder").to_dict()).save_pretrained(tmp_path / "bare")
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    common = ("data", data, "split", "train", "held_out_fraction", "0")
    with pytest.raises(ValueError, match="cannot be opened"):
        evaluate(config_of("model", str(tmp_path / "bare"), *common))
    labelled = ("data", f"{{name: {data}}}", "split", "train")
    with pytest.raises(ValueError, match=r"columns \['source', 'target'\] not found"):
        evaluate(config_of("model", decoder, *labelled, "task", "generation"))
    headless = LLMEncoderForSequenceClassification(tiny_config("encoder", vocab_size=512, tie_word_embeddings=False))
    path = save(tmp_path / "headless", headless, tokenizers["encoder"])
    with pytest.raises(ValueError, match="has no trained head ForMaskedLM: lm_head"):
        evaluate(config_of("model", path, *common))
    with pytest.raises(ValueError, match="has no trained head ForSequenceClassification: score"):
        evaluate(config_of("model", decoder, *labelled, "task", "text-classification"))


def test_all_rows_of_a_file_are_scored(decoder, tmp_path):
    """Unless a split is named; how many they were is in the result."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"def function_{i}(x): return {i}"}) + "\n" for i in range(40)))
    assert evaluate(config_of("model", decoder, "data", str(path)))["rows"] == 40
    assert evaluate(config_of("model", decoder, "data", f"{{name: {path}}}"))["rows"] == 40
    held_out = evaluate(config_of("model", decoder, "data", str(path), "split", "validation"))["rows"]
    assert 0 < held_out < 15
