"""What a model is used for, as a table: the inputs that a task takes and how a batch of them is answered.

Classification, tagging and filling in are transformers' pipelines, embedding is sentence-transformers', text comes
from `generate`, and answers are found as fine-tuning and evaluation find them (`hf_llm.tuning.question_answering`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    pipeline,
)

from ..data.checkpoints import checkpoint_path
from ..training.settings import suggestion


Row = dict[str, Any]


@dataclass
class Options:
    """
    Attributes:
        batch_size: inputs of a batch.
        max_new_tokens, temperature, num_beams: of text that is generated; a temperature of 0 decodes greedily.
        top_k: candidates for a mask.
        prefix: before each text, as T5's "translate English to German: "; by default what the run that made the model
            put there.
        system: the system message of a chat.
        dtype: of the weights.
        trust_remote_code: run the code that the checkpoint carries, where its architecture is not known.
    """

    batch_size: int = 16
    max_new_tokens: int = 256
    temperature: float = 0.0
    num_beams: int = 1
    top_k: int = 5
    prefix: str | None = None
    system: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False


@dataclass
class Model:
    """A checkpoint opened for a task. Called with rows, it returns a record for each.

    Attributes:
        path: a folder, a Hub id, or the folder of an adapter.
        config: of the checkpoint, or of the adapter's base.
        task: a row of `TASKS`.
    """

    path: str
    config: PreTrainedConfig
    task: "Task"
    options: Options = field(default_factory=Options)

    def __call__(self, rows: list[Row]) -> list[Row]:
        """What the model makes of a few rows: at least `prediction` for each."""
        with torch.inference_mode():
            return self.task.run(self, rows)

    @cached_property
    def run_config(self) -> dict:
        """The settings of the run that made the model, if they are beside it."""
        note = Path(self.path, "run_config.json")
        return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.options.trust_remote_code)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer

    @cached_property
    def model(self) -> PreTrainedModel:
        name = self.task.auto_class
        if name == "AutoModelForSeq2SeqLM" and not self.config.is_encoder_decoder:
            name = "AutoModelForCausalLM"  # a decoder that learned pairs
        auto_class = getattr(transformers, name)
        dtype = getattr(torch, self.options.dtype)
        options = {"dtype": dtype, "trust_remote_code": self.options.trust_remote_code}
        if Path(self.path, "adapter_config.json").is_file():
            from ..surgery.adapters import merge_adapter

            base = json.loads(Path(self.path, "adapter_config.json").read_text(encoding="utf-8"))
            model = auto_class.from_pretrained(base["base_model_name_or_path"], **options)
            model = merge_adapter(model, self.path)
        else:
            model = auto_class.from_pretrained(self.path, **options)
        return model.to(torch.accelerator.current_accelerator() or "cpu").eval()

    @cached_property
    def encoder(self):
        """The checkpoint as a `SentenceTransformer`. Raises ValueError where that package is missing."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ValueError("embed needs sentence-transformers: pip install 'hf_llm[embeddings]'") from error
        return SentenceTransformer(self.path, trust_remote_code=self.options.trust_remote_code)

    def pipeline(self, name: str, **options) -> Callable:
        """A pipeline of transformers around model and tokenizer."""
        return pipeline(
            name, model=self.model, tokenizer=self.tokenizer, batch_size=self.options.batch_size, **options
        )

    def generate(self, texts: list[str], add_special_tokens: bool = True) -> list[str]:
        """What is generated after (a decoder) or from (an encoder-decoder) each text."""
        options, decodes = self.options, not self.model.config.is_encoder_decoder
        self.tokenizer.padding_side = "left" if decodes else "right"
        settings = {"max_new_tokens": options.max_new_tokens, "num_beams": options.num_beams, "do_sample": False}
        if options.temperature:
            settings |= {"do_sample": True, "temperature": options.temperature}
        found = []
        for start in range(0, len(texts), options.batch_size):
            batch = self.tokenizer(
                texts[start : start + options.batch_size],
                return_tensors="pt",
                padding=True,
                return_token_type_ids=False,
                add_special_tokens=add_special_tokens,
            ).to(self.model.device)
            output = self.model.generate(**batch, **settings, pad_token_id=self.tokenizer.pad_token_id)
            output = output[:, batch["input_ids"].shape[1] :] if decodes else output
            found += self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return found


# ---- the tasks ------------------------------------------------------------------------------------------------------


