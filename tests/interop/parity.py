"""Is an imported model the native one? The checks that every family must pass, in float32, on tiny random models.

Every parameter and persistent buffer is redrawn at random, since zero biases and unit norms prove nothing. A case is a
set of native configuration switches; `assert_switches_matter` shows that forgetting what they set would be noticed.
"""

import copy
import re
from operator import attrgetter

import torch
import transformers

from hf_llm.interop import FAMILIES, convert, weights
from hf_llm.interop.configurations import matters
from hf_llm.interop.meaning import architecture


TOLERANCE = 1e-5
VOCABULARY = 61
BOOKKEEPING = ("architectures", "transformers_version", "_name_or_path", "dtype")


def native_model(family: str, head: str = "auto", seed: int = 0, attention: str = "sdpa", **overrides):
    """A random native model. head: one of ours ("ForCausalLM", ...); "auto" is the family's first."""
    config = transformers.CONFIG_MAPPING[family](**copy.deepcopy(overrides))
    head = next(iter(FAMILIES[family].heads)) if head == "auto" else head
    config._attn_implementation = attention
    model = convert.native_class(FAMILIES[family], head)(config).eval()
    redraw(model, seed)
    return model


@torch.no_grad()
def redraw(model, seed: int = 0, tie: bool = True) -> None:
    """New values for every parameter and persistent floating-point buffer: norms around 1, the rest around 0. T5's
    queries, whose products with keys nothing scales, are small as T5 draws them: float32 would be none too exact for
    either side."""
    generator = torch.Generator().manual_seed(seed)
    computed = FAMILIES[model.config.model_type].derived
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if tensor.is_floating_point() and not any(re.search(pattern, name) for pattern in computed):
            around = 1.0 if re.search(r"(norm|\bln_).*weight$", name.lower()) else 0.0
            std = 0.25 * (model.config.d_kv**-0.5 if name.endswith("Attention.q.weight") else 1.0)
            tensor.copy_(around + std * torch.randn(tensor.shape, generator=generator))
    if tie:
        model.tie_weights()


