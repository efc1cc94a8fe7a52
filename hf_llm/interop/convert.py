"""The engine: the weights of any family, both ways, by its table."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel

from .. import registration
from ..models.common import auto_map
from .configurations import InteropError, to_native_config, to_our_config
from .family import Family
from .ops import Op, rename
from .weights import FileMemory, Receiver, aliases, empty, tying, untie_head, untied


AUTO_CLASSES = {  # by our head
    "ForCausalLM": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "Model": "AutoModel",
}


# ---- names ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Weights that move together."""

    ours: tuple[str, ...]
    native: tuple[str, ...]
    op: Op
    half: str | None  # "encoder" or "decoder" of an encoder-decoder


@functools.cache
def _pattern(template: str) -> re.Pattern:
    """`layers.{i}.x` -> a pattern with the number as a group; a module's name also matches what is below it."""
    escaped = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)")
    return re.compile(rf"^{escaped}(?P<rest>(\..+)?)$")


def _fill(template: str, match: re.Match) -> str:
    return template.replace("{i}", match.groupdict().get("i", "")) + match["rest"]


def _renamed(name: str, table: Mapping[str, str]) -> str:
    matches = ((native, _pattern(ours).match(name)) for ours, native in table.items())
    return next((_fill(native, match) for native, match in matches if match), name)


def plan(family: Family, head: str, our_names: Iterable[str], native_prefix: str, config) -> list[Entry]:
    """Which of our weights are which native ones, for a model with the given head ("Model" for none) and configuration
    (ours). Raises InteropError if the family has no such head."""
    check_head(family, head)
    weights = family.weights if isinstance(family.weights, Mapping) else family.weights(config)
    prefix = "" if head == "Model" else "model."
    native_prefix = native_prefix + "." if prefix and native_prefix else ""
    entries, done = [], set()
    for name in our_names:
        if name in done:
            continue
        in_base = name.startswith(prefix)
        ours_at, native_at = (prefix, native_prefix) if in_base else ("", "")
        body = name.removeprefix(ours_at)
        half = body.split(".", 1)[0] if in_base and family.stack == "encoder_decoder" else None
        rules = ((rule, _pattern(ours).match(body)) for rule in family.rules for ours in rule.ours)
        rule, match = next(((rule, match) for rule, match in rules if match), (None, None))
        if rule is None:
            native = native_at + _renamed(body, weights if in_base else family.heads[head])
            entries.append(Entry((name,), (native,), rename, half))
        else:
            native = rule.op.native_names(rule.native, stack_config(config, half))
            ours, native = (
                tuple(at + _fill(template, match) for template in templates)
                for at, templates in ((ours_at, rule.ours), (native_at, native))
            )
            entries.append(Entry(ours, native, rule.op, half))
        done.update(entries[-1].ours)
    return entries


def stack_config(config, half: str | None):
    """The configuration of a half of an encoder-decoder, or of the only stack."""
    return config if half is None else getattr(config, half)


# ---- classes -------------------------------------------------------------------------------------------------------


def check_head(family: Family, head: str) -> None:
    """Raise InteropError if a family has no such head."""
    if head not in ("Model", *family.heads):
        raise InteropError(f"{family.name} has no head like {head!r}; it has {', '.join(family.heads) or 'none'}.")


def _native_classes(family: Family, auto_name: str) -> tuple[type, ...]:
    mapping = getattr(transformers, auto_name)._model_mapping
    found = mapping.get(transformers.CONFIG_MAPPING[family.name], ())
    return found if isinstance(found, tuple) else (found,)


def native_class(family: Family, head: str) -> type:
    """The native class for one of our heads. Raises InteropError if there is none."""
    for found in _native_classes(family, AUTO_CLASSES[head]):
        return found
    raise InteropError(f"{family.name} has no class for {head!r}.")


def head_of(native_class_name: str, family: Family) -> str:
    """Our head ("ForCausalLM", ..., "Model") for a native class. Raises InteropError if there is none."""
    autos = {head: auto for head, auto in AUTO_CLASSES.items() if auto in auto_map(family.stack)}
    # of BERT and ALBERT, whose second objective (next sentence, sentence order) is left out
    for head, auto_name in (*autos.items(), ("ForMaskedLM", "AutoModelForPreTraining")):
        if native_class_name in (found.__name__ for found in _native_classes(family, auto_name)):
            return head
    raise InteropError(f"{native_class_name}: the core has no head for this class.")


def our_class(family: Family, head: str) -> type:
    """Our class for a head ("ForCausalLM", ..., "Model")."""
    config_class, module = registration.STACKS[family.stack]
    return getattr(module, config_class.__name__.removesuffix("Config") + head)


def head_name(model: PreTrainedModel) -> str:
    """The head of one of our models ("ForCausalLM", ..., "Model")."""
    return type(model).__name__.split(type(model.config).__name__.removesuffix("Config"))[1]


# ---- models --------------------------------------------------------------------------------------------------------


