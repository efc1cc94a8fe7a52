"""What a model is and what it costs, from its configuration alone (`hf-llm info`). Nothing is allocated."""

import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from .interop import InteropError, nearest_family
from .interop.convert import head_name, head_of, our_class, to_our_config
from .interop.loading import find_family
from .models.attention import ATTENTIONS
from .presets import CONFIGS, load_preset, nearest_names, preset_config, preset_names
from .scale import STRATEGIES, sent_bytes, tensor_parallel, training_bytes
from .training.throughput import flops_per_token


# the first pattern that matches a parameter's name decides its group
GROUPS = {
    "head": r"^(lm_head|head|head_transform|transform|cls|score|classifier|qa_outputs|final_logits_bias)\b",
    "norms": r"norm|\bln_",
    "experts": r"\bexperts\b",
    "router": r"\bmlp\.(gate|router)\b",
    "attention": r"attn|attention",
    "feed-forward": r"\bmlp\b|feed_forward|\bfc\d",
    "embeddings": r"embed|\bwte\b|\bwpe\b|shared",
}
AUTO_CLASSES = (AutoModelForSeq2SeqLM, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel)


def build_on_meta(source: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """
    The model of a preset, or of the config at `source` (a directory, a JSON file or a Hub id), without storage.

    Its class is the one named in `architectures`, else the language-modeling head of its model type, else the bare
    model.
    """
    if source in preset_names() and not Path(source).exists():
        config = preset_config(source)
    else:
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        except OSError as error:
            near = ", ".join(nearest_names(source))
            raise OSError(
                f"{source!r} is neither a preset, nor a checkpoint or config.json here, nor a Hub id that can be "
                f"reached. The nearest presets: {near}."
            ) from error
    candidates = [auto._model_mapping[type(config)] for auto in AUTO_CLASSES if type(config) in auto._model_mapping]
    if not candidates:
        raise ValueError(f"no model class is registered for model_type {config.model_type!r} of {source}")
    named = [cls for cls in candidates if cls.__name__ in (config.architectures or ())]
    with torch.device("meta"):
        return (named or candidates)[0](config)


def parameter_groups(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of `model` by group of `GROUPS` (anything else is "other"). Tied parameters count once, under the
    name that comes first, so the groups sum to the model's size."""
    groups = Counter()
    for name, parameter in model.named_parameters():
        group = next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "other")
        groups[group] += parameter.numel()
    return dict(groups.most_common())


def shapes(model: PreTrainedModel) -> list[tuple[str, tuple[int, ...], int]]:
    """Name, shape and number of the model's tensors; those that differ in the layer's number alone are one entry."""
    found = Counter()
    for name, parameter in model.named_parameters():
        found[re.sub(r"\.\d+\.", ".*.", name), tuple(parameter.shape)] += 1
    return [(name, shape, number) for (name, shape), number in found.items()]


def our_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """A configuration as one of ours, or `None` for an architecture that the core does not cover."""
    if config.model_type in CONFIGS:
        return config
    try:
        return to_our_config(find_family(config.model_type), config)
    except InteropError:
        return None


def as_ours(model: PreTrainedModel, ours: PreTrainedConfig) -> PreTrainedModel:
    """A model on the meta device as one of our classes, where the configuration says which layers run how often; as it
    is where no class has its head."""
    if ours is model.config:
        return model
    family = find_family(model.config.model_type)
    try:
        with torch.device("meta"):
            return our_class(family, head_of(type(model).__name__, family))(ours)
    except InteropError:
        return model


def stacks(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The stacks of one of our configurations by name."""
    halves = {half: getattr(config, half) for half in ("encoder", "decoder") if hasattr(config, half)}
    return halves or {config.model_type.removeprefix("hf_llm_"): config}


def describe_layers(stack: PreTrainedConfig) -> list[str]:
    """One line for each kind of layer: which, how they attend, what they feed forward through."""
    kinds: dict[str, list[int]] = {}
    attention = "" if stack.attention_type == "softmax" else f"{stack.attention_type} attention, "
    for i, layer_type in enumerate(stack.layer_types):
        window = f", window of {stack.sliding_window}" if layer_type == "sliding_attention" else ""
        sparse = stack.is_moe and stack.mlp_layer_types[i] == "sparse"
        experts = f", {stack.num_experts_per_tok} of {stack.num_experts} experts" if sparse else ""
        width = stack.moe_intermediate_size if sparse else stack.intermediate_size
        kind = (
            f"{attention}{stack.num_attention_heads} heads of {stack.head_dim}, {stack.num_key_value_heads} of keys "
            "and values"
            f"{window}; {stack.feed_forward} {stack.hidden_act}, {width:,} wide{experts}"
        )
        kinds.setdefault(kind, []).append(i)
    return [f"layers {runs(numbers)}: {kind}" for kind, numbers in kinds.items()]


def runs(numbers: list[int]) -> str:
    """`[0, 1, 2, 4]` -> `"0-2, 4"`."""
    groups = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in groups)


def cache_bytes(decoder: PreTrainedConfig, context: int, width: int = 2) -> dict[str, int]:
    """
    Bytes of the key-value cache of one sequence.

    Args:
        decoder: configuration of the stack.
        context: tokens in the cache, and tokens of the source where there is an encoder.
        width: bytes of a number.

    Returns:
        "token" (each token), "token beyond the window" (once sliding layers hold no more), "source token" (each token
        of the source), "sequence" (all that `context` tokens take).
    """
    layer = ATTENTIONS[decoder.attention_type].cache_width(decoder) * width
    growing = layer * decoder.layer_types.count("full_attention")
    whole = layer * decoder.num_hidden_layers
    source = 2 * decoder.num_key_value_heads * decoder.head_dim * width * decoder.num_hidden_layers
    source = source if decoder.add_cross_attention else 0
    window = min(context, decoder.sliding_window or context)
    return {
        "token": whole,
        "token beyond the window": growing if decoder.sliding_window else whole,
        "source token": source,
        "sequence": growing * context + (whole - growing) * window + source * context,
    }


def exports_to(model: PreTrainedModel) -> str:
    """The native family that can express one of our models, or the shortest reason why there is none."""
    try:
        return nearest_family(model.config, head_name(model))
    except InteropError as error:
        return "no native family; " + str(error).splitlines()[1]


def gib(size: float) -> str:
    """Bytes as GiB (MiB if less)."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.2f} MiB"


def report(
    source: str,
    context: int | None = None,
    optimizer: str = "adamw",
    processes: int = 8,
    trust_remote_code: bool = False,
) -> str:
    """
    Everything about a model, as text.

    Args:
        source: a preset's name, a checkpoint's directory, a config.json or a Hub id.
        context: tokens of a sequence; by default as many as the model was made for.
        optimizer: a key of `scale.STATE_BYTES`.
        processes: that train together.
        trust_remote_code: run the code that the checkpoint carries.

    Raises:
        OSError, ValueError: there is no such configuration, or no model class for it.
    """
    model = build_on_meta(source, trust_remote_code)
    groups, total = parameter_groups(model), model.num_parameters()
    assert sum(groups.values()) == total, f"the groups sum to {sum(groups.values())}, the model has {total} parameters"
    ours = our_config(model.config)
    if context is None:
        context = 2048 if ours is None else max(s.max_position_embeddings for s in stacks(ours).values())

    lines = [f"{type(model).__name__} ({model.config.model_type})"]
    if source in preset_names() and not Path(source).exists():
        lines.append(f"  source: {load_preset(source).source}")
    if ours is model.config:
        lines.append(f"  exports to: {exports_to(model)}")
    for name, stack in stacks(ours).items() if ours is not None else ():
        lines.append(
            f"{name}: {stack.num_hidden_layers} layers of {stack.hidden_size}, {stack.norm_type} "
            f"({stack.norm_placement}), positions: {stack.position_embedding}"
        )
        lines += [f"  {line}" for line in describe_layers(stack)]
    lines.append("tensors")
    lines += [f"  {' x '.join(map(str, s)):18} {name}{f'  ({n})' if n > 1 else ''}" for name, s, n in shapes(model)]
    lines.append("parameters")
    lines += [f"  {group:13} {count:18,}  {count / total:6.1%}" for group, count in groups.items()]
    lines.append(f"  {'total':13} {total:18,}")
    lines.append(f"for {context:,} tokens of context")
    if ours is not None:
        flops = flops_per_token(as_ours(model, ours), context) / 1e9
        lines.append(f"  GFLOPs per token: {flops / 3:,.3f} forward, {flops:,.3f} in training")
    held = 0
    if ours is not None and "decoder" in stacks(ours):
        cache = cache_bytes(stacks(ours)["decoder"], context)
        held = cache.pop("sequence")
        if cache["token beyond the window"] == cache["token"]:
            del cache["token beyond the window"]
        parts = [f"{size:,} bytes per {what}" for what, size in cache.items() if what != "source token" or size]
        lines.append(f"  key-value cache in bfloat16: {', '.join(parts)}, {gib(held)} for a sequence")
    lines.append(
        f"  memory to serve a sequence in bfloat16: {gib(2 * total + held)}, of which weights {gib(2 * total)}"
    )
    lines.append(f"training with {optimizer} in bfloat16: what each of {processes} processes holds and sends")
    lines.append("  (activations aside)")
    for name, strategy in STRATEGIES.items():
        if optimizer == "muon" and name.startswith("ZeRO"):
            continue  # it flattens the matrices that Muon needs whole
        held, sent = training_bytes(model, optimizer, name, processes), sent_bytes(model, name, processes)
        shards = "shards " + ", ".join(strategy.shards) if strategy.shards else "every process holds all"
        lines.append(f"  {name:13} {gib(held):>18} {gib(sent):>12} a step; {shards}")
    if parallel := tensor_parallel(model, optimizer, processes, context):
        held, sent = map(gib, parallel)
        lines.append(f"  {'TP':13} {held:>18} {sent:>12} for {context:,} tokens; shards matrices")
    return "\n".join(lines)
