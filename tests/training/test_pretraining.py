"""Whole runs, in this process: what they leave behind, resumption to the bit, bad input."""

import json
import math
import re
import signal

import pytest
import torch
from processes import LENGTH, make_model, rows
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    ByT5Tokenizer,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from hf_llm.manifest import defect
from hf_llm.training import checkpoints
from hf_llm.training.arguments import PretrainingArguments
from hf_llm.training.callbacks import StopOnSignal
from hf_llm.training.checkpoints import CheckpointError
from hf_llm.training.pretraining import Pretraining, pretrain
from hf_llm.training.saving import TrainingDiverged
from hf_llm.training.trainer import PretrainTrainer
from hf_llm.tuning.finetuning import FinetuneTrainer


AUTO = {"decoder": AutoModelForCausalLM, "encoder": AutoModelForMaskedLM, "encoder-decoder": AutoModelForSeq2SeqLM}


def weights(folder):
    return load_file(folder / "model.safetensors")


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


pytestmark = pytest.mark.usefixtures("no_plots")


def stop_at(monkeypatch, step):
    """SIGTERM arrives during the given step."""
    original = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            self._note(signal.SIGTERM, None)
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


@pytest.mark.parametrize("stack", AUTO)
def test_a_run_leaves_an_open_model_and_a_report(stack, settings, tmp_path, card_template):
    assert pretrain(Pretraining.from_dict(settings(stack)), card_template) is None
    run = tmp_path / "run"

    model, tokenizer = AUTO[stack].from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert model.config.vocab_size >= len(tokenizer)
    assert stack == "encoder" or model.config.use_cache
    assert same_weights(weights(run), weights(run / "checkpoint-6"))

    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["step"] == 6 and metrics["tokens"] > 6 * 4 * 40
    assert metrics["eval_perplexity"] == pytest.approx(2.718281828 ** metrics["eval_loss"], rel=1e-3)
    assert 0 < metrics["eval_bits_per_byte"] < 16

    card = (run / "README.md").read_text(encoding="utf-8")
    assert f"{metrics['eval_loss']:.4f}" in card and AUTO[stack].__name__ in card and "model-index" in card
    assert "Prompt" in (run / "samples.md").read_text(encoding="utf-8")
    assert not list(run.glob(".saving-*")) and not list(run.rglob("training_args.bin"))
    assert [c.name for c in checkpoints.list_checkpoints(run)] == ["checkpoint-4", "checkpoint-6"]


def test_samples_while_training(settings, tmp_path, card_template, monkeypatch):
    """At each evaluation, in TensorBoard and on the card; the weights are those of a run without, also resumed."""
    runs = {}
    for name, shown in (("without", False), ("with", True)):
        plan = settings(report_to="tensorboard") | {"output_dir": str(tmp_path / name)}
        runs[name] = Pretraining.from_dict(plan | {"samples_while_training": shown})
    pretrain(runs["without"])
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert pretrain(runs["with"], card_template) == signal.SIGTERM
    assert pretrain(runs["with"], card_template) is None
    folder = tmp_path / "with"
    assert same_weights(weights(folder), weights(tmp_path / "without"))
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text(encoding="utf-8"))
    drawn = {entry["step"]: entry["samples"] for entry in state["log_history"] if "samples" in entry}
    evaluated = [entry["step"] for entry in state["log_history"] if "eval_loss" in entry]
    assert list(drawn) == evaluated and drawn[6][0][0] == "def "
    card = (folder / "README.md").read_text(encoding="utf-8")
    table = card.split("## Samples while training")[1].split("##")[0]
    assert [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ") and "def" in row] == [
        str(step) for step in drawn
    ]
    logs = EventAccumulator(str(next((folder / "runs").iterdir()))).Reload()
    assert any("samples" in tag for tag in logs.Tags()["tensors"])


@pytest.mark.parametrize(("stack", "streaming"), [("decoder", False), ("encoder", True), ("encoder-decoder", False)])
def test_a_tokenizer_in_python(stack, streaming, settings, tmp_path):
    """ByT5's, whose tokens are bytes: from texts to samples."""
    ByT5Tokenizer(mask_token="[MASK]").save_pretrained(tmp_path / "byt5")
    plan = settings(stack, max_steps=1)
    plan["tokenizer"] = {"path": str(tmp_path / "byt5")}
    plan["data"]["streaming"] = streaming
    plan["objective"] |= {"whole_word": True} if stack == "encoder" else {}
    pretrain(Pretraining.from_dict(plan))
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "run"), ByT5Tokenizer)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    bits = metrics["eval_loss"] / math.log(2)
    assert 0.9 * bits < metrics["eval_bits_per_byte"] < 2 * bits  # a token is a byte, or a special token
    assert "Prompt" in (tmp_path / "run" / "samples.md").read_text(encoding="utf-8")