def import_model(family: Family, native: PreTrainedModel, consume: bool = False) -> tuple[PreTrainedModel, list[str]]:
    """
    Our model with a native model's weights, and the names of the native weights that have no place in it.

    consume: the native model may be emptied, so that its memory is free as soon as it is converted. Otherwise it stays
        as it is, and tensors whose layout is the same are shared with it.
    """
    head = head_of(type(native).__name__, family)
    check_head(family, head)
    config = to_our_config(family, native.config, **tying(family, native))
    target = Receiver(empty(our_class(family, head), config), f"import of {type(native).__name__}")
    source, entries = untied(native), _entries(family, head, target.shapes, native, config)
    names = {name for entry in entries for name in entry.native}
    if absent := sorted(names - set(source)):
        raise InteropError(f"{family.name} checkpoint lacks {', '.join(absent[:8])}.")
    unused = _check_unused(family, {name: source[name] for name in source if name not in names})
    target.check_names(name for entry in entries for name in entry.ours)
    if consume:
        native.to_empty(device="meta")
    moves = [(e.native, e.ours, functools.partial(e.op.to_ours, config=stack_config(config, e.half))) for e in entries]
    _move(moves, source, target, consume)
    return _finish(native, target), unused


def export_model(family: Family, model: PreTrainedModel, consume: bool = False) -> PreTrainedModel:
    """The native model of one of ours, which is emptied if `consume` (see `import_model`)."""
    head, config = head_name(model), model.config
    if config.model_type != f"hf_llm_{family.stack}":
        raise InteropError(
            f"{family.name} is an architecture of {family.stack}s, and this model a {config.model_type}: leave --as "
            "out, and the nearest that can express it is chosen."
        )
    native_config = to_native_config(family, config, head)
    arguments = family.base_arguments if head == "Model" else {}
    native = empty(native_class(family, head), native_config, **arguments)
    if not tying(family, model).get("tie_word_embeddings", True) and tying(family, native)["tie_word_embeddings"]:
        untie_head(native)
    target, source = Receiver(native, f"export to {family.name}"), untied(model)
    entries = _entries(family, head, source, native, config)
    moved = {name for entry in entries for name in entry.native}
    lacking = {name: tensor for name, tensor in untied(native).items() if name not in moved}
    filled = _fill_in(family, lacking, next(iter(source.values())))
    target.check_names((*moved, *filled))
    for name, tensor in filled.items():
        target.assign(name, tensor)
    if consume:
        model.to_empty(device="meta")
    moves = [
        (e.ours, e.native, functools.partial(e.op.to_native, config=stack_config(config, e.half))) for e in entries
    ]
    _move(moves, source, target, consume)
    return _finish(model, target)


def base_prefix(native: PreTrainedModel) -> str:
    """Where the base model is in a native model (T5's language models are their own base)."""
    return "" if native.base_model is native else native.base_model_prefix


def _entries(family: Family, head: str, our_names: Iterable[str], native: PreTrainedModel, config) -> list[Entry]:
    """`plan`, with a tied weight of the native model under the name that it is tied to."""
    tied, entries = aliases(native), plan(family, head, our_names, base_prefix(native), config)
    return [dataclasses.replace(e, native=tuple(tied.get(name, name) for name in e.native)) for e in entries]


def _move(moves: list[tuple], source: dict[str, torch.Tensor], target: Receiver, consume: bool) -> None:
    """Convert weights of `source` one move after the other into `target`.

    moves: names in the source, names in the target, and the function from lists of tensors to such.
    consume: `source` is emptied, and its memory given back, on the way.
    """
    if offloaded := [name for name, tensor in source.items() if tensor.is_meta]:
        raise InteropError(f"{target.what}: {offloaded[0]} is offloaded. Load the model without `device_map`.")
    uses, memory = Counter(name for sources, _, _ in moves for name in sources), FileMemory()
    for sources, targets, convert in moves:
        tensors = [source[name] for name in sources]
        for name, tensor in zip(targets, convert(tensors), strict=True):
            target.assign(name, tensor)
        uses.subtract(sources)
        for name, tensor in zip(sources, tensors):
            if consume and not uses[name]:
                memory.give_back(tensor)
                del source[name]


def _finish(source: PreTrainedModel, target: Receiver) -> PreTrainedModel:
    """The model, with the generation configuration of the one that it is made from."""
    model = target.finish()
    if source.can_generate() and model.can_generate():
        model.generation_config = source.generation_config
    return model


def _check_unused(family: Family, left: dict[str, torch.Tensor]) -> list[str]:
    """The names of native weights that are left over and that the family lists; those that it does not are an error,
    and what the architecture computes must be as computed."""
    listed, unknown = [], []
    for name, tensor in left.items():
        if (compute := _derived(family, name)) is not None:
            expected = compute(tensor.shape).to(tensor)
            if not torch.allclose(tensor, expected, rtol=0, atol=1e-3 if tensor.dtype.itemsize < 4 else 1e-6):
                raise InteropError(
                    f"{family.name} checkpoint: {name} is not the table that the architecture computes."
                )
        else:
            (listed if is_unused(family, name) else unknown).append(name)
    if unknown:
        raise InteropError(f"{family.name} checkpoint has weights that the core has no place for: {unknown[:8]}.")
    return listed


def _fill_in(family: Family, lacking: dict[str, torch.Tensor], like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values for native weights that none of ours is: what the architecture computes, zeros for what it never reads.
    Of the dtype and on the device of `like`."""
    filled = {}
    for name, tensor in lacking.items():
        if (compute := _derived(family, name)) is not None:
            filled[name] = compute(tensor.shape).to(like)
        elif is_unused(family, name):
            filled[name] = torch.zeros(tensor.shape).to(like)
    return filled


def _derived(family: Family, name: str) -> Callable | None:
    """What computes a native weight that the family says is computed."""
    return next((compute for pattern, compute in family.derived.items() if re.search(pattern, name)), None)


def is_unused(family: Family, name: str) -> bool:
    """Whether a family lists a native weight as unused."""
    return any(re.search(pattern, name) for pattern in family.unused)
