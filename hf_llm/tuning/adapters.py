"""The `peft:` section of a tuning run: a method by name, fields of its PEFT configuration, the model that it wraps.

peft: {method: lora, r: 16, lora_alpha: 32}
peft: {method: lora, target_parameters: [experts.gate_up_proj, experts.down_proj]}    # mixtures of experts
"""

import contextlib
import dataclasses
import inspect
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import peft
import torch
from peft import PeftConfig, PeftModel, PromptLearningConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from hf_llm.training.settings import check_keys, suggestion


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """A way to adapt a model.

    Attributes:
        config: name of its configuration class in PEFT.
        fields: fields of it that make the method.
        source: the paper.
    """

    config: str
    source: str
    fields: dict = field(default_factory=dict)


METHODS = {
    "lora": Method("LoraConfig", "arxiv.org/abs/2106.09685"),
    "dora": Method("LoraConfig", "arxiv.org/abs/2402.09353", {"use_dora": True}),
    "rslora": Method("LoraConfig", "arxiv.org/abs/2312.03732", {"use_rslora": True}),
    "qlora": Method("LoraConfig", "arxiv.org/abs/2305.14314"),
    "adalora": Method("AdaLoraConfig", "arxiv.org/abs/2303.10512"),
    "ia3": Method("IA3Config", "arxiv.org/abs/2205.05638"),
    "vera": Method("VeraConfig", "arxiv.org/abs/2310.11454"),
    "oft": Method("OFTConfig", "arxiv.org/abs/2306.07280"),
    "boft": Method("BOFTConfig", "arxiv.org/abs/2311.06243"),
    "ln_tuning": Method("LNTuningConfig", "arxiv.org/abs/2312.11420"),
    "loha": Method("LoHaConfig", "arxiv.org/abs/2108.06098"),
    "lokr": Method("LoKrConfig", "arxiv.org/abs/2309.14859"),
    "hra": Method("HRAConfig", "arxiv.org/abs/2405.17484"),
    "randlora": Method("RandLoraConfig", "arxiv.org/abs/2502.00987"),
    "fourierft": Method("FourierFTConfig", "arxiv.org/abs/2405.03003"),
    "prompt": Method("PromptTuningConfig", "arxiv.org/abs/2104.08691"),
    "p_tuning": Method("PromptEncoderConfig", "arxiv.org/abs/2103.10385"),
    "prefix": Method("PrefixTuningConfig", "arxiv.org/abs/2101.00190"),
    "trainable_tokens": Method("TrainableTokensConfig", "huggingface.co/docs/peft/package_reference/trainable_tokens"),
}

# head of our classes -> PEFT's name of the task
_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "Model": "FEATURE_EXTRACTION",
}
# tasks with labels for each text or each generated token: tokens before the text do not move these
_PROMPTED_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS")
# parts of a task head, which are trained beside the adapter: a fresh one says nothing
_HEAD_PARTS = ("score", "transform")
# fields that the run fills in
_MANAGED = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "inference_mode")
_EMBEDDINGS = {"embed_tokens", "lm_head"}


def check_peft_section(section: dict) -> None:
    """Check a `peft` section before anything is loaded.

    Raises:
        ValueError: unknown method or field, or QLoRA without what it needs.
    """
    method = section.get("method")
    if method not in METHODS:
        raise ValueError(f"peft.method = {method!r} is unknown{suggestion(str(method), METHODS)}")
    fields = [f.name for f in dataclasses.fields(getattr(peft, METHODS[method].config)) if f.name not in _MANAGED]
    check_keys({k: v for k, v in section.items() if k != "method"}, fields, "peft")
    if method == "qlora" and not torch.cuda.is_available():
        raise ValueError("peft.method = 'qlora' needs a CUDA GPU, and none is here: use lora")


def has_virtual_tokens(section: dict) -> bool:
    """Whether a method puts tokens of its own before the text: there is nothing to merge, and outputs are longer."""
    method = METHODS.get(section.get("method"))
    return method is not None and issubclass(getattr(peft, method.config), PromptLearningConfig)


