"""Translation and summarisation: encoder-decoders and decoders, from nothing and from checkpoints."""

import json
from pathlib import Path

import datasets
import pytest
import sacrebleu
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.trainer_pt_utils import LabelSmoother

from hf_llm.tuning.pairs import PairCollator, PairsData, encode_pairs
from hf_llm.tuning.seq2seq import BASELINES, Seq2Seq, Seq2SeqArguments, Seq2SeqTuner

from .small_models import SHORT_TRAINING, save_checkpoint, sentences, small_tokenizer, write_config, write_jsonl


CONFIGS = sorted(Path(__file__).parents[2].glob("recipes/configs/seq2seq-*.yaml"))
STACK = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def train(config, template: Path | None = None):
    return Seq2Seq(config, template).run()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    """A file of sentences and the same backwards."""
    rows = [{"said": s, "backwards": " ".join(reversed(s.split())), "other": 1} for s in sentences(120)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {s: str(save_checkpoint(folder / s, s)) for s in ("decoder", "encoder", "encoder-decoder")}


@pytest.fixture
def settings(tmp_path, pairs):
    """Makes the configuration of a tiny run: of a new encoder-decoder, unless `model` says otherwise."""

    def make(**changes):
        new = {"model_type": "hf_llm_encoder_decoder", "encoder": STACK, "decoder": STACK}
        sections = {
            "output_dir": str(tmp_path / "run"),
            "model": {"new": new},
            "tokenizer": {"algorithm": "bpe", "vocab_size": 400},
            "data": {"dataset": pairs, "source": "said", "target": "backwards", "max_target_length": 16},
            "training": SHORT_TRAINING,
        }
        if "model" in changes:
            del sections["model"]
        return Seq2Seq.load(write_config(tmp_path / "run.yaml", sections, changes))

    return make


def predictions_of(config) -> list[dict]:
    return [json.loads(line) for line in Path(config.output_dir, "predictions.jsonl").read_text().splitlines()]


def greedy(model, tokenizer, text: str, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        return model.generate(**ids, do_sample=False, num_beams=1, **kwargs)[0]


def test_new_encoder_decoder_from_texts_to_card(settings, pairs):
    """The figures are sacrebleu's on the stored predictions, which the saved model gives again, one by one."""
    config = settings()
    assert train(config, Path("model_cards/template.md").resolve()) is None
    rows, run = predictions_of(config), Path(config.output_dir)
    known = {row["said"]: row["backwards"] for row in map(json.loads, Path(pairs).read_text().splitlines())}
    assert rows and all(known[row["source"]] == row["reference"] for row in rows)
    metrics = json.loads((run / "metrics.json").read_text())
    texts, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    assert set(metrics["baselines"]["nearest neighbour"]) == {"bleu", "chrf"}
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    for row in rows[:4]:
        again = tokenizer.decode(greedy(model, tokenizer, row["source"]), skip_special_tokens=True).strip()
        assert again == row["prediction"]
    card = (run / "README.md").read_text()
    assert "A new model of" in card and "nearest neighbour" in card and "tok:13a" in card


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(settings, tmp_path):
    whole, torn = settings(output_dir=str(tmp_path / "whole")), settings(output_dir=str(tmp_path / "torn"))
    for config in (whole, torn):
        train(config)
    run = Path(torn.output_dir)
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    (run / "model.safetensors").unlink()
    train(torn)
    first, second = (load_file(Path(c.output_dir, "model.safetensors")) for c in (whole, torn))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_decoder_goes_on_from_a_prompt(settings, checkpoints):
    """Predictions of padded batches are those of single prompts, and the loss is the plain one over completions."""
    config = settings(model={"path": checkpoints["decoder"]}, task={"name": "summarization"})
    train(config)
    rows, run = predictions_of(config), Path(config.output_dir)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["source"] + "\n")["input_ids"]
        target = tokenizer(row["reference"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum").item()
        count += len(target)
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"rouge1", "rouge2", "rougeL"} < set(metrics)
    assert metrics["loss"] == pytest.approx(total / count, abs=1e-4)
    for row in rows[:4]:
        prompt = row["source"] + "\n"
        output = greedy(model, tokenizer, prompt)[len(tokenizer(prompt)["input_ids"]) :]
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == row["prediction"]


def test_label_smoothing_is_that_of_transformers(settings, checkpoints):
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints["encoder-decoder"]).train()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["encoder-decoder"])
    args = Seq2SeqArguments(report_to="none", use_cpu=True, label_smoothing_factor=0.1)
    trainer = Seq2SeqTuner(model=model, args=args, processing_class=tokenizer, metrics=[])
    batch = tokenizer(sentences(6), text_target=sentences(6, seed=1), padding=True, return_tensors="pt")
    batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
    logits = model.eval()(**batch).logits
    expected = LabelSmoother(epsilon=0.1)({"logits": logits}, batch["labels"])
    model.train()
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected, rtol=0, atol=1e-5)


