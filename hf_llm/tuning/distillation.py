"""Knowledge distillation: a smaller student learns what its teacher would say (DistilBERT, arXiv:1910.01108).

The loss is a weighted sum of three: the divergence from the teacher's distribution, both softened by a temperature
(arXiv:1503.02531), the task's own loss, and the cosine distance between the last hidden states. It fits every head
that fine-tuning has, and masked and causal language models. TRL's trainers for this (GKD, distillation) sample from
the student, on conversations alone; recipes/sft.py leads there.
"""

import dataclasses
import statistics
import time
from dataclasses import dataclass, field

import torch
from torch.nn import functional
from transformers import PreTrainedModel, set_seed
from transformers.trainer_callback import ProgressCallback

from hf_llm.training.opening import has_trained_head, open_config, open_model
from hf_llm.training.report import Results

from .adapters import has_virtual_tokens
from .finetuning import FinetuneConfig, FinetuneTrainer, Finetuning
from .task import IGNORED


PER_LAYER = ("layer_types", "mlp_layer_types", "rope_layers")  # fields of a configuration with one entry per layer


@dataclass
class StudentSection:
    """
    Attributes:
        layers: how many of the teacher's layers it keeps, evenly spread from the first (3 of 6: 0, 2, 4), or which.
            The rest of the teacher is kept whole.
    """

    layers: int | list[int] = 3


@dataclass
class DistillationSection:
    """
    Attributes:
        temperature: softens both distributions; the gradient's size is kept by its square.
        soft: weight of the divergence from the teacher's distribution.
        hard: weight of the task's own loss.
        cosine: weight of the cosine distance between the last hidden states of real tokens.
    """

    temperature: float = 2.0
    soft: float = 0.5
    hard: float = 0.5
    cosine: float = 0.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"distillation.temperature = {self.temperature} must be above 0")
        weights = {name: getattr(self, name) for name in ("soft", "hard", "cosine")}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"distillation: the weights {weights} must be at least 0, and one of them above it")


@dataclass(kw_only=True)
class DistillConfig(FinetuneConfig):
    """A run of `recipes/distill.py`.

    Attributes:
        model: the teacher, already trained for the task.
        student: what is kept of it.
        peft: trains an adapter of the student, which is saved as it began under `base`.
        distillation: what the student learns from.
    """

    student: StudentSection = field(default_factory=StudentSection)
    distillation: DistillationSection = field(default_factory=DistillationSection)

    def __post_init__(self):
        super().__post_init__()
        if has_virtual_tokens(self.peft):
            raise ValueError(
                f"peft.method = {self.peft['method']!r}: virtual tokens have no counterpart in the teacher; use lora"
            )


# ---- the student ----------------------------------------------------------------------------------------------------


