"""Where each weight of an encoder or encoder-decoder comes from in the decoder that it starts from.

Names are canonical, so this is a short table: what has the same name is the same weight, in either half, and
cross-attention may start from self-attention.
"""

import re
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.configuration import LLMStackConfig
from ..models.norms import LayerNorm


CROSS_ATTENTION = ("self_attention", "zero", "random")
_CROSS = re.compile(r"^decoder\.(layers\.\d+)\.cross_attn(.*)")  # its norms as well
_HALF = re.compile(r"^(encoder|decoder)\.")
RELATIVE_BIAS = "relative_attention_bias.weight"
VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "lm_head.bias")  # a row for each token


def origins(names: Iterable[str], cross_attention: str = "self_attention") -> dict[str, str | None]:
    """For each weight of a model, named as in one with a head, the decoder's weight that it starts from, or `None` for
    one that keeps its own initialisation.

    cross_attention: see `check_cross_attention`.
    """
    found = {}
    for name in names:
        prefix, body = ("model.", name.removeprefix("model.")) if name.startswith("model.") else ("", name)
        cross = _CROSS.match(body)
        if cross:
            found[name] = None if cross_attention == "random" else f"{prefix}{cross[1]}.self_attn{cross[2]}"
        elif prefix or body in VOCABULARY:
            found[name] = prefix + _HALF.sub("", body)
        else:
            found[name] = None  # task heads, and the transform before a masked language model's head
    return found


def check_cross_attention(config: LLMStackConfig, choice: str) -> None:
    """Check what cross-attention is to start from, for a decoder with this configuration.

    `self_attention`  a copy of the same layer's self-attention (https://arxiv.org/abs/2504.06225)
    `zero`            the same, but its output is zero at first: the decoder half computes what the decoder did
    `random`          the model's own initialisation (https://arxiv.org/abs/1907.12461)

    Raises:
        ValueError: unknown, or impossible with this configuration.
    """
    if choice not in CROSS_ATTENTION:
        raise ValueError(f"`cross_attention={choice!r}` is not known. Legal values: {', '.join(CROSS_ATTENTION)}.")
    if choice == "random":
        return
    if config.output_size != config.hidden_size:
        raise ValueError(
            f"`cross_attention={choice!r}`: the encoder's output has `embedding_size={config.embedding_size}` "
            f"dimensions, but self-attention reads `hidden_size={config.hidden_size}`. Use cross_attention='random'."
        )
    for field, value in (("norm_placement", "post"), ("residual_from_norm", True)):
        if choice == "zero" and getattr(config, field) == value:
            raise ValueError(
                f"`cross_attention='zero'` cannot leave a decoder with `{field}={value!r}` as it was, for another "
                "norm comes into its residual stream. Use 'self_attention' or 'random'."
            )


@torch.no_grad()
def move_weights(
    decoder: PreTrainedModel, model: PreTrainedModel, cross_attention: str, known_tokens: int | None = None
) -> list[str]:
    """Copy a decoder's weights to a model of another stack that has its sizes, or a larger vocabulary.

    known_tokens: how many ids the decoder was trained with, `None` for all that it has. Rows from there on start from
        the mean of those before, in embeddings and head (https://nlp.stanford.edu/~johnhew/vocab-expansion.html), also
        where they are not new: many vocabularies are padded with unused rows.

    Returns:
        The names of the model's weights that keep their own initialisation.

    Raises:
        ValueError: weights of the decoder's body have no place in the model, or shapes disagree.
    """
    weights = {_bare(decoder, name): weight for name, weight in decoder.state_dict().items()}
    state, ties = model.state_dict(), model.all_tied_weights_keys
    targets = {_bare(model, name): weight for name, weight in state.items() if name not in ties}
    table = origins(targets, cross_attention)
    homeless = [name for name in weights if name.startswith("model.") and name not in table.values()]
    if homeless:
        raise ValueError(f"{type(model).__name__} has no place for {', '.join(homeless)} of the decoder.")
    kept = []
    for name, target in targets.items():
        source = weights.get(table[name])
        if source is None:
            kept.append(name)
            continue
        if name.endswith(VOCABULARY):
            known = len(source) if known_tokens is None else min(known_tokens, len(source))
            unknown = source[:known].float().mean(0, keepdim=True).to(source.dtype)
            source = torch.cat((source[:known], unknown.expand(max(len(target) - known, 0), *source.shape[1:])))
        elif name.endswith(RELATIVE_BIAS) and len(target) == 2 * len(source):
            source = torch.cat((source, source))  # what lies ahead starts with the bias of what lies as far back
        if source.shape != target.shape:
            raise ValueError(
                f"{name} has the shape {tuple(target.shape)}, but {table[name]} of the decoder {tuple(source.shape)}: "
                "sizes cannot be changed on the way."
            )
        target.copy_(source)
    return kept


def _bare(model: PreTrainedModel, name: str) -> str:
    """A weight's name as it is in a model with a head, whether or not this one has a head."""
    return name if model.base_model is not model else f"model.{name}"


@torch.no_grad()
def silence(layer: nn.Module, branch: str) -> None:
    """Make what a branch of a layer ("self_attn", "cross_attn", "mlp") writes into the residual stream zero: by the
    norm on it, where there is one with a weight, or else by its last projections (which is how a gradient reaches it
    that is neither zero nor huge)."""
    norm = getattr(layer, f"{branch}_{layer.placement.output}", None)
    if isinstance(norm, LayerNorm) and norm.weight is not None:
        nn.init.constant_(norm.weight, norm.weight_init - 1.0)
        if norm.bias is not None:
            nn.init.zeros_(norm.bias)
        return
    for module in getattr(layer, branch).modules():
        for name, parameter in module.named_parameters(recurse=False):
            # of experts, whose matrices are one parameter, by its name
            if getattr(module, "writes_residual", False) or name.startswith("down_proj"):
                nn.init.zeros_(parameter)
