"""`hf-llm predict`, `chat` and `merge` on command lines, as users write them."""

import csv
import gzip
import io
import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from tuning.small_models import save_checkpoint, sentences, small_tokenizer

from hf_llm.use import open_model
from hf_llm.use.chatting import chat
from hf_llm.use.tasks import Options
from hf_llm_cli import main


TEXTS = sentences(70)
HEADS = {
    "classify": (AutoModelForSequenceClassification, {"id2label": {0: "bad", 1: "fair", 2: "good"}}),
    "tag": (AutoModelForTokenClassification, {"id2label": {0: "O", 1: "B-ANIMAL", 2: "I-ANIMAL"}}),
    "answer": (AutoModelForQuestionAnswering, {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random checkpoints, by what they are for."""
    folder = tmp_path_factory.mktemp("models")
    for name, stack in (("chat", "decoder"), ("fill", "encoder"), ("translate", "encoder-decoder")):
        save_checkpoint(folder / name, stack)
    bare = AutoTokenizer.from_pretrained(folder / "chat")
    save_checkpoint(folder / "complete", "decoder")
    bare.chat_template = None
    (folder / "complete" / "chat_template.jinja").unlink()
    bare.save_pretrained(folder / "complete")
    for name, (auto_class, fields) in HEADS.items():
        model = auto_class.from_pretrained(folder / "fill", **fields)
        with torch.no_grad():  # as if it were trained: labels differ from text to text
            for parameter in model.parameters():
                parameter.mul_(3.0)
        model.save_pretrained(folder / name)
        small_tokenizer("encoder").save_pretrained(folder / name)
    return folder


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def run(capsys, *words) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys, *words) -> str:
    with pytest.raises(SystemExit) as status:
        main([str(word) for word in words])
    assert status.value.code == 2
    return capsys.readouterr().err


def test_classify_a_csv(models, tmp_path, capsys):
    """Every column of the input stays; labels and scores are those of each text by itself, in order."""
    source, output = tmp_path / "reviews.csv", tmp_path / "out.csv"
    with open(source, "w", newline="") as file:
        csv.writer(file).writerows([["id", "review"], *([i, text] for i, text in enumerate(TEXTS))])
    said = run(capsys, "predict", models / "classify", source, "-o", output, "--columns", "text=review")
    assert "70 predictions" in said
    with open(output, newline="") as file:
        found = list(csv.DictReader(file))
    alone = pipeline("text-classification", model=str(models / "classify"))
    assert [row["id"] for row in found] == [str(i) for i in range(70)]
    assert len({row["prediction"] for row in found}) > 1
    for row, text in zip(found, TEXTS, strict=True):
        (best,) = alone(text)
        assert (row["review"], row["prediction"]) == (text, best["label"])
        assert float(row["score"]) == pytest.approx(best["score"], abs=1e-5)
        assert sum(json.loads(row["scores"]).values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("task", ["complete", "translate"])
def test_generation_is_that_of_each_text_alone(task, models, lines, tmp_path, capsys):
    """Batches sorted by length and padded give what `generate` gives for each text."""
    output = tmp_path / "out.txt"
    options = ["--max-new-tokens", "6", "--batch-size", "4", "-o", output]
    run(capsys, "predict", models / task, lines, *options)
    model = open_model(str(models / task), options=Options(max_new_tokens=6))
    alone = [model([{"text": text}])[0]["prediction"].replace("\n", " ") for text in TEXTS]
    assert output.read_text() == "".join(f"{text}\n" for text in alone)


def test_fill_tag_answer_and_embed(models, lines, tmp_path, capsys):
    masked = tmp_path / "masked.jsonl.gz"
    with gzip.open(masked, "wt") as file:
        file.writelines(json.dumps({"text": f"[MASK] {text} [MASK]"}) + "\n" for text in TEXTS[:9])
    run(capsys, "predict", models / "fill", masked, "-o", tmp_path / "filled.jsonl", "--top-k", "3")
    for row in jsonl(tmp_path / "filled.jsonl"):
        first, last = (candidates[0]["token"].strip() for candidates in row["candidates"])
        assert row["prediction"] == row["text"].replace("[MASK]", first, 1)[: -len("[MASK]")] + last
        assert [len(candidates) for candidates in row["candidates"]] == [3, 3]

    run(capsys, "predict", models / "tag", lines, "-o", tmp_path / "tags.jsonl")
    found = jsonl(tmp_path / "tags.jsonl")
    assert any(row["prediction"] for row in found)
    for row in found:
        for span in row["prediction"]:
            assert row["text"][span["start"] : span["end"]].strip() == span["text"] and span["label"] == "ANIMAL"

    asked = tmp_path / "asked.tsv"
    asked.write_text("question\tcontext\n" + "".join(f"who runs\t{text} . " * 1 + "\n" for text in TEXTS[:9]))
    run(capsys, "predict", models / "answer", asked, "-o", tmp_path / "answers.tsv")
    with open(tmp_path / "answers.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            assert row["prediction"] and row["prediction"] in row["context"] and 0 < float(row["score"]) <= 1

    run(capsys, "predict", models / "fill", lines, "--task", "embed", "-o", tmp_path / "vectors.jsonl")
    vectors = [row["prediction"] for row in jsonl(tmp_path / "vectors.jsonl")]
    assert len(vectors) == 70 and len(vectors[0]) == 32 and vectors[0] != vectors[1]


def test_chats_by_file_and_in_the_terminal(models, tmp_path, capsys):
    talks = tmp_path / "talks.jsonl"
    messages = [{"role": "user", "content": "red cat"}]
    talks.write_text(json.dumps({"messages": messages}) + "\n")
    run(capsys, "predict", models / "chat", talks, "-o", tmp_path / "out.jsonl", "--max-new-tokens", "5")
    (row,) = jsonl(tmp_path / "out.jsonl")
    model = open_model(str(models / "chat"), options=Options(max_new_tokens=5))
    words = iter(["red cat", "/new", "red cat", "blue dog", "/exit"])
    talked = chat(model, lambda prompt: next(words))
    assert [m["role"] for m in talked] == ["user", "assistant", "user", "assistant"]
    assert talked[1]["content"] == row["prediction"]
    assert "/exit" in capsys.readouterr().out
    assert "no chat template" in refused(capsys, "chat", models / "complete")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_an_interrupted_file_goes_on(suffix, models, tmp_path, capsys, monkeypatch):
    source, output = tmp_path / "texts.jsonl", tmp_path / f"out{suffix}"
    source.write_text("".join(json.dumps({"text": text + "\nmore"}) + "\n" for text in TEXTS))
    words = ["predict", models / "classify", source, "--batch-size", "1", "-o", output]
    run(capsys, *words)
    whole = output.read_text()
    torn = whole[: len(whole) * 2 // 3]
    output.write_text(torn)
    assert "70 predictions" not in run(capsys, *words, "--resume")
    resumed = output.read_text()
    assert resumed.count("\n") == whole.count("\n") and resumed.startswith(torn[: torn.rfind("\n")])


def test_standard_input(models, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('red cat\n{"text": "blue dog"}\n'))
    found = [json.loads(line) for line in run(capsys, "predict", models / "classify", "-").splitlines()]
    assert [row["text"] for row in found] == ["red cat", "blue dog"] and all(row["prediction"] for row in found)


def test_mistakes(models, lines, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b\nx,y\n")
    for words, message in (
        (["predict", tmp_path / "nowhere", lines], "is no checkpoint that can be opened"),
        (["predict", models / "classify", "nowhere.txt"], "no such file"),
        (["predict", models / "classify", pairs], "no column 'text'; it has a, b"),
        (["predict", models / "classify", lines, "-o", "out.xml"], "-o out.xml: the suffix must be one of .jsonl"),
        (["predict", models / "classify", lines, "--task", "clasify"], "did you mean 'classify'?"),
        (["predict", models / "classify", lines, "--task", "complete"], "has no head for this task"),
        (["predict", models / "classify", lines, "--resume"], "--resume needs -o"),
        (["predict", models / "fill", lines], "nothing to fill in: no [MASK]"),
        (["merge", models / "chat", tmp_path / "dst"], "is no PEFT adapter"),
        (["check", models / "nowhere"], "nowhere"),
    ):
        assert message in refused(capsys, *words)


def test_an_adapter_is_used_and_merged(models, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(models / "chat")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(models / "chat").save_pretrained(tmp_path / "adapter")
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path / "adapter")])
    assert "`hf-llm merge ADAPTER DST`" in capsys.readouterr().out
    run(capsys, "merge", tmp_path / "adapter", tmp_path / "merged")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits, expected)
        opened = open_model(str(tmp_path / "adapter"))
        torch.testing.assert_close(opened.model(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
