"""The engine: the weights of any family, both ways, by its table."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

from .. import registration
from ..models.configuration import auto_map
from .configurations import InteropError, to_native_config, to_our_config
from .family import Family
from .ops import Op, rename


@dataclass(frozen=True)
class Entry:
    """Weights that move together."""

    ours: tuple[str, ...]
    native: tuple[str, ...]
    op: Op
    half: str | None  # "encoder" or "decoder" of an encoder-decoder


def _pattern(template: str) -> re.Pattern:
    """`layers.{i}.x` -> a pattern with the numbers as groups; a module's name also matches what is below it."""
    escaped = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
    return re.compile(rf"^{escaped}(?P<rest>(\..+)?)$")


def _fill(template: str, match: re.Match) -> str:
    groups = {name: value for name, value in match.groupdict().items() if name != "rest" and value is not None}
    for name, value in groups.items():
        template = template.replace("{" + name + "}", value)
    return template + match["rest"]


def _renamed(name: str, table: dict[str, str]) -> str:
    for ours, native in table.items():
        if match := _pattern(ours).match(name):
            return _fill(native, match)
    return name


def plan(family: Family, head: str, our_names: Iterable[str], native_prefix: str, config) -> list[Entry]:
    """Which of our weights are which native ones, for a model with the given head ("Model" for none) and configuration
    (ours)."""
    weights = family.weights if isinstance(family.weights, Mapping) else family.weights(config)
    prefix = "" if head == "Model" else "model."
    native_prefix = native_prefix + "." if head != "Model" and native_prefix else ""
    entries, done = [], set()
    for name in our_names:
        if name in done:
            continue
        if not name.startswith(prefix):
            rule = _matching_rule(family, name)
            entry = _head_entry(family, head, name) if rule is None else _rule_entry(*rule, config)
        else:
            body = name.removeprefix(prefix)
            rule = _matching_rule(family, body)
            if rule is None:
                entry = Entry((name,), (native_prefix + _renamed(body, weights),), rename, _half(family, body))
            else:
                entry = _rule_entry(*rule, config, prefix, native_prefix, _half(family, body))
        entries.append(entry)
        done.update(entry.ours)
    return entries


def _half(family: Family, body: str) -> str | None:
    return body.split(".", 1)[0] if family.stack == "encoder_decoder" else None


def _matching_rule(family: Family, name: str):
    for rule in family.rules:
        for ours in rule.ours:
            if match := _pattern(ours).match(name):
                return rule, match
    return None


def _rule_entry(rule, match, config, prefix="", native_prefix="", half=None) -> Entry:
    ours = tuple(prefix + _fill(template, match) for template in rule.ours)
    templates = rule.op.native_names(rule.native, _stack_config(config, half))
    native = tuple(native_prefix + _fill(template, match) for template in templates)
    return Entry(ours, native, rule.op, half)


def _head_entry(family: Family, head: str, name: str) -> Entry:
    _check_head(family, head)
    return Entry((name,), (_renamed(name, family.heads[head]),), rename, None)


def _check_head(family: Family, head: str) -> None:
    if head not in ("Model", *family.heads):
        raise InteropError(f"{family.name} has no head like {head!r}; it has {', '.join(family.heads) or 'none'}.")


def _aliases(model: PreTrainedModel) -> dict[str, str]:
    """Name of a tied weight -> the name that it is tied to, where they really are one tensor."""
    state = model.state_dict(keep_vars=True)
    tied = model.all_tied_weights_keys.items()
    return {name: source for name, source in tied if name in state and state[name] is state.get(source)}


def _untied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of a model, each tied weight under its source's name only."""
    aliases = _aliases(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}


def tying(family: Family, model: PreTrainedModel) -> dict[str, bool]:
    """Which of embeddings and head are one tensor, as fields of ours. The tensors decide, not the configuration."""
    found, head, embedding = {}, model.get_output_embeddings(), model.get_input_embeddings()
    if family.stack == "encoder_decoder":
        halves = model.base_model
        embedding = halves.decoder.embed_tokens
        found["share_embeddings"] = halves.encoder.embed_tokens.weight is embedding.weight
    if head is not None:
        found["tie_word_embeddings"] = head.weight is embedding.weight
    return found


def _untie_head(model: PreTrainedModel) -> None:
    """Give the head a weight of its own, whatever the configuration says."""
    head, aliases = model.get_output_embeddings(), _aliases(model)
    head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    model.all_tied_weights_keys = {name: aliases[name] for name in _aliases(model)}


def _stack_config(config, half: str | None):
    return config if half is None else getattr(config, half)


def _empty(model_class: type, config: PreTrainedConfig, **kwargs) -> PreTrainedModel:
    """A model whose weights are still to be assigned (its buffers are computed, its memory is not touched)."""
    with no_init_weights():
        model = model_class(config, **kwargs).eval()
    model.tie_weights()  # which is otherwise done with the initialisation
    return model


def _load(model: PreTrainedModel, state: dict[str, torch.Tensor], what: str) -> None:
    """Assign `state` strictly: names and shapes."""
    wanted = _untied(model)
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or extra:
        raise InteropError(f"{what}: missing weights {missing[:8]}, unexpected weights {extra[:8]}.")
    wrong = [
        f"{name} {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != wanted[name].shape
    ]
    if wrong:
        raise InteropError(f"{what}: shapes disagree: {'; '.join(wrong[:8])}.")
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = torch.nn.Parameter(tensor.contiguous())
        else:
            module._buffers[leaf] = tensor.contiguous()
    model.tie_weights(recompute_mapping=False)


