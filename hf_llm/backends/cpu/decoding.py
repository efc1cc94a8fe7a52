"""Decoding: the layers of a stack for one token of each text, without calling their modules.

Where a few texts are continued on a CPU, the kernels of a layer are so small that the calls of its modules, and the
conditions that these check for every input, take about a third of the time. `make_token_steps` checks them once, when
`generate` begins to add tokens (greedily or by sampling; beams keep to the layers). A step is read off the layer: its
row of `PLACEMENTS`, and attention, feed-forward and norms of the very classes in `KNOWN` (see plain.py), so that the
same kernels get the same numbers, and its output is that of the layer to the bit. Where a stack has any other layer,
its layers are called.

Shapes: B batch, H query heads, K key-value heads, S key length, D head_dim.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_llm.models.attention import FASTER_ATTENTION, Attention
from hf_llm.models.feedforward import FeedForward, GatedFeedForward
from hf_llm.models.layer import Placement, TransformerLayer
from hf_llm.models.norms import LayerNorm, RMSNorm
from hf_llm.models.operators import OPERATORS
from hf_llm.models.positions import turn
from hf_llm.models.visibility import AttentionInputs

from ..plain import all_plain_on_cpu
from .attention import attend_to_cache, cpu_attention_forward
from .functions import cpu_feed_forward, cpu_rms_norm, cpu_rotate_halves, norm_constants, normalise


Function = Callable[[torch.Tensor], torch.Tensor]

# Arguments that cannot change the result for a single query without experts, whose mask says what it sees.
HARMLESS = {"use_cache", "is_causal", "output_router_logits"}
# The operators that a step computes without asking the table.
FORMS = {"rms_norm": cpu_rms_norm, "rotate_halves": cpu_rotate_halves, "feed_forward": cpu_feed_forward}


def _forms_are_ours() -> bool:
    """Whether the functions that the layers would call are those that steps stand for."""
    return (
        ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
        and FASTER_ATTENTION.get(sdpa_attention_forward) is cpu_attention_forward
        and all(OPERATORS[name].get("cpu") is form for name, form in FORMS.items())
    )


def _attends_plainly(attention: Attention) -> bool:
    config = attention.config
    return (
        config._attn_implementation == "sdpa"
        and config.qk_norm in (None, "head")
        and config.rope_interleaved is False
        and set(config.rotary_dim.values()) <= {config.head_dim}
        and not (config.attention_sinks or config.scale_attention_by_inverse_layer_idx)
        and not (attention.training and config.attention_dropout)
        and (config.attn_logit_softcapping, config.clip_qkv, attention.position_bias) == (None, None, None)
    )


def _drops(layer: TransformerLayer) -> bool:
    """Whether dropout or gradient checkpointing is active."""
    mlp = layer.mlp
    return bool(
        (layer.training and (layer.residual_dropout or layer.gradient_checkpointing)) or (mlp.training and mlp.dropout)
    )


def _has_a_step(layer: TransformerLayer) -> bool:
    """Whether a step computes all that the layer computes."""
    return (
        all_plain_on_cpu(layer)
        and type(layer.placement) is Placement
        and not layer.placement.parallel
        and not _drops(layer)
        and all(_attends_plainly(attention) for attention in (layer.self_attn, layer.cross_attn) if attention)
    )


def _norm(norm: LayerNorm | None) -> Function | None:
    if norm is None:
        return None
    if not isinstance(norm, RMSNorm) or norm.weight is None or norm.weight.dtype == torch.float64:
        return norm.forward
    factor, floor = norm_constants(norm.scale(), norm.eps)
    return lambda states: normalise(states, factor, floor)


def _linear(projection: nn.Linear) -> Function:
    """Of states (B, in), as a product of matrices: `F.linear` would ask first whether it is one."""
    weight, bias = projection.weight.t(), projection.bias
    if bias is None:
        return lambda states: torch.mm(states, weight)
    return lambda states: torch.addmm(bias, states, weight)


def _attention(attention: Attention, layer_idx: int) -> Callable:
    """Of states (B, hidden), with a mask or `None`, the cache of what they attend to, and cos and sin or `None`.
    Cross-attention reads its cache; self-attention adds the token to it first."""
    query_of, norm_query, project = _linear(attention.q_proj), _norm(attention.q_norm), _linear(attention.o_proj)
    key_of, norm_key, value_of = _linear(attention.k_proj), _norm(attention.k_norm), _linear(attention.v_proj)
    width, scaling, crosses = attention.head_dim, attention.scaling, attention.is_cross_attention

    def attend(states: torch.Tensor, mask: torch.Tensor | None, cache: Cache, rotation=None) -> torch.Tensor:
        batch = states.shape[0]
        query = query_of(states).view(batch, -1, 1, width)
        if norm_query is not None:
            query = norm_query(query)
        if rotation is not None:
            query = turn(query, *rotation)
        if crosses:
            source = cache.layers[layer_idx]
            key, value = source.keys, source.values
        else:
            key, value = key_of(states).view(batch, -1, 1, width), value_of(states).view(batch, -1, 1, width)
            if norm_key is not None:
                key = norm_key(key)
            if rotation is not None:
                key = turn(key, *rotation)
            key, value = cache.update(key, value, layer_idx)
        return project(attend_to_cache(query, key, value, mask, scaling).view(batch, -1))

    return attend


def _feed_forward(mlp: FeedForward) -> Function:
    act_fn, up, down = mlp.act_fn.forward, _linear(mlp.up_proj), _linear(mlp.down_proj)
    if not isinstance(mlp, GatedFeedForward):
        return lambda states: down(act_fn(up(states)))
    combine, gate = mlp.gate, _linear(mlp.gate_proj)
    return lambda states: down(combine(gate(states), up(states), act_fn))


def _branch(layer: TransformerLayer, branch: str, function: Callable) -> Callable:
    """A residual branch and its norms: `TransformerLayer._run_in_turn`."""
    before, inside, after = (name and _norm(getattr(layer, f"{branch}_{name}")) for name in layer.placement[:3])
    multiplier, from_norm = layer.residual_multiplier, layer.residual_from_norm

    def run(states: torch.Tensor, *arguments) -> torch.Tensor:
        inputs = states if before is None else before(states)
        output = function(inputs, *arguments)
        if inside is not None:
            output = inside(output)
        if multiplier is not None:
            output = output * multiplier
        output = (inputs if from_norm else states) + output
        return output if after is None else after(output)

    return run


@dataclass(frozen=True)
class _Step:
    """A layer, with what differs between layers."""

    layer_type: str
    rotates: bool
    attend: Callable
    attend_across: Callable | None
    feed: Callable

    @classmethod
    def make(cls, layer: TransformerLayer, layer_idx: int, layer_type: str, rotates: bool) -> "_Step":
        across = None
        if layer.cross_attn is not None:
            across = _branch(layer, "cross_attn", _attention(layer.cross_attn, layer_idx))
        attend = _branch(layer, "self_attn", _attention(layer.self_attn, layer_idx))
        return cls(layer_type, rotates, attend, across, _branch(layer, "mlp", _feed_forward(layer.mlp)))


class TokenSteps:
    """The layers of a stack for one token of each text."""

    def __init__(self, steps: list[_Step]):
        self.steps = steps
        self.attends_across = steps[0].attend_across is not None

    def fit(
        self,
        hidden_states: torch.Tensor,
        attention: dict[str, AttentionInputs],
        cross_attention: AttentionInputs,
        cache: Cache | None,
        encoder_hidden_states: torch.Tensor | None,
        keywords: dict,
    ) -> bool:
        """Whether the inputs of `TransformerStack.run_layers` are those of a token and ask nothing else."""
        return (
            hidden_states.shape[1] == 1
            and cache is not None
            and (encoder_hidden_states is not None) == isinstance(cache, EncoderDecoderCache) == self.attends_across
            and (not self.attends_across or set(cache.is_updated.values()) == {True})  # all of the source is there
            and not cross_attention.keywords
            and not any(inputs.keywords or inputs.bias is not None for inputs in attention.values())
            and keywords.keys() <= HARMLESS
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )

    def __call__(
        self,
        hidden_states: torch.Tensor,
        rotations: dict[str, tuple[torch.Tensor, torch.Tensor]],
        attention: dict[str, AttentionInputs],
        cross_attention: AttentionInputs,
        cache: Cache,
        *_,
    ) -> torch.Tensor:
        """(B, 1, hidden) -> the same."""
        states = hidden_states[:, 0]
        self_cache = cache.self_attention_cache if self.attends_across else cache
        for step in self.steps:
            layer_type = step.layer_type
            rotation = rotations.get(layer_type) if step.rotates else None
            states = step.attend(states, attention[layer_type].mask, self_cache, rotation)
            if step.attend_across is not None:
                states = step.attend_across(states, cross_attention.mask, cache.cross_attention_cache)
            states = step.feed(states)
        return states[:, None]


def make_token_steps(stack: nn.Module) -> TokenSteps | None:
    """The steps of a `TransformerStack` as it is now, or `None` if its layers compute more than steps do."""
    if not (_forms_are_ours() and all(map(_has_a_step, stack.layers))):
        return None
    layers = list(stack.layers)
    return TokenSteps([_Step.make(layers[place], i, *rest) for i, (place, *rest) in enumerate(stack.plan())])


# Steps are no part of a model: a copy of it has other weights, and a second thread generates for itself.
_STEPS: ContextVar[dict[nn.Module, TokenSteps | None] | None] = ContextVar("token_steps", default=None)


def token_steps(stack: nn.Module) -> TokenSteps | None:
    """The steps of a stack in this thread now."""
    return (_STEPS.get() or {}).get(stack)


@contextmanager
def cpu_decoding(stack: nn.Module) -> Iterator[None]:
    """See `hf_llm.models.operators.decoding`: the stack has steps inside."""
    outside = _STEPS.set({**(_STEPS.get() or {}), stack: make_token_steps(stack)})
    try:
        yield
    finally:
        _STEPS.reset(outside)


def cpu_decode_token(hidden_states: torch.Tensor, stack: nn.Module, rotations: dict, *inputs) -> torch.Tensor | None:
    """See `hf_llm.models.operators.decode_token`."""
    steps = token_steps(stack)
    fits = steps is not None and steps.fit(hidden_states, *inputs)
    return steps(hidden_states, rotations, *inputs) if fits else None