def test_evaluation_does_not_depend_on_its_batches(settings, tmp_path):
    """7 rows in batches of 8, and of 3."""
    losses = []
    for size in (8, 3):
        plan = settings(per_device_eval_batch_size=size, max_steps=2)
        plan["data"]["validation_rows"], plan["output_dir"] = 7, str(tmp_path / str(size))
        pretrain(Pretraining.from_dict(plan))
        losses.append(json.loads((tmp_path / f"{size}/metrics.json").read_text())["eval_loss"])
    assert 1 < losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_evaluation_without_targets_is_refused(settings, tmp_path):
    row = {**rows("decoder")[0], "num_bytes": torch.tensor(1)}
    args = PretrainingArguments(
        output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none", eval_strategy="no"
    )
    parts = {"data_collator": default_data_collator, "row_length": LENGTH}
    trainer = PretrainTrainer(model=make_model("decoder"), args=args, **parts)
    with pytest.raises(ValueError, match="the eval data has no rows"):
        trainer.evaluate(torch.utils.data.Subset([row], []))
    with pytest.raises(ValueError, match="the 1 rows of the test data have no targets"):
        row["labels"] = torch.full((LENGTH,), -100)
        trainer.evaluate([row], metric_key_prefix="test")


class ReadsOfSteps(TorchDispatchMode, TrainerCallback):
    """How often each step reads a number from a tensor, beside the forward and backward passes."""

    def __init__(self):
        super().__init__()
        self.steps, self.counts = [0], True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.counts and function is torch.ops.aten._local_scalar_dense.default:
            self.steps[-1] += 1
        return function(*args, **(kwargs or {}))

    def on_step_begin(self, *args, **kwargs):
        self.steps.append(0)


@pytest.mark.parametrize("trainer_class", [PretrainTrainer, FinetuneTrainer])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_wait_for_the_accelerator_no_more_than_trainers(trainer_class, optimizer, tmp_path):
    reads = {}
    for cls in (Trainer, trainer_class):
        args = PretrainingArguments(
            output_dir=str(tmp_path), max_steps=4, logging_steps=2, optimizer=optimizer, use_cpu=True,
            report_to="none", eval_strategy="no", save_strategy="no", disable_tqdm=True,
            per_device_train_batch_size=2, logging_nan_inf_filter=False,
        )  # fmt: skip
        own = {"row_length": LENGTH} if cls is PretrainTrainer else {}
        data = [{**row, "document_ids": torch.zeros(LENGTH, dtype=torch.long)} for row in rows("decoder")]
        model, counter = make_model("decoder"), ReadsOfSteps()
        trainer = cls(model=model, args=args, train_dataset=data, data_collator=default_data_collator, **own)
        step = trainer.training_step

        def uncounted(*args, step=step, counter=counter, **kwargs):
            counter.counts = False
            loss = step(*args, **kwargs)
            counter.counts = True
            return loss

        trainer.training_step = uncounted
        trainer.add_callback(counter)
        trainer.add_callback(StopOnSignal())
        with counter:
            trainer.train()
        reads[cls] = counter.steps[1:]
    assert reads[Trainer][0] == 0 < reads[Trainer][1]
    assert reads[trainer_class] == reads[Trainer]
    if trainer_class is PretrainTrainer:
        assert [e["tokens"] for e in trainer.state.log_history if "tokens" in e] == [4 * LENGTH, 8 * LENGTH]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_stopped_run_goes_on_to_the_same_weights(optimizer, streaming, settings, tmp_path, monkeypatch):
    plan = settings(optimizer=optimizer, schedule="wsd")
    plan["data"]["streaming"] = streaming
    assert pretrain(Pretraining.from_dict({**plan, "output_dir": str(tmp_path / "whole")})) is None

    with monkeypatch.context() as context:
        stop_at(context, 3)  # between two regular saves
        assert pretrain(Pretraining.from_dict(plan)) == signal.SIGTERM
    assert checkpoints.last_good_checkpoint(tmp_path / "run").name == "checkpoint-3"
    assert pretrain(Pretraining.from_dict(plan)) is None
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_how_often_a_run_evaluates_and_saves_does_not_change_it(settings, tmp_path):
    pretrain(Pretraining.from_dict({**settings(), "output_dir": str(tmp_path / "often")}))
    rarely = settings(save_steps=100, eval_steps=100)
    pretrain(Pretraining.from_dict({**rarely, "output_dir": str(tmp_path / "rarely")}))
    assert same_weights(weights(tmp_path / "often"), weights(tmp_path / "rarely"))