# ---- models --------------------------------------------------------------------------------------------------------


def head_of(native_class_name: str, family: Family) -> str:
    """Our head ("ForCausalLM", ..., "Model") for a native class."""
    for auto_name in (name for name in HEAD_OF_AUTO if name in auto_map(family.stack)):
        names = getattr(modeling_auto, registration.NAME_TABLES[auto_name]).get(family.name, ())
        if native_class_name in ((names,) if isinstance(names, str) else names):
            return HEAD_OF_AUTO[auto_name]
    if native_class_name == modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(family.name):
        return "ForMaskedLM"  # BERT and ALBERT, whose second objective (next sentence, sentence order) is left out
    raise InteropError(f"{native_class_name}: the core has no head for this class.")


HEAD_OF_AUTO = {
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
    "AutoModelForMultipleChoice": "ForMultipleChoice",
    "AutoModel": "Model",
}


def import_model(family: Family, native: PreTrainedModel) -> tuple[PreTrainedModel, list[str]]:
    """Our model with a native model's weights (tensors whose layout is the same are shared, not copied), and the names
    of the native weights that have no place in it."""
    head = head_of(type(native).__name__, family)
    _check_head(family, head)
    config = to_our_config(family, native.config, **tying(family, native))
    _, module = registration.STACKS[family.stack]
    prefix = "LLM" + "".join(part.capitalize() for part in family.stack.split("_"))
    model = _empty(getattr(module, prefix + head), config)
    source, aliases = native.state_dict(), _aliases(native)
    state, used = {}, set()
    for entry in plan(family, head, _untied(model), _base_prefix(native), config):
        absent = [name for name in entry.native if name not in source]
        if absent:
            raise InteropError(f"{family.name} checkpoint lacks {', '.join(absent)}.")
        tensors = entry.op.to_ours([source[name] for name in entry.native], _stack_config(config, entry.half))
        state.update(zip(entry.ours, tensors, strict=True))
        used.update(aliases.get(name, name) for name in entry.native)
    unused = [name for name in source if name not in used and name not in aliases]
    for name in list(unused):
        if (compute := _match(family.derived, name)) is not None:
            _check_derived(family, name, source[name], compute)
            unused.remove(name)
    unknown = [name for name in unused if not unused_pattern(family, name)]
    if unknown:
        raise InteropError(f"{family.name} checkpoint has weights that the core has no place for: {unknown[:8]}.")
    _load(model, state, f"import of {type(native).__name__}")
    _carry_generation_config(native, model)
    return model, unused


def _carry_generation_config(source: PreTrainedModel, target: PreTrainedModel) -> None:
    if source.can_generate() and target.can_generate():
        target.generation_config = source.generation_config


def _base_prefix(native: PreTrainedModel) -> str:
    """Where the base model is in a native model (T5's language models are their own base)."""
    return "" if native.base_model is native else native.base_model_prefix


def _match(table: Mapping[str, Any], name: str):
    return next((value for pattern, value in table.items() if re.search(pattern, name)), None)


def unused_pattern(family: Family, name: str) -> str | None:
    """The pattern by which a family lists a native weight as unused, if it does."""
    return next((pattern for pattern in family.unused if re.search(pattern, name)), None)


def _check_derived(family: Family, name: str, tensor: torch.Tensor, compute) -> None:
    expected = compute(tensor.shape).to(tensor)
    if not torch.allclose(tensor, expected, rtol=0, atol=1e-3 if tensor.dtype.itemsize < 4 else 1e-6):
        raise InteropError(f"{family.name} checkpoint: {name} is not the table that the architecture computes.")


def head_name(model: PreTrainedModel) -> str:
    """The head of one of our models ("ForCausalLM", ..., "Model")."""
    return type(model).__name__.split(type(model.config).__name__.removesuffix("Config"))[1]


def export_model(family: Family, model: PreTrainedModel) -> PreTrainedModel:
    """The native model of one of ours."""
    head = head_name(model)
    native_config = to_native_config(family, model.config, head)
    arguments = family.base_arguments if head == "Model" else {}
    native = _empty(_native_class(family, head, native_config), native_config, **arguments)
    if not tying(family, model).get("tie_word_embeddings", True) and tying(family, native)["tie_word_embeddings"]:
        _untie_head(native)
    source, aliases = _untied(model), _aliases(native)
    state = {}
    for entry in plan(family, head, source, _base_prefix(native), model.config):
        config = _stack_config(model.config, entry.half)
        tensors = entry.op.to_native([source[name] for name in entry.ours], config)
        state.update(zip((aliases.get(name, name) for name in entry.native), tensors, strict=True))
    for name, tensor in _untied(native).items():
        if name in state:
            continue
        if (compute := _match(family.derived, name)) is not None:
            state[name] = compute(tensor.shape).to(source[next(iter(source))])
        elif unused_pattern(family, name):
            state[name] = torch.zeros_like(tensor)  # never read
    _load(native, state, f"export to {family.name}")
    _carry_generation_config(model, native)
    return native


def _native_class(family: Family, head: str, config: PreTrainedConfig) -> type:
    for auto_name, ours in HEAD_OF_AUTO.items():
        if ours == head:
            mapping = getattr(transformers, auto_name)._model_mapping
            if type(config) in mapping:
                found = mapping[type(config)]
                return found[0] if isinstance(found, tuple) else found
    raise InteropError(f"{family.name} has no class for {head!r}.")