def kept_layers(total: int, layers: int | list[int]) -> list[int]:
    """Which of the teacher's layers a student keeps, in order.

    Raises:
        ValueError: more than there are, none, or numbers that are none of a layer.
    """
    if isinstance(layers, int):
        if not 0 < layers <= total:
            raise ValueError(f"student.layers = {layers}: the teacher has {total}")
        return [i * total // layers for i in range(layers)]
    if not layers or sorted(set(layers)) != layers or not 0 <= layers[0] <= layers[-1] < total:
        raise ValueError(
            f"student.layers = {layers}: must be rising numbers of the teacher's layers, 0 to {total - 1}"
        )
    return layers


def make_student(teacher: PreTrainedModel, layers: int | list[int]) -> PreTrainedModel:
    """A model of the teacher's class with some of its layers, and all else of it.

    Raises:
        ValueError: the teacher is an encoder-decoder or shares its layers, or has no such layers.
    """
    config = teacher.config
    if config.is_encoder_decoder or config.layer_sharing is not None:
        what = "is an encoder-decoder" if config.is_encoder_decoder else "shares its layers"
        raise ValueError(f"model.path: the teacher {what}; a student is made of an encoder or decoder of own layers")
    kept = kept_layers(config.num_hidden_layers, layers)
    fields = {**config.to_dict(), "num_hidden_layers": len(kept)}
    fields |= {name: [fields[name][i] for i in kept] for name in PER_LAYER if fields.get(name) is not None}
    student = type(teacher)(type(config)(**fields)).to(teacher.dtype)
    student.load_state_dict(teacher.state_dict(), strict=False)  # it lacks some of the teacher's layers
    for mine, taught in zip(student.base_model.layers, kept, strict=True):
        mine.load_state_dict(teacher.base_model.layers[taught].state_dict())
    return student


# ---- the loss -------------------------------------------------------------------------------------------------------


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence of the softened distributions, (examples, classes) each, mean over examples, times T squared; of a
    single output, which has no distribution, the squared difference."""
    if student.shape[-1] == 1:
        return functional.mse_loss(student.float(), teacher.float())
    student, teacher = (functional.log_softmax(x.float() / temperature, -1) for x in (student, teacher))
    divergence = functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence / max(len(student), 1) * temperature**2


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """1 - cosine of hidden states (..., hidden), summed with weights (...)."""
    return (weights * (1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1))).sum()


class DistillationTrainer(FinetuneTrainer):
    """Trains on `soft`, `hard` and `cosine` loss; evaluates the task's own loss.

    Accumulated micro-batches have the gradients of the batch that they divide: in each of the three a row weighs
    what it has of the batch's labels. Without labels (question answering) each is a mean over its micro-batch.

    Args:
        teacher: a model with the student's head; it is not trained.
        settings: temperature and weights.
    """

    def __init__(self, *args, teacher: PreTrainedModel, settings: DistillationSection, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = self.accelerator.prepare_model(teacher.requires_grad_(False).eval(), evaluation_mode=True)
        self.settings = settings
        self.shift = "ForCausalLM" in type(teacher).__name__  # a logit is that of the label after it

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        asked = {"output_hidden_states": True} if self.settings.cosine else {}
        if "ForMaskedLM" in type(self.teacher).__name__ or self.shift:
            asked["skip_logits"] = False
        divided = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        outputs = model(**inputs, **asked, **divided)
        with torch.no_grad():
            taught = self.teacher(**inputs, **asked)
        shares = self._shares(inputs, num_items_in_batch)
        loss = self.settings.hard * outputs.loss
        if self.settings.soft:
            pairs = zip(self._logits(outputs, inputs), self._logits(taught, inputs), strict=True)
            divergences = [soft_loss(*pair, self.settings.temperature) for pair in pairs]
            share = 1.0 if shares is None else shares.sum()
            loss = loss + self.settings.soft * share * sum(divergences) / len(divergences)
        if self.settings.cosine:
            real = inputs["attention_mask"].float()
            weights = real / real.sum() if shares is None else real / real.sum(-1, keepdim=True) * shares[:, None]
            loss = loss + self.settings.cosine * cosine_loss(
                outputs.hidden_states[-1], taught.hidden_states[-1], weights
            )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over them
        return (loss, outputs) if return_outputs else loss

    def _shares(self, inputs, num_items_in_batch) -> torch.Tensor | None:
        """How many of the batch's labels each row has, as a share (rows,)."""
        if num_items_in_batch is None:
            return None
        labels = inputs["labels"][..., 1:] if self.shift else inputs["labels"]
        return (labels != IGNORED).reshape(len(labels), -1).sum(-1) / num_items_in_batch

    def _logits(self, outputs, inputs) -> list[torch.Tensor]:
        """Distributions to compare, (examples, classes) each; of tokens, those that have a label."""
        if "logits" not in outputs:
            return [outputs["start_logits"], outputs["end_logits"]]
        logits, labels = outputs["logits"], inputs["labels"]
        if logits.ndim == labels.ndim + 1 and labels.ndim == 2:  # (batch, seq, classes)
            if self.shift:
                logits, labels = logits[:, :-1], labels[:, 1:]
            logits = logits[labels != IGNORED]
        return [logits]


# ---- the run --------------------------------------------------------------------------------------------------------


class Distillation(Finetuning):
    """A fine-tuning run whose model is a student of what the configuration calls the model."""

    config_class = DistillConfig
    defaults = {**Finetuning.defaults, "learning_rate": 5e-5}

    def make_model(self, fields):
        section, auto_class = self.config.model, self.task.auto_class
        if not has_trained_head(section, auto_class):
            raise ValueError(
                f"model.path = {section.path!r} has no trained head for {auto_class.__name__}: a teacher must know "
                "the task, train it first (recipes/finetune.py, recipes/pretrain.py)"
            )
        taught = open_config(section, auto_class).id2label
        unnamed = {i: f"LABEL_{i}" for i in range(fields.get("num_labels", 0))}
        if "id2label" in fields and taught not in (fields["id2label"], unnamed):
            raise ValueError(
                f"model.path = {section.path!r}: the teacher's classes are {list(taught.values())}, and those of the "
                f"data {list(fields['id2label'].values())}"
            )
        set_seed(self.config.seed)
        self.teacher = open_model(section, auto_class, self.tokenizer, **fields)
        student = make_student(self.teacher, self.config.student.layers)
        return self.adapt(student, self.tokenizer, len(self.features["train"]))

    def make_trainer(self, model):
        self.judge = super().make_trainer(self.teacher)  # evaluates the teacher
        self.judge.remove_callback(ProgressCallback)
        options = {"teacher": self.teacher, "settings": self.config.distillation}
        return super().make_trainer(model, DistillationTrainer, **options)

    def evaluate(self) -> Results:
        results = super().evaluate()
        taught = self.task.score(self.predict(self.judge))
        student = self.trainer.accelerator.unwrap_model(self.trainer.model)
        loader = self.judge.get_test_dataloader(self.inputs["test"])
        batches = [self.judge._prepare_inputs(batch) for _, batch in zip(range(16), loader, strict=False)]
        total = self.teacher.config.num_hidden_layers
        kept = ", ".join(map(str, kept_layers(total, self.config.student.layers)))
        sizes = [sum(p.numel() for p in model.parameters()) for model in (student, self.teacher)]
        note = (
            f"The student began with layers {kept} of the teacher's {total}; it has {sizes[0]:,} parameters, the "
            f"teacher {sizes[1]:,}. Speed-up: median time of a forward pass over the same {len(batches)} test "
            "batches, taken in turn."
        )
        if self.config.peft is not None:
            note += " The student's adapter was not merged; merged, it is faster."
        return dataclasses.replace(
            results,
            metrics={**results.metrics, "speedup": speedup(student, self.teacher, batches)},
            baselines={"teacher": taught, **results.baselines},
            notes=[*results.notes, note],
        )


@torch.no_grad()
def speedup(student: PreTrainedModel, teacher: PreTrainedModel, batches: list[dict], rounds: int = 3) -> float:
    """How many times faster the student's forward pass is: ratio of median times, the two models taking turns."""
    models = {"student": student.eval(), "teacher": teacher.eval()}
    seconds = {name: [] for name in models}
    for batch in [*batches[:1], *batches * rounds]:
        for name, model in models.items():
            start = time.perf_counter()
            model(**batch)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    student_time, teacher_time = (statistics.median(times[1:]) for times in seconds.values())  # the first warms up
    return teacher_time / student_time
