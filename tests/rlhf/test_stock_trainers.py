"""TRL's trainers and transformers' own as people call them: a model, a data set and the defaults."""

import itertools
import math

import pytest
import transformers
import trl
from datasets import Dataset
from models.tiny import EXPERTS
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

from .toys import LETTERS, decoder, encoder, encoder_decoder, make_tokenizer, share_of_a


MODELS = {"decoder": decoder, "encoder": encoder, "encoder_decoder": encoder_decoder}
OPENED_BY = {
    "decoder": transformers.AutoModelForCausalLM,
    "encoder": transformers.AutoModelForMaskedLM,
    "encoder_decoder": transformers.AutoModelForSeq2SeqLM,
}
TEXTS = [" ".join(LETTERS[i % 5 :]) for i in range(16)]
PAIRS = {"prompt": ["a b"] * 16, "chosen": TEXTS, "rejected": TEXTS[::-1]}
DATA = {
    "SFT": {"text": TEXTS},
    "DPO": PAIRS,
    "KTO": {"prompt": ["a b"] * 16, "completion": TEXTS, "label": [True, False] * 8},
    "GRPO": {"prompt": TEXTS},
    "RLOO": {"prompt": TEXTS},
    "Reward": {"chosen": TEXTS, "rejected": TEXTS[::-1]},
}
FORMS = list(itertools.product(("dense", "experts"), ("sdpa", "eager"), ("full", "lora")))


def matrix(names) -> list:
    """Every name in every form: in the fast tests dense and full, and of the first name experts with an adapter."""
    cases = list(itertools.product(names, FORMS))
    chosen = [(name, FORMS[0]) for name in names] + [(next(iter(names)), FORMS[-1])]
    return [
        pytest.param(name, *form, marks=[] if (name, form) in chosen else pytest.mark.slow) for name, form in cases
    ]


@pytest.fixture
def saved(tmp_path):
    """Makes a checkpoint of a stack, dense or with experts."""

    def save(stack: str, kind: str) -> str:
        MODELS[stack](**(EXPERTS if kind == "experts" else {})).save_pretrained(tmp_path / "model")
        make_tokenizer().save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


def trains(trainer, steps: int = 2) -> None:
    before = {
        name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad
    }
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == steps and losses and all(map(math.isfinite, losses))
    assert any((weight != before[name]).any() for name, weight in trainer.model.named_parameters() if name in before)


@pytest.mark.parametrize(("name", "kind", "attention", "method"), matrix(DATA))
def test_trl_trainers_take_a_decoder(name, kind, attention, method, saved, tmp_path):
    path = saved("decoder", kind)
    options = {"reward_funcs": share_of_a} if name in ("GRPO", "RLOO") else {}
    model, opening = path, {"model_init_kwargs": {"attn_implementation": attention}}
    if method == "lora":  # opened here; by the trainer where all weights are trained
        task, auto_class, heads = "CAUSAL_LM", transformers.AutoModelForCausalLM, {}
        if name == "Reward":
            task, auto_class, heads = "SEQ_CLS", transformers.AutoModelForSequenceClassification, {"num_labels": 1}
        options["peft_config"] = LoraConfig(task_type=task)
        model, opening = auto_class.from_pretrained(path, attn_implementation=attention, **heads), {}
    args = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path / "run"), max_steps=2, logging_steps=1, use_cpu=True, bf16=False, **opening
    )
    data = Dataset.from_dict(DATA[name])
    trainer = getattr(trl, f"{name}Trainer")(model=model, args=args, train_dataset=data, **options)
    trains(trainer)
    metrics = set().union(*trainer.state.log_history)
    assert ("aux_loss" in metrics) == (kind == "experts" and name != "Reward")


@pytest.mark.parametrize(("stack", "kind", "attention", "method"), matrix(MODELS))
def test_trainer_takes_every_stack(stack, kind, attention, method, saved, tmp_path):
    model = OPENED_BY[stack].from_pretrained(saved(stack, kind), attn_implementation=attention)
    tokenizer = make_tokenizer()
    tokenizer.mask_token = "<s>"
    rows = [tokenizer(text) for text in TEXTS]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=stack == "encoder")
    if stack == "encoder_decoder":
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
        collator = DataCollatorForSeq2Seq(tokenizer)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM" if stack == "encoder_decoder" else None))
    args = transformers.TrainingArguments(output_dir=str(tmp_path / "run"), max_steps=2, logging_steps=1, use_cpu=True)
    trains(transformers.Trainer(model=model, args=args, train_dataset=rows, data_collator=collator))