def inputs(batch: int = 2, length: int = 11, low: int = 3, seed: int = 0) -> torch.LongTensor:
    return torch.randint(low, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def imported(native):
    """Our model of a native one."""
    return convert.import_model(FAMILIES[native.config.model_type], native)[0].eval()


def assert_close(ours: torch.Tensor, native: torch.Tensor, what: str, where: torch.Tensor | None = None) -> None:
    difference = (ours - native).abs()
    difference = difference if where is None else difference[where.bool()]
    scale = max(1.0, native.abs().max().item())
    assert difference.max().item() <= TOLERANCE * scale, f"{what}: differs by {difference.max().item():.2e}"


@torch.no_grad()
def assert_same_logits(native, ours, where: torch.Tensor | None = None, **extra) -> None:
    """Without a mask, and with padding on either side, compared at the real tokens (or `where`, if it is given)."""
    ids = inputs()
    assert_close(ours(ids, **extra).logits, native(ids, **extra).logits, "logits")
    for side in ("right", "left"):
        mask = torch.ones_like(ids)
        padded = ids.clone()
        gap = slice(-4, None) if side == "right" else slice(0, 4)
        mask[1, gap] = 0
        padded[1, gap] = native.config.get_text_config().pad_token_id or 0
        compared = None if "decoder_input_ids" in extra else mask if where is None else where
        got, wanted = (m(padded, attention_mask=mask, **extra).logits for m in (ours, native))
        assert_close(got, wanted, f"logits, padded on the {side}", compared)


@torch.no_grad()
def assert_same_loss(native, ours, **extra) -> None:
    labels = inputs(seed=1)
    got, wanted = (m(inputs(), labels=labels, **extra).loss for m in (ours, native))
    assert abs(got - wanted) <= TOLERANCE * max(1.0, wanted.item()), f"loss {got} and {wanted}"


@torch.no_grad()
def assert_same_generation(native, ours) -> None:
    """With a cache: greedy and beam search give the same tokens, for a batch padded on the left too."""
    ids = inputs(length=6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    for options in ({}, {"num_beams": 3}):
        arguments = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": mask} | options
        got, wanted = (m.generate(ids, pad_token_id=0, **arguments) for m in (ours, native))
        assert torch.equal(got, wanted), f"generate({options}): {got.tolist()} and {wanted.tolist()}"


def assert_round_trip(native, ours):
    """Import, then export: the same class, names and bits, and a head that is tied if it was. Returns the export."""
    family = FAMILIES[native.config.model_type]
    assert weights.tying(family, ours) == weights.tying(family, native)
    back = convert.export_model(family, ours)
    assert type(back) is type(native)
    before, after = (_read_weights(family, model) for model in (native, back))
    assert sorted(before) == sorted(after)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    return back


def _read_weights(family, model) -> dict[str, torch.Tensor]:
    """The weights of a native model, but for those that the family lists as never read."""
    return {n: t for n, t in model.state_dict().items() if not any(re.search(p, n) for p in family.unused)}


def assert_same_configuration(native, back) -> None:
    """Every field of a native model comes back, but for those that its family lists as changing nothing."""
    ignored = {*FAMILIES[native.config.model_type].ignores, *BOOKKEEPING}

    def said(fields: dict) -> dict:
        return {k: said(v) if isinstance(v, dict) else v for k, v in fields.items() if k not in ignored}

    before, after = (said(model.config.to_dict()) for model in (native, back))
    differing = {name: (before.get(name), after.get(name)) for name in before if before[name] != after.get(name)}
    assert not differing, f"import and export change {differing}"


def assert_saved_opens(native, ours, folder):
    """The export, saved, is opened by the native class with the native weights. Returns what was opened."""
    convert.export_model(FAMILIES[native.config.model_type], ours).save_pretrained(folder)
    reopened = type(native).from_pretrained(folder).eval()
    for name, tensor in native.state_dict().items():
        assert torch.equal(tensor, reopened.state_dict()[name]), name
    return reopened


@torch.no_grad()
def assert_switches_matter(native, ours, base_config, **extra) -> None:
    """Each of our fields that a case sets apart from the base case changes weights or logits if it is put back.

    Fields that cannot be put back alone (a window, and the layers that have it) are put back together.
    """
    fields, before = architecture(ours.config), architecture(base_config)
    changed = [name for name in fields if name not in before or fields[name] != before[name]]
    changed = [name for name in changed if attrgetter(name)(ours.config) != attrgetter(name)(base_config)]
    assert changed, "the case sets nothing that the base case does not"
    changed = [name for name in changed if not name.endswith("tie_word_embeddings")]  # see assert_round_trip
    family, head = FAMILIES[native.config.model_type], convert.head_name(ours)
    changed = [name for name in changed if matters(family, head, name)]
    wanted = native(inputs(), **extra).logits
    coupled = []
    mutants = {(name,): _mutant(ours, base_config, [name]) for name in changed}
    coupled = tuple(name for (name,), mutant in mutants.items() if mutant is None)
    if len(coupled) > 1:
        mutants[coupled] = _mutant(ours, base_config, coupled)
    for names, mutant in mutants.items():
        if mutant is not None:
            difference = (mutant(inputs(), **extra).logits - wanted).abs().max().item()
            assert difference > 10 * TOLERANCE, f"putting back {', '.join(names)} changes nothing"


def _mutant(ours, base_config, names):
    """Our model with fields put back, or None if there is no such model with the same weights: that is noticed too."""
    config = copy.deepcopy(ours.config)
    for name in names:
        half, _, leaf = name.rpartition(".")
        setattr(getattr(config, half) if half else config, leaf, attrgetter(name)(base_config))
    try:
        mutant = weights.empty(type(ours), type(config).from_dict(config.to_dict()))
        mutant.load_state_dict(ours.state_dict())
    except Exception:
        return None
    if any(attrgetter(name)(mutant.config) == attrgetter(name)(ours.config) for name in names):
        return None  # made again from other fields
    return mutant.eval()