def adapter_config(section: dict, model: PreTrainedModel, total_steps: int | None = None) -> PeftConfig:
    """
    The PEFT configuration of a `peft` section.

    Args:
        model: the base; its head decides the task type, and is trained whole if it is a task head.
        total_steps: optimizer steps of the run, over which AdaLoRA plans its ranks.

    Raises:
        ValueError: what PEFT refuses, or does wrong.
    """
    method = METHODS[section["method"]]
    if section["method"] == "trainable_tokens" and model.config.is_encoder_decoder:
        raise ValueError(
            "peft.method = 'trainable_tokens': PEFT ties embeddings and head of one stack, not of an encoder-decoder; "
            "use another method"
        )
    config_class = getattr(peft, method.config)
    legal = {f.name for f in dataclasses.fields(config_class)}
    fields = {**method.fields, **{k: v for k, v in section.items() if k != "method"}}
    fields["task_type"] = next((t for head, t in _TASK_TYPES.items() if type(model).__name__.endswith(head)), None)
    if has_virtual_tokens(section):
        _check_takes_virtual_tokens(section["method"], model, fields["task_type"])
    head = [name for name in _HEAD_PARTS if getattr(model, name, None) is not None]
    if head and "modules_to_save" in legal:
        fields["modules_to_save"] = sorted({*head, *(fields.get("modules_to_save") or ())})
    if _EMBEDDINGS & _named(fields) and "ensure_weight_tying" in legal:
        fields.setdefault("ensure_weight_tying", bool(model.config.tie_word_embeddings))
    if method.config == "AdaLoraConfig" and total_steps is not None:
        fields.setdefault("total_step", total_steps)
        fields.setdefault("tinit", total_steps // 10)
        fields.setdefault("tfinal", total_steps // 3)
    try:
        return config_class(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"peft: {error}") from error


def _check_takes_virtual_tokens(method: str, model: PreTrainedModel, task_type: str | None) -> None:
    """Raise ValueError where PEFT would fail in the first step, or move the text from under its labels."""
    if task_type not in _PROMPTED_TASKS:
        raise ValueError(
            f"peft.method = {method!r} puts tokens of its own before the text, and the labels of a "
            f"{type(model).__name__} belong to places in it: use lora"
        )
    if method == "prefix" and "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise ValueError(f"peft.method = 'prefix' needs a cache, which a {type(model).__name__} has not: use prompt")
    if task_type == "SEQ_CLS" and model.config.is_encoder_decoder:
        raise ValueError(
            f"peft.method = {method!r} puts tokens of its own before the text, which a {type(model).__name__} reads "
            "in both of its stacks: use lora"
        )


def _named(fields: dict) -> set[str]:
    """Modules that a configuration names, to adapt or to save."""
    lists = [fields.get(name) for name in ("target_modules", "modules_to_save")]
    return {name for names in lists if isinstance(names, (list, set)) for name in names}


_NOISE = (
    "Unsupported layer type",  # of norms, which LN-tuning copies whole
    "`is_gradient_checkpointing` is deprecated",  # which PEFT asks of a model
    "The following rank_pattern keys",  # of AdaLoRA's adapters, which PEFT itself wrote so
)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """PEFT's warnings that say nothing to a user are left out."""
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message)
        yield


def add_adapter(model: PreTrainedModel, section: dict, total_steps: int | None = None) -> PeftModel:
    """`model` with the adapter that a `peft` section describes; what it has to say of itself is logged.

    Raises:
        ValueError: the method does not fit the model.
    """
    config = adapter_config(section, model, total_steps)
    try:
        with _without_noise():
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"peft: method {section['method']!r} does not fit this model: {error}") from error
    trainable, total = adapted.get_nb_trainable_parameters()
    logger.info(
        "%s: %d of %d parameters are trained (%.2f %%)", section["method"], trainable, total, 100 * trainable / total
    )
    return adapted