def test_evaluation_keeps_the_order(checkpoints):
    """Also where training groups by length, as transformers' own Trainer does not: predictions belong by place."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["encoder-decoder"])
    args = Seq2SeqArguments(
        report_to="none", use_cpu=True, train_sampling_strategy="group_by_length", remove_unused_columns=False
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints["encoder-decoder"])
    trainer = Seq2SeqTuner(
        model=model,
        args=args,
        data_collator=PairCollator(tokenizer),
        processing_class=tokenizer,
        metrics=[],
    )
    texts = sentences(40)
    pairs = datasets.Dataset.from_dict({"source": texts, "target": texts})
    data = PairsData(source="source", target="target", max_source_length=64, max_target_length=64)
    encoded = encode_pairs(pairs, tokenizer, data, decoder=False)
    rows = [row for batch in trainer.get_eval_dataloader(encoded) for row in batch["input_ids"]]
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == texts


def test_what_is_cut_is_reported(settings, caplog):
    config = settings(data={"max_source_length": 4, "max_target_length": 3}, training={"max_steps": 1})
    train(config, Path("model_cards/template.md").resolve())
    assert "source texts of the train split are longer than data.max_source_length = 4" in caplog.text
    card = Path(config.output_dir, "README.md").read_text()
    assert "target texts of the test split are longer than data.max_target_length = 3 tokens and were cut" in card
    assert any(len(row["reference"].split()) > 3 for row in predictions_of(config))  # scored against whole references


@pytest.mark.parametrize("stack", ["decoder", "encoder-decoder"])
def test_encoding(stack):
    tokenizer = small_tokenizer(stack)
    pairs = datasets.Dataset.from_dict({"source": ["red cat", "dog"], "target": ["cat red", "dog dog dog"]})
    limits = {"max_source_length": 64, "max_target_length": 3}
    data = PairsData(source="source", target="target", prefix="say: ", separator=" =", **limits)
    encoded = encode_pairs(pairs, tokenizer, data, decoder=stack == "decoder", with_prompts=True)
    assert not any(encoded["source_is_cut"]) and encoded["target_is_cut"][1]
    batch = PairCollator(tokenizer)([encoded[0], encoded[1]])
    text = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
    labels = [[i for i in row if i != -100] for row in batch["labels"].tolist()]
    assert all(row[-1] == tokenizer.eos_token_id for row in labels)
    if stack == "encoder-decoder":
        assert text == ["say: red cat", "say: dog"]
    else:
        assert text[0].startswith("say: red cat =cat")
        prompts = batch["prompts"]
        assert prompts["attention_mask"][1, 0] == 0 and prompts["attention_mask"][:, -1].all()
        shown = [tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts["input_ids"]]
        assert shown == ["say: red cat =", "say: dog ="]


def test_baselines():
    train = datasets.Dataset.from_dict({"source": ["the red cat", "two dogs run"], "target": ["A", "B"]})
    assert BASELINES["nearest neighbour"](train, ["a red bird", "dogs"]) == ["A", "B"]
    assert BASELINES["copy of the source"](train, ["x"]) == ["x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, "either model.path.*or model.new"),
        ({"model": {"new": {"model_type": "hf_llm_encoder_decoder", "encodr": {}}}}, "encodr.*did you mean.*encoder"),
        ({"data": {"source": "text"}}, r"data.source = 'text' is no column.*\['said', 'backwards', 'other'\]"),
        ({"data": {"dataset": "verses"}}, "not a known name|cannot be read"),
        ({"data": {"max_target_length": 1}}, "data.max_target_length = 1: must be at least 2"),
        ({"task": {"name": "translate"}}, "task.name = 'translate' is unknown; did you mean 'translation'"),
        ({"task": {"metrics": ["blue"]}}, "task.metrics has 'blue'; did you mean 'bleu'"),
        ({"generation": {"num_beam": 4}}, "generation.num_beam.*did you mean 'num_beams'"),
        ({"generation": {"num_beams": 0}}, "generation.num_beams = 0: must be a whole number, at least 1"),
        ({"training": {"predict_with_generate": False}}, "training.predict_with_generate is not set here"),
        ({"peft": {"method": "lora"}}, "needs a model.path"),
        ({"tokenizer": {"vocab": 3}}, "unknown key 'tokenizer.vocab'"),
    ],
)
def test_bad_configurations(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings(**changes))


def test_bad_models(settings, checkpoints, tmp_path):
    learned = save_checkpoint(tmp_path / "learned", "encoder-decoder", position_embedding="learned")
    for changes, message in (
        ({"model": {"path": checkpoints["encoder"]}}, "has no head for AutoModelForCausalLM; it has"),
        ({"model": {"path": str(tmp_path)}}, "model"),
        (
            {"model": {"path": checkpoints["decoder"]}, "data": {"max_source_length": 2, "separator": " one two"}},
            "data.max_source_length = 2: data.separator and special tokens take",
        ),
        (
            {"model": {"path": str(learned)}, "data": {"max_source_length": 500}},
            "500 tokens are more than the model's 128",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(settings(**changes))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_run_two_steps(path, pairs, tmp_path):
    overrides = ["--output_dir", str(tmp_path), "--training.max_steps", "2", "--training.warmup_steps", "0"]
    overrides += ["--data.dataset", pairs, "--data.source", "said", "--data.target", "backwards"]
    overrides += ["--tokenizer.vocab_size", "400", "--data.max_target_length", "8", "--data.max_test_samples", "4"]
    overrides += ["--training.lr_scheduler_type", "constant", "--training.lr_scheduler_kwargs", "{}"]
    train(Seq2Seq.load(path, overrides))
    assert (tmp_path / "metrics.json").is_file()