def test_accumulation_gives_the_gradients_of_one_large_batch(settings, tmp_path):
    """Rows hold different numbers of targets, so this fails when micro-batches are simply averaged."""
    for name, size in (("large", 4), ("small", 1)):
        plan = settings("encoder", per_device_train_batch_size=size, gradient_accumulation_steps=4 // size)
        plan["training"] |= {"max_steps": 2, "optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        plan["model"]["residual_dropout"] = 0.0
        pretrain(Pretraining.from_dict({**plan, "output_dir": str(tmp_path / name)}))
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    for name in large:
        torch.testing.assert_close(large[name], small[name], rtol=1e-4, atol=1e-6)


def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(settings, tmp_path, caplog):
    plan = settings()
    pretrain(Pretraining.from_dict(plan))
    whole = weights(tmp_path / "run")
    torn = tmp_path / "run" / "checkpoint-6" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-10])
    pretrain(Pretraining.from_dict(plan))
    assert "torn checkpoint" in caplog.text and "checkpoint-6" in caplog.text and "optimizer.pt" in caplog.text
    assert "resuming from" in caplog.text and "checkpoint-4" in caplog.text
    assert same_weights(whole, weights(tmp_path / "run"))
    assert defect(tmp_path / "run" / "checkpoint-6") is None