def classify(model: Model, rows: list[Row]) -> list[Row]:
    """The likeliest class and the scores of all; of a regression, the number; where labels are independent, all whose
    score is above one half."""
    texts = [{"text": row["text"], **({"text_pair": row["text_pair"]} if "text_pair" in row else {})} for row in rows]
    scored = model.pipeline("text-classification", top_k=None)(texts, truncation=True)
    config, found = model.model.config, []
    for scores in scored:
        scores = {entry["label"]: entry["score"] for entry in scores}
        best = max(scores, key=scores.get)
        if config.num_labels == 1:
            found.append({"prediction": scores[best]})
        elif config.problem_type == "multi_label_classification":
            found.append({"prediction": [name for name, score in scores.items() if score > 0.5], "scores": scores})
        else:
            found.append({"prediction": best, "score": scores[best], "scores": scores})
    return found


def tag(model: Model, rows: list[Row]) -> list[Row]:
    """Spans of the text with their labels."""
    texts = [row["text"] if isinstance(row["text"], str) else " ".join(row["text"]) for row in rows]
    found = model.pipeline("token-classification", aggregation_strategy="simple")(texts)
    return [
        {
            "prediction": [
                {
                    "text": text[entity["start"] : entity["end"]].strip(),
                    "label": entity["entity_group"],
                    "score": float(entity["score"]),
                    "start": entity["start"],
                    "end": entity["end"],
                }
                for entity in entities
            ]
        }
        for text, entities in zip(texts, found, strict=True)
    ]


