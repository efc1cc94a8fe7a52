"""The `peft:` section of a tuning run: a method by name, fields of its PEFT configuration, the model that it wraps.

peft: {method: lora, r: 16, lora_alpha: 32}
peft: {method: lora, target_parameters: [experts.gate_up_proj, experts.down_proj]}    # mixtures of experts
"""

import contextlib
import copy
import dataclasses
import inspect
import logging
from collections.abc import Iterator
from importlib.util import find_spec

import peft
import torch
from peft import PeftConfig, PeftModel, PromptLearningConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from hf_llm.surgery.adapters import check_biases, check_generates_behind_virtual_tokens, without_noise
from hf_llm.training.settings import check_keys, suggestion


logger = logging.getLogger(__name__)


# name -> PEFT's configuration class, and the fields of it that make the method
METHODS = {
    "lora": ("LoraConfig", {}),  # arxiv.org/abs/2106.09685
    "dora": ("LoraConfig", {"use_dora": True}),  # arxiv.org/abs/2402.09353
    "rslora": ("LoraConfig", {"use_rslora": True}),  # arxiv.org/abs/2312.03732
    "qlora": ("LoraConfig", {}),  # arxiv.org/abs/2305.14314
    "adalora": ("AdaLoraConfig", {}),  # arxiv.org/abs/2303.10512
    "ia3": ("IA3Config", {}),  # arxiv.org/abs/2205.05638
    "vera": ("VeraConfig", {}),  # arxiv.org/abs/2310.11454
    "oft": ("OFTConfig", {}),  # arxiv.org/abs/2306.07280
    "boft": ("BOFTConfig", {}),  # arxiv.org/abs/2311.06243
    "ln_tuning": ("LNTuningConfig", {}),  # arxiv.org/abs/2312.11420
    "loha": ("LoHaConfig", {}),  # arxiv.org/abs/2108.06098
    "lokr": ("LoKrConfig", {}),  # arxiv.org/abs/2309.14859
    "hra": ("HRAConfig", {}),  # arxiv.org/abs/2405.17484
    "randlora": ("RandLoraConfig", {}),  # arxiv.org/abs/2502.00987
    "fourierft": ("FourierFTConfig", {}),  # arxiv.org/abs/2405.03003
    "prompt": ("PromptTuningConfig", {}),  # arxiv.org/abs/2104.08691
    "p_tuning": ("PromptEncoderConfig", {}),  # arxiv.org/abs/2103.10385
    "prefix": ("PrefixTuningConfig", {}),  # arxiv.org/abs/2101.00190
    "trainable_tokens": ("TrainableTokensConfig", {}),  # huggingface.co/docs/peft/package_reference/trainable_tokens
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
_TYING = ("ensure_weight_tying", "trainable_token_indices")  # fields by which PEFT adapts tied weights as one


def check_peft_section(section: dict) -> None:
    """Check a `peft` section before anything is loaded.

    Raises:
        ValueError: unknown method or field, or QLoRA without what it needs.
    """
    method = section.get("method")
    if method not in METHODS:
        raise ValueError(f"peft.method = {method!r} is unknown{suggestion(str(method), METHODS)}")
    fields = [f.name for f in dataclasses.fields(_config_class(method)) if f.name not in _MANAGED]
    check_keys({k: v for k, v in section.items() if k != "method"}, fields, "peft")
    if method == "qlora" and find_spec("bitsandbytes") is None:
        raise ValueError("peft.method = 'qlora' needs the package bitsandbytes, which is not installed: or use lora")


def _config_class(method: str) -> type[PeftConfig]:
    return getattr(peft, METHODS[method][0])


def has_virtual_tokens(section: dict | None) -> bool:
    """Whether a method puts tokens of its own before the text: there is nothing to merge, and outputs are longer."""
    method = (section or {}).get("method")
    return method in METHODS and issubclass(_config_class(method), PromptLearningConfig)


def adapter_config(section: dict, model: PreTrainedModel, total_steps: int | None = None) -> PeftConfig:
    """
    The PEFT configuration of a `peft` section.

    Args:
        model: the base; its head decides the task type, and is trained whole if it is a task head.
        total_steps: optimizer steps of the run, over which AdaLoRA plans its ranks.

    Raises:
        ValueError: what PEFT refuses, or does wrong.
    """
    method, config_class = section["method"], _config_class(section["method"])
    if model.config.is_encoder_decoder:
        tying = [f"peft.{name} = {section[name]!r}" for name in _TYING if section.get(name)]
        if method == "trainable_tokens":
            tying = ["peft.method = 'trainable_tokens'"]
        if tying:
            raise ValueError(f"{tying[0]}: PEFT ties embeddings and head of one stack, not of an encoder-decoder")
    given = copy.deepcopy({k: v for k, v in section.items() if k != "method"})  # PEFT edits lists
    fields = {**METHODS[method][1], **given}
    fields["task_type"] = next((t for head, t in _TASK_TYPES.items() if type(model).__name__.endswith(head)), None)
    if has_virtual_tokens(section):
        _check_takes_virtual_tokens(method, model, fields["task_type"])
    head = [name for name in _HEAD_PARTS if getattr(model, name, None) is not None]
    if head and "modules_to_save" in (f.name for f in dataclasses.fields(config_class)):
        fields["modules_to_save"] = sorted({*head, *(fields.get("modules_to_save") or ())})
    if config_class is peft.LoraConfig and not model.config.is_encoder_decoder:
        lists = [fields.get(name) for name in ("target_modules", "modules_to_save")]
        if any(isinstance(names, (list, set)) and _EMBEDDINGS & set(names) for names in lists):
            fields.setdefault("ensure_weight_tying", bool(model.config.tie_word_embeddings))
    if config_class is peft.AdaLoraConfig and total_steps is not None:
        fields = {"total_step": total_steps, "tinit": total_steps // 10, "tfinal": total_steps // 3, **fields}
    try:
        return config_class(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"peft: {error}") from error


def _check_takes_virtual_tokens(method: str, model: PreTrainedModel, task_type: str | None) -> None:
    """Raise ValueError where PEFT would fail in the first step, or move the text from under its labels."""
    check_generates_behind_virtual_tokens(f"peft.method = {method!r}")
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


def add_adapter(model: PreTrainedModel, section: dict, total_steps: int | None = None) -> PeftModel:
    """`model` with the adapter that a `peft` section describes.

    Raises:
        ValueError: the method does not fit the model.
    """
    config = adapter_config(section, model, total_steps)
    try:
        with without_noise():
            adapted = get_peft_model(model, config)
        check_biases(adapted)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"peft: method {section['method']!r} does not fit this model: {error}") from error
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
    config = getattr(model, "peft_config", {}).get("default")
    weight = getattr(config, "orth_reg_weight", None)
    if weight is None:
        yield
        return
    config.orth_reg_weight = weight * share
    try:
        yield
    finally:
        config.orth_reg_weight = weight


def open_quantised(model: PreTrainedModel) -> PreTrainedModel:
    """The checkpoint that `model.name_or_path` names, its weights in NF4 on this process's device, for QLoRA.

    Raises:
        ValueError: bitsandbytes does not run here.
    """
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    state = PartialState()
    state.wait_for_everyone()  # the first process may still be saving the checkpoint
    try:
        quantised = type(model).from_pretrained(
            model.name_or_path,
            config=model.config,
            quantization_config=quantization,
            device_map={"": str(state.device)},
        )
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"peft.method = 'qlora': bitsandbytes does not run on {state.device}: {error}") from error
    return peft.prepare_model_for_kbit_training(quantised)
