"""Short trainings of a tiny model, on one process or on several. Run by test_processes.py, once on each rank:

    torchrun --nproc-per-node 2 processes.py PLAN.json FOLDER

For each `[stack, optimizer, strategy]` of the plan, `FOLDER/<stack>-<optimizer>-<strategy>` gets the trained model,
`losses.json`, and `held.json`: bytes that rank 0 holds after a step. The models start from the checkpoints
`FOLDER/<stack>`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from transformers import default_data_collator
from transformers.distributed import DistributedConfig
from transformers.trainer_pt_utils import find_batch_size

import hf_llm
from hf_llm.training.arguments import PretrainingArguments
from hf_llm.training.launching import check_launch
from hf_llm.training.trainer import PretrainTrainer
from hf_llm.tuning.finetuning import FinetuneTrainer


STEPS, BATCH, LENGTH, VOCABULARY = 6, 4, 12, 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}

EXPERTS = {"num_experts": 4, "router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1}


def make_model(stack: str, **fields) -> transformers.PreTrainedModel:
    """A language model of one stack ("experts": a decoder with experts and all router losses); `fields` replace SIZES,
    in an encoder-decoder in both halves."""
    torch.manual_seed(0)
    if stack == "experts":
        stack, fields = "decoder", {**EXPERTS, **fields}
    sizes = SIZES | fields
    if stack == "decoder":
        return hf_llm.LLMDecoderForCausalLM(hf_llm.LLMDecoderConfig(**sizes))
    if stack == "encoder":
        return hf_llm.LLMEncoderForMaskedLM(hf_llm.LLMEncoderConfig(**sizes))
    config = hf_llm.LLMEncoderDecoderConfig(
        encoder=dict(sizes), decoder=dict(sizes), pad_token_id=0, decoder_start_token_id=1
    )
    return hf_llm.LLMEncoderDecoderForConditionalGeneration(config)


def rows(stack: str) -> list[dict]:
    """Rows with 1 to LENGTH - 1 targets each, so that ranks and micro-batches differ in their number."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(STEPS * BATCH):
        ids = torch.randint(3, VOCABULARY, (LENGTH,), generator=generator)
        labels = ids.clone()
        labels[1 + (5 * i) % (LENGTH - 1) :] = -100
        if stack in ("decoder", "experts"):
            labels[0] = -100  # predicted by nothing
            labels[1] = ids[1]
        row = {"input_ids": ids, "labels": labels}
        if stack == "encoder_decoder":
            row["decoder_input_ids"] = ids.flip(0)
        made.append(row)
    return made


class Held(transformers.TrainerCallback):
    """Bytes of weights, gradients and optimizer state on this rank, while all of them exist."""

    def on_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
        states = [value for entry in optimizer.state.values() for value in entry.values()]
        tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
        tensors += [value for value in states if torch.is_tensor(value) and value.ndim]
        self.bytes = sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def train(folder: Path, stack: str, optimizer: str, strategy: str, world_size: int) -> None:
    if optimizer == "evaluate":
        return evaluate(folder, stack, strategy)
    out = folder / f"{stack}-{optimizer}-{strategy}"
    source = folder / stack
    model_class = getattr(hf_llm, transformers.AutoConfig.from_pretrained(source).architectures[0])
    sharded = {"distributed_config": DistributedConfig(fsdp_size=world_size)} if strategy == "fsdp2" else {}
    model = model_class.from_pretrained(source, **sharded)
    assert any(isinstance(p, DTensor) for p in model.parameters()) is bool(sharded)
    args = PretrainingArguments(
        output_dir=str(out),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // world_size // (2 if strategy == "accumulate" else 1),
        global_batch_size=BATCH,
        optimizer=optimizer,
        learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    check_launch(args)
    trainer = PretrainTrainer(
        model=model,
        args=args,
        train_dataset=rows(stack),
        data_collator=default_data_collator,
        row_length=LENGTH,
    )
    held = Held()
    trainer.add_callback(held)
    trainer.train()
    trainer.save_final_model()
    if args.should_save:
        curve = [{k: e[k] for k in ("loss", "grad_norm")} for e in trainer.state.log_history if "loss" in e]
        (out / "losses.json").write_text(json.dumps(curve), encoding="utf-8")
        (out / "held.json").write_text(json.dumps(held.bytes), encoding="utf-8")


def evaluation_losses(model, batch_size: int, folder: Path) -> dict[str, float]:
    """Validation loss of 7 rows by the pretraining trainer, and by one of tuning on tokens, on numbers and on answers;
    7 rows fill no number of batches on two processes."""
    common = {
        "per_device_eval_batch_size": batch_size,
        "use_cpu": True,
        "report_to": "none",
        "output_dir": str(folder),
    }
    data = [{**row, "num_bytes": torch.tensor(3 + i)} for i, row in enumerate(rows("decoder")[:7])]
    args = PretrainingArguments(max_steps=1, **common)
    trainer = PretrainTrainer(
        model=model, args=args, eval_dataset=data, data_collator=default_data_collator, row_length=LENGTH
    )
    found = {f"pretraining {k}": v for k, v in trainer.evaluate().items() if k in ("eval_loss", "eval_bits_per_byte")}

    sizes = dict(SIZES)
    torch.manual_seed(0)
    number = hf_llm.LLMEncoderForSequenceClassification(hf_llm.LLMEncoderConfig(**sizes, num_labels=1))
    answers = hf_llm.LLMEncoderForQuestionAnswering(hf_llm.LLMEncoderConfig(**sizes))
    for name, tuned, labels in (
        ("tokens", model, lambda i, row: {"labels": row["labels"]}),
        ("numbers", number, lambda i, row: {"labels": torch.tensor([i / 2])}),
        (
            "answers",
            answers,
            lambda i, row: {"start_positions": torch.tensor(i), "end_positions": torch.tensor(i + 2)},
        ),
    ):
        data = [{"input_ids": row["input_ids"], **labels(i, row)} for i, row in enumerate(rows("decoder")[:7])]
        names = [key for key in data[0] if key != "input_ids"]
        args = transformers.TrainingArguments(label_names=names, **common)
        trainer = FinetuneTrainer(
            model=tuned,
            args=args,
            eval_dataset=data,
            data_collator=default_data_collator,
            compute_metrics=lambda output: {"count": find_batch_size(output.label_ids)},
        )
        figures = trainer.evaluate()
        assert figures["eval_count"] == 7
        found[name] = figures["eval_loss"]
    return found


def evaluate(folder: Path, stack: str, strategy: str) -> None:
    model = hf_llm.LLMDecoderForCausalLM.from_pretrained(folder / stack)
    found = {size: evaluation_losses(model, size, folder / "evaluate") for size in (1, 2, 4)}
    if dist.get_rank() == 0:
        (folder / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for stack, optimizer, strategy in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        train(Path(sys.argv[2]), stack, optimizer, strategy, dist.get_world_size())
    dist.destroy_process_group()
