"""k micro-batches of b rows train as one batch of k x b: every objective and every head, through `Trainer`.

The rows hold different numbers of targets, so micro-batches that are simply averaged would show.
"""

import datasets
import peft
import pytest
import torch
from processes import EXPERTS, SIZES, VOCABULARY, make_model
from processes import rows as make_rows
from transformers import Trainer, TrainingArguments

import hf_llm
from hf_llm.data import OBJECTIVES, TrainingSamples, collate, load_corpus, make_objective, pack_corpus, train_tokenizer
from hf_llm.tuning.finetuning import FinetuneTrainer


HEADS = {
    "ForSequenceClassification": {"labels": "class"},
    "ForTokenClassification": {"labels": "tags"},
    "ForQuestionAnswering": {"start_positions": "place", "end_positions": "place"},
    "ForMultipleChoice": {"labels": "choice"},
}
STACKS = {"decoder": "LLMDecoder", "encoder": "LLMEncoder", "encoder_decoder": "LLMEncoderDecoder"}
ROWS, LENGTH, CLASSES, CHOICES = 8, 10, 3, 2
CASES = [
    (stack, head, problem)
    for stack in STACKS
    for head in HEADS
    if hasattr(hf_llm, STACKS[stack] + head)
    for problem in (
        ("single_label_classification", "multi_label_classification", "regression")
        if head == "ForSequenceClassification"
        else (None,)
    )
]


def gradients(
    model, rows: list[dict], size: int, tmp_path, collator, trainer_class: type = Trainer
) -> dict[str, torch.Tensor]:
    """Change of the weights after one step of SGD on all `rows` in micro-batches of `size`."""
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=size,
        gradient_accumulation_steps=len(rows) // size, optim="sgd", learning_rate=1.0, max_grad_norm=0.0,
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
        train_sampling_strategy="sequential", remove_unused_columns=False,
        label_names=[name for name in rows[0] if name in ("labels", "start_positions", "end_positions")],
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer_class(model=model, args=args, train_dataset=rows, data_collator=collator).train()
    changes = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    model.load_state_dict(before, strict=False)
    return changes