class AllocateRanks(TrainerCallback):
    """AdaLoRA's budget: after each step it moves ranks to where they matter (section 3.3 of its paper)."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        while not hasattr(model, "update_and_allocate"):  # DDP and PeftModel stand around it
            model = model.module if hasattr(model, "module") else model.base_model
        model.update_and_allocate(state.global_step)


@contextlib.contextmanager
def orthogonality_weighed(model: nn.Module, share: float) -> Iterator[None]:
    """Scale AdaLoRA's regularisation (equation 4 of its paper) by `share`: PEFT adds the whole of it to the loss of
    every forward pass, be it an evaluation or one of several micro-batches."""
    configs = [c for c in getattr(model, "peft_config", {}).values() if hasattr(c, "orth_reg_weight")]
    weights = [config.orth_reg_weight for config in configs]
    try:
        for config, weight in zip(configs, weights, strict=True):
            config.orth_reg_weight = weight * share
        yield
    finally:
        for config, weight in zip(configs, weights, strict=True):
            config.orth_reg_weight = weight


def adapter_callbacks(section: dict | None) -> list[TrainerCallback]:
    """Callbacks that a method needs while training."""
    return [AllocateRanks()] if section is not None and section["method"] == "adalora" else []


def merge_adapter(model: PreTrainedModel, path: str | Path) -> PreTrainedModel:
    """
    `model` with the weights of an adapter added to its own.

    Raises:
        ValueError: `path` is no adapter, or one for another base.
    """
    return merge(open_adapter(model, path))


def merge(adapted: PeftModel) -> PreTrainedModel:
    """
    The base with the adapter's weights in its own, as PEFT's `merge_and_unload`.

    A head that is tied to adapted embeddings is merged beside them and tied again. PEFT alone would add the adapter to
    the one weight twice, and leave all weights frozen.

    Raises:
        ValueError: the adapter is one of virtual tokens, which no weight can stand for.
    """
    if adapted.active_peft_config.is_prompt_learning:
        kind = adapted.active_peft_config.peft_type.value
        raise ValueError(f"an adapter of virtual tokens ({kind}) cannot be merged: open it by peft.PeftModel")
    model = adapted.get_base_model()
    tied = model.config.tie_word_embeddings
    head = getattr(model.get_output_embeddings(), "base_layer", None)
    if tied and head is not None:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        merged = adapted.merge_and_unload()
    if tied:
        merged.config.tie_word_embeddings = True
        merged.tie_weights()
    return merged.requires_grad_(True)


def open_adapter(model: PreTrainedModel, path: str | Path, adapter_name: str = "default") -> PeftModel:
    """
    `model` with the adapter at `path`, which must have been trained on the same architecture.

    Raises:
        ValueError: `path` is no adapter, or one for another base: shapes or names of weights disagree.
    """
    try:
        config = PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"model.adapter = {str(path)!r} is no PEFT adapter: {error}") from error
    base = config.base_model_name_or_path
    if base and model.name_or_path and Path(base).resolve() != Path(model.name_or_path).resolve():
        logger.warning("the adapter %s was trained on %s, not on %s", path, base, model.name_or_path)
    try:
        with _without_noise():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            return PeftModel.from_pretrained(model, str(path), adapter_name=adapter_name, config=config)
    except (RuntimeError, ValueError, UserWarning, KeyError) as error:
        raise ValueError(f"model.adapter = {str(path)!r} is for another base, {base}: {error}") from error


def open_quantised(model: PreTrainedModel) -> PreTrainedModel:
    """The checkpoint that `model.name_or_path` names, its weights in NF4 on this process's GPU, for QLoRA."""
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device = {"": PartialState().process_index}
    quantised = type(model).from_pretrained(model.name_or_path, quantization_config=quantization, device_map=device)
    return peft.prepare_model_for_kbit_training(quantised)