def answer(model: Model, rows: list[Row]) -> list[Row]:
    """The span of the context that answers the question, its probability, and the runners-up."""
    from datasets import Dataset
    from transformers import DataCollatorWithPadding

    from ..data.encoding import check_offsets
    from ..tuning.examples import Encoder
    from ..tuning.question_answering import QuestionAnswering

    check_offsets(model.tokenizer, f"{model.path!r}: answering")
    encoder = Encoder.of(model.tokenizer, model.model.config, None)
    task = QuestionAnswering(stride=min(128, encoder.max_length // 4))
    task.has_null = False
    nothing = {"text": [], "answer_start": []}
    examples = Dataset.from_list(
        [{"question": r["question"], "context": r["context"], "answers": nothing} for r in rows]
    )
    windows = task.encode_batch({name: examples[name][:] for name in examples.column_names}, range(len(rows)), encoder)
    features = Dataset.from_dict(windows)
    inputs = features.select_columns([name for name in model.tokenizer.model_input_names if name in windows])
    collate, size = DataCollatorWithPadding(model.tokenizer), model.options.batch_size
    starts, ends = [], []
    for first in range(0, len(inputs), size):
        output = model.model(**collate(inputs[first : first + size]).to(model.model.device))
        starts += list(output.start_logits.float().cpu().numpy())
        ends += list(output.end_logits.float().cpu().numpy())
    records = task.decode((starts, ends), features, examples)
    return [
        {"prediction": r["prediction"], "score": r["n_best"][0]["probability"], "candidates": r["n_best"][:5]}
        for r in records
    ]


def fill(model: Model, rows: list[Row]) -> list[Row]:
    """The text with its masks, written [MASK], filled in, and the candidates for each."""
    mask = model.tokenizer.mask_token
    texts = [row["text"].replace("[MASK]", mask) for row in rows]
    for text in texts:
        if mask not in text:
            raise ValueError(f"nothing to fill in: no [MASK] in {text!r}")
    found = []
    for text, masks in zip(texts, model.pipeline("fill-mask", top_k=model.options.top_k)(texts), strict=True):
        masks = masks if isinstance(masks[0], list) else [masks]
        candidates = [[{"token": c["token_str"], "score": c["score"]} for c in mask_] for mask_ in masks]
        best = [tokens[0]["token"].strip() for tokens in candidates]
        filled = "".join(part for pair in zip(text.split(mask), [*best, ""], strict=True) for part in pair)
        found.append({"prediction": filled, "candidates": candidates})
    return found


def embed(model: Model, rows: list[Row]) -> list[Row]:
    """A vector for each text, as sentence-transformers computes it (mean pooling where the model does not say)."""
    texts = [row["text"] for row in rows]
    vectors = model.encoder.encode(texts, batch_size=model.options.batch_size, show_progress_bar=False)
    return [{"prediction": vector.tolist()} for vector in vectors]


def rewrite(model: Model, rows: list[Row]) -> list[Row]:
    """Text from text: a translation, a summary, whatever the model was trained to make."""
    data = model.run_config.get("data", {})
    prefix = model.options.prefix if model.options.prefix is not None else data.get("prefix") or ""
    after = (data.get("separator") or "") if not model.model.config.is_encoder_decoder else ""
    texts = model.generate([prefix + row["text"] + after for row in rows])
    return [{"prediction": text.strip()} for text in texts]


def complete(model: Model, rows: list[Row]) -> list[Row]:
    """What comes after each text."""
    return [{"prediction": text} for text in model.generate([(model.options.prefix or "") + r["text"] for r in rows])]


def chat(model: Model, rows: list[Row]) -> list[Row]:
    """The assistant's next turn, after a conversation (`messages`) or one turn of a user (`text`)."""
    prompts = [
        model.tokenizer.apply_chat_template(conversation(model, row), tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    return [{"prediction": text.strip()} for text in model.generate(prompts, add_special_tokens=False)]


def conversation(model: Model, row: Row) -> list[dict]:
    """The messages of a row. Raises ValueError where the tokenizer has no chat template."""
    if not model.tokenizer.chat_template:
        raise ValueError(f"{model.path!r}: its tokenizer has no chat template; take the task complete")
    system = [{"role": "system", "content": model.options.system}] if model.options.system else []
    return system + list(row["messages"] if "messages" in row else [{"role": "user", "content": row["text"]}])


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        about: one line.
        auto_class: of transformers, whose head it needs.
        inputs: columns of a row.
        run: takes a model and rows, returns a record for each.
        shape: of the prediction: "text", "scores" of classes, "spans" or "vector".
    """

    about: str
    auto_class: str
    inputs: tuple[str, ...]
    run: Callable[[Model, list[Row]], list[Row]]
    shape: str = "text"


TASKS = {
    "classify": Task(
        "a class, several, or a number", "AutoModelForSequenceClassification", ("text",), classify, "scores"
    ),
    "tag": Task("labelled spans", "AutoModelForTokenClassification", ("text",), tag, "spans"),
    "answer": Task("the answer in a context", "AutoModelForQuestionAnswering", ("question", "context"), answer),
    "fill": Task("masks filled in", "AutoModelForMaskedLM", ("text",), fill),
    "embed": Task("a vector", "AutoModel", ("text",), embed, "vector"),
    "translate": Task("a translation", "AutoModelForSeq2SeqLM", ("text",), rewrite),
    "summarize": Task("a summary", "AutoModelForSeq2SeqLM", ("text",), rewrite),
    "complete": Task("a continuation", "AutoModelForCausalLM", ("text",), complete),
    "chat": Task("the assistant's turn", "AutoModelForCausalLM", ("text",), chat),
}

# end of an architecture's name -> the task that it is for
_ARCHITECTURES = {
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
    "ForMaskedLM": "fill",
    "ForConditionalGeneration": "translate",
    "LMHeadModel": "complete",
    "ForCausalLM": "complete",
    "Model": "embed",
}


def open_model(path: str, task: str | None = None, options: Options | None = None) -> Model:
    """
    A checkpoint for a task; its weights are read with the first rows.

    Args:
        path: a folder or Hub id, of ours or native, or the folder of a PEFT adapter.
        task: a key of `TASKS`; by default what the checkpoint's head is for.

    Raises:
        ValueError: no checkpoint is there, it has no tokenizer, no head for the task, or the task is unknown.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"--task {task!r} is unknown{suggestion(task, TASKS)}")
    options, path = options or Options(), checkpoint_path(path)
    adapter = Path(path, "adapter_config.json")
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.is_file() else path
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path!r} is no checkpoint that can be opened: {str(error).splitlines()[0]}") from error
    model = Model(path, config, TASKS[task or "complete"], options)
    try:
        len(model.tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path!r} has no tokenizer: {str(error).splitlines()[0]}") from error
    if task is None:
        model.task = TASKS[_task_of(model)]
    elif model.task.auto_class != "AutoModel":
        _check_head(model)
    return model


def _task_of(model: Model) -> str:
    """The task that a checkpoint is for."""
    if Path(model.path, "modules.json").is_file():
        return "embed"
    architecture = (model.config.architectures or [""])[0]
    task = next((task for end, task in _ARCHITECTURES.items() if architecture.endswith(end)), None)
    if task is None:
        raise ValueError(
            f"{model.path!r} does not say what it is for (architecture {architecture!r}): name it by --task"
        )
    if task == "complete" and model.tokenizer.chat_template:
        return "chat"
    if task == "translate" and model.run_config.get("task", {}).get("name") == "summarization":
        return "summarize"
    return task


def _check_head(model: Model) -> None:
    """Raise ValueError where the checkpoint was not saved with the head of the task."""
    head = model.task.auto_class.removeprefix("AutoModel").replace("Seq2SeqLM", "ConditionalGeneration")
    architecture = (model.config.architectures or [""])[0]
    names = {"ForCausalLM": ("ForCausalLM", "LMHeadModel"), "ForMaskedLM": ("ForMaskedLM", "ForPreTraining")}
    decodes = model.task.run is rewrite and architecture.endswith("ForCausalLM")  # of a decoder that learned pairs
    if not decodes and not any(architecture.endswith(name) for name in names.get(head, (head,))):
        raise ValueError(f"{model.path!r} is a {architecture}, which has no head for this task ({head})")