def collate_rows(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def row_of(head: str, problem: str | None, i: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(i)
    shape = (CHOICES, LENGTH) if head == "ForMultipleChoice" else (LENGTH,)
    row = {"input_ids": torch.randint(3, VOCABULARY, shape, generator=generator)}
    row["attention_mask"] = torch.ones(shape, dtype=torch.int64)
    for name, kind in HEADS[head].items():
        if kind == "class":
            row[name] = {
                "single_label_classification": torch.tensor(i % CLASSES),
                "multi_label_classification": torch.rand(CLASSES, generator=generator).round(),
                "regression": torch.rand(1, generator=generator),
            }[problem]
        elif kind == "tags":
            row[name] = torch.randint(0, CLASSES, (LENGTH,), generator=generator)
            row[name][1 + i :] = -100
        elif kind == "place":  # within the text: Trainer counts no items for answers, so none may be left out
            row[name] = torch.tensor(i)
        else:
            row[name] = torch.tensor(i % CHOICES)
    return row


def fast_first(cases: list[tuple], fast: set[tuple]) -> list:
    """All cases, those that are not `fast` marked slow."""
    assert fast <= set(cases)
    return [pytest.param(*case, marks=() if case in fast else pytest.mark.slow) for case in cases]


FAST = {
    ("decoder", "ForSequenceClassification", "regression"),
    ("encoder", "ForTokenClassification", None),
    ("encoder_decoder", "ForQuestionAnswering", None),
}


@pytest.mark.parametrize(("stack", "head", "problem"), fast_first(CASES, FAST))
def test_a_head_accumulates_as_one_batch(stack, head, problem, tmp_path):
    sizes = dict(SIZES)
    config_class = getattr(hf_llm, f"{STACKS[stack]}Config")
    labels = {"num_labels": 1 if problem == "regression" else CLASSES, "problem_type": problem}
    if stack == "encoder_decoder":
        config = config_class(encoder=sizes, decoder=dict(sizes), pad_token_id=0, decoder_start_token_id=1, **labels)
    else:
        config = config_class(**sizes, **labels)
    model = getattr(hf_llm, STACKS[stack] + head)(config)
    rows = [row_of(head, problem, i) for i in range(ROWS)]
    whole, parts = (gradients(model, rows, size, tmp_path, collate_rows) for size in (ROWS, ROWS // 4))
    assert any(change.abs().max() > 1e-3 for change in whole.values())
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def documents(corpus_dir):
    """Texts, and pairs of texts for "supervised"."""
    texts = load_corpus(str(corpus_dir / "*.txt"), "train")
    words = [text.split() for text in texts["text"]]
    pairs = [{"source": " ".join(w[:6]), "target": " ".join(w[6 : 8 + i % 9])} for i, w in enumerate(words)]
    return texts, datasets.Dataset.from_list(pairs)


@pytest.fixture(scope="module")
def tokenizers(documents):
    sentinels = {"decoder": [f"<extra_id_{i}>" for i in range(20)]}
    return {
        stack: train_tokenizer(
            documents[0]["text"], "bpe", 420, stack=stack,
            extra_special_tokens=sentinels.get(stack, ()), show_progress=False,
        )
        for stack in ("decoder", "encoder", "encoder-decoder")
    }  # fmt: skip


PAIRS = [(name, stack) for name, kind in OBJECTIVES.items() for stack in kind.frames]


@pytest.mark.parametrize(
    ("objective", "stack"), fast_first(PAIRS, {("masked_lm", "encoder"), ("span_corruption", "encoder-decoder")})
)
def test_an_objective_accumulates_as_one_batch(objective, stack, documents, tokenizers, tmp_path):
    tokenizer = tokenizers[stack]
    draws = make_objective(objective, tokenizer, stack=stack)
    corpus = documents[objective == "supervised"]
    lengths = {"row_length": 64} | ({"target_row_length": 64} if stack == "encoder-decoder" else {})
    packed = pack_corpus(corpus, tokenizer, draws, **lengths, cache_dir=tmp_path / "cache")
    samples = TrainingSamples(packed, draws, seed=0)
    rows = [samples[i] for i in range(ROWS)]
    if objective != "causal":
        assert len({(row["labels"] != -100).sum() for row in rows}) > 1
    model = make_model(stack.replace("-", "_"), vocab_size=len(tokenizer))
    whole, parts = (gradients(model, rows, size, tmp_path, collate) for size in (ROWS, ROWS // 4))
    assert any(change.abs().max() > 1e-3 for change in whole.values())
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("stack", STACKS)
def test_router_losses_accumulate_as_one_batch(stack, tmp_path):
    """Of rows with different targets, padding and routing, in one, two and three micro-batches."""
    model, rows = make_model(stack, **EXPERTS), make_rows(stack)[:6]
    for i, row in enumerate(rows):
        row["attention_mask"] = (torch.arange(len(row["input_ids"])) < 6 + i).long()
    whole, *divided = (gradients(model, rows, size, tmp_path, collate_rows) for size in (6, 3, 2))
    routers = [name for name in whole if "mlp.gate" in name]
    assert routers and all(whole[name].abs().max() > 1e-4 for name in routers)
    for parts in divided:
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_equal_micro_batches_weigh_router_losses_as_one(tmp_path):
    """Three times the same rows: the gradient of the rows alone, not three times their router losses."""
    model, rows = make_model("decoder", **EXPERTS), make_rows("decoder")[:2]
    once, thrice = (gradients(model, rows * times, 2, tmp_path, collate_rows) for times in (1, 3))
    for name in once:
        torch.testing.assert_close(thrice[name], once[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_regularisation_of_adalora_counts_once_in_a_step_and_not_in_evaluation(tmp_path):
    model, rows = make_model("decoder"), make_rows("decoder")[:6]
    batch = collate_rows(rows)
    with torch.no_grad():
        loss = model.eval()(**batch).loss.item()
    adapter = {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["q_proj"], "orth_reg_weight": 0.5}
    model = peft.get_peft_model(model, peft.AdaLoraConfig(task_type="CAUSAL_LM", **adapter))
    whole, parts = (gradients(model, rows, size, tmp_path, collate_rows, FinetuneTrainer) for size in (6, 2))
    assert any(change.abs().max() > 1e-4 for name, change in whole.items() if "lora_A" in name)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", label_names=["labels"])
    trainer = FinetuneTrainer(model=model, args=args, eval_dataset=rows, data_collator=collate_rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert model.peft_config["default"].orth_reg_weight == 0.5