def test_a_full_disk_is_reported_and_the_earlier_checkpoint_survives(settings, tmp_path, monkeypatch):
    original = PretrainTrainer._save_optimizer_and_scheduler

    def save(self, output_dir):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        original(self, output_dir)

    monkeypatch.setattr(PretrainTrainer, "_save_optimizer_and_scheduler", save)
    with pytest.raises(CheckpointError, match=r"checkpoint-4.*No space left.*last good checkpoint is .*checkpoint-2"):
        pretrain(Pretraining.from_dict(settings()))
    assert [c.name for c in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert defect(tmp_path / "run" / "checkpoint-2") is None
    assert not list((tmp_path / "run").glob(".saving-*"))


def test_a_diverging_run_stops_and_names_the_last_good_checkpoint(settings, tmp_path, monkeypatch):
    original = PretrainTrainer.compute_loss

    def compute_loss(self, model, inputs, **kwargs):
        loss = original(self, model, inputs, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(PretrainTrainer, "compute_loss", compute_loss)
    with pytest.raises(TrainingDiverged, match=r"not finite at step 4 .*last good checkpoint is .*checkpoint-2"):
        pretrain(Pretraining.from_dict(settings(logging_steps=100)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.vocab_size", 300, r"vocab_size=300: the tokenizer has ids up to"),
        ("model.num_attention_heads", 3, r"model: .*num_attention_heads"),
        ("training.per_device_train_batch_size", 4000, r"batch_size=8000: the corpus fills only"),
        ("training.global_batch_size", 3, r"training.global_batch_size = 3 is not a multiple of 2"),
        ("training.optimizer", "adam", r"training.optimizer = 'adam' is unknown; legal: adamw, muon, sgd"),
        ("training.warmup_steps", 7, r"training.warmup_steps = 7 is more than training.max_steps = 6"),
        ("data.corpus", "/nowhere/*.txt", r"/nowhere"),
        ("objective.name", "masked_lm", r"cannot train stack='decoder'"),
        ("objective.name", "cuasal", r"objective='cuasal': must be one of"),
        ("resume", "/nowhere", r"resume = '/nowhere' is neither"),
    ],
)
def test_bad_input_is_refused_before_training(key, value, message, settings):
    plan = settings()
    section, _, name = key.rpartition(".")
    (plan[section] if section else plan)[name] = value
    with pytest.raises(ValueError, match=message):
        pretrain(Pretraining.from_dict(plan))


def test_rows_longer_than_learned_positions_are_refused(settings):
    plan = settings()
    plan["model"] |= {"position_embedding": "learned", "max_position_embeddings": 32}
    with pytest.raises(ValueError, match="data.row_length = 48 is longer than model.max_position_embeddings = 32"):
        pretrain(Pretraining.from_dict(plan))


def test_supervised_pairs_train_an_encoder_decoder(settings, tmp_path):
    pairs = [{"source": f"add {i} and {i % 7}", "target": f"the sum is {i + i % 7}"} for i in range(300)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    plan = settings("encoder-decoder", max_steps=2)
    plan["data"] |= {"corpus": str(tmp_path / "pairs.jsonl"), "target_row_length": 40}
    plan["objective"] = {"name": "supervised"}
    assert pretrain(Pretraining.from_dict(plan)) is None
    short = {"position_embedding": "learned", "max_position_embeddings": 39}
    plan["model"]["decoder"] = {**plan["model"]["decoder"], **short}
    plan["output_dir"] = str(tmp_path / "other")
    with pytest.raises(ValueError, match="data.target_row_length = 40 is longer than model.decoder.max_position"):
        pretrain(Pretraining.from_dict(plan))


def test_an_empty_corpus_is_refused(settings, tmp_path):
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    plan = settings()
    plan["data"]["corpus"] = str(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="empty"):
        pretrain(Pretraining.from_dict(plan))


def test_a_checkpoint_of_another_architecture_or_run_is_refused(settings, tmp_path):
    pretrain(Pretraining.from_dict(settings(max_steps=2)))
    other = settings(max_steps=4)
    other["model"]["intermediate_size"] = 96
    with pytest.raises(ValueError, match="another run: model.intermediate_size is 64 there and 96 here"):
        pretrain(Pretraining.from_dict(other))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="another run: tokenizer.vocab_size is 480 there and 500 here"):
        pretrain(Pretraining.from_dict({**settings(), "tokenizer": {"vocab_size": 500}}))
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="another run: seed is 0 there and 1 here"):
        pretrain(Pretraining.from_dict({**settings(), "seed": 1}))
    with pytest.raises(ValueError, match="resume = 'never', but output_dir = .* has checkpoint-2"):
        pretrain(Pretraining.from_dict({**settings(), "resume": "never"}))


@pytest.mark.parametrize(
    ("stack", "name"),
    [("decoder", "tokenizer.path"), ("decoder", "model.path"), ("encoder", "from_decoder.path")],
)
def test_a_path_without_a_checkpoint_is_one_clear_error(stack, name, settings, tmp_path, monkeypatch):
    def not_on_the_hub(path):
        raise OSError("no such repository")

    monkeypatch.setattr("hf_llm.training.pretraining.load_decoder", not_on_the_hub)
    plan, path = settings(stack), str(tmp_path / "nowhere")
    section, _, field = name.partition(".")
    plan[section] = {field: path}
    if section == "model":
        del plan["tokenizer"]
    if section == "from_decoder":
        plan |= {"model": {"model_type": "hf_llm_encoder"}, "tokenizer": {}}
    with pytest.raises(ValueError, match=f"{name} = '.*nowhere' cannot be opened"):
        pretrain(Pretraining.from_dict(plan))


def test_a_stream_has_no_epochs(settings):
    plan = settings(num_train_epochs=1)
    del plan["training"]["max_steps"]
    with pytest.raises(ValueError, match="training.max_steps or training.num_train_epochs is missing"):
        pretrain(Pretraining.from_dict({**plan, "training": {}}))
    plan["data"]["streaming"] = True
    with pytest.raises(ValueError, match="data.streaming = True needs training.max_steps"):
        pretrain(Pretraining.from_dict(plan))


def test_epochs_become_steps(settings, tmp_path, card_template):
    plan = settings(num_train_epochs=0.1)
    del plan["training"]["max_steps"]
    pretrain(Pretraining.from_dict(plan), card_template)
    steps = json.loads((tmp_path / "run" / "metrics.json").read_text())["step"]
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    rows = int(next(line for line in card.splitlines() if line.startswith("| rows |")).split("|")[2].replace(",", ""))
    assert steps == math.ceil(0.1 * rows / 4)


def test_embeddings_start_from_word_vectors(settings, tmp_path, capsys):
    """A word of the file that is a token; the run says how many there were."""
    plan = settings(max_steps=1)
    width = plan["model"]["hidden_size"]
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{word} {' '.join(['0.5'] * width)}\n" for word in ("the", "a", "zzzz")))
    pretrain(Pretraining.from_dict(plan | {"word_vectors": str(vectors)}))
    assert f"tokens start from {vectors}" in capsys.readouterr().out


def test_a_run_shorter_than_the_logging_interval_counts_all_its_tokens(settings, tmp_path):
    pretrain(Pretraining.from_dict(settings(max_steps=3, logging_steps=10)))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["step"] == 3
    assert 0 < metrics["tokens"] <= 3 * 4 * 48


def test_own_files(settings, tmp_path, card_template):
    """One text file to train on, another to validate on, a third beside it: the card tells what was read."""
    texts = {name: "\n\n".join(f"{name} {i} is a paragraph" for i in range(200)) for name in ("one", "two", "three")}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    plan = settings(max_steps=2)
    corpus = [str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]
    plan["data"] |= {"corpus": corpus, "held_out_fraction": 0, "validation": str(tmp_path / "three.txt")}
    plan["data"]["split_documents"] = {"by": "blank_lines"}
    run = Pretraining(Pretraining.from_dict(plan), card_template)
    run.run()
    assert run.corpus_report["documents"] == 400 and run.validation_report["documents"] == 200
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "The validation set is one of its own" in card and "three.txt" in card
    assert re.search(r"one\.txt\s*\|\s*200 \|", card), card
    plan["data"]["validation"] = None
    with pytest.raises(ValueError, match="data.held_out_fraction = 0 leaves nothing to .*data.validation"):
        Pretraining.from_dict(plan)
