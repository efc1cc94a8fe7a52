"""One transformer layer: self-attention, cross-attention (decoders of encoder-decoders) and feed-forward, wired by
`norm_placement`, a row of `PLACEMENTS`."""

from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import ATTENTIONS, Attention
from .feedforward import get_feed_forward
from .norms import get_norm
from .table import Table


class Placement(NamedTuple):
    """
    Where the norms of a residual branch x + f(x) stand. Each is named by what follows the branch's name (`"norm"` is
    `self_attn_norm`, `mlp_norm`, ...), or `None` where there is no norm.

    Attributes:
        inputs: x + f(norm(x)).
        output: x + norm(f(x)).
        sum: norm(x + f(x)).
        parallel: all branches read the layer's input, x + attn(norm(x)) + mlp(norm'(x)), instead of one the sum of the
            other. With `parallel_norms=1` the feed-forward's inputs are those of self-attention.
    """

    inputs: str | None = None
    output: str | None = None
    sum: str | None = None
    parallel: bool = False


PLACEMENTS = Table(
    "norm_placement",
    pre=Placement(inputs="norm"),  # GPT-2, Llama
    post=Placement(sum="norm"),  # the original transformer, BERT
    sandwich=Placement(inputs="norm", output="output_norm"),  # Gemma 2
    branch=Placement(output="norm"),  # OLMo 2
    parallel=Placement(inputs="norm", parallel=True),  # GPT-J (one norm), GPT-NeoX (two)
)


class TransformerLayer(GradientCheckpointingLayer):
    """hidden_states (batch, seq, hidden) -> the same shape, wired as `Placement` says."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.placement: Placement = PLACEMENTS[config.norm_placement]
        self.residual_dropout = config.residual_dropout
        self.residual_multiplier = config.residual_multiplier
        self.residual_from_norm = config.residual_from_norm

        attention = ATTENTIONS[config.attention_type]
        self.self_attn = attention(config, layer_idx, is_causal)
        self.cross_attn = None
        if getattr(config, "add_cross_attention", False):
            attention = Attention if attention.self_attention_only else attention
            self.cross_attn = attention(config, layer_idx, is_causal=False, is_cross_attention=True)
        self.mlp = get_feed_forward(config, layer_idx)

        missing = set()  # norms of inputs that this layer does without
        if self.placement.parallel and config.parallel_norms == 1:
            missing.add("mlp")
        if layer_idx == 0 and not config.first_layer_norm:
            missing.add("self_attn")
        for branch in ("self_attn", "mlp") if self.cross_attn is None else ("self_attn", "cross_attn", "mlp"):
            for place, name in zip(("inputs", "output", "sum"), self.placement):
                if name is not None:
                    absent = place == "inputs" and branch in missing
                    self.add_module(f"{branch}_{name}", None if absent else get_norm(config))

    def _norm(self, branch: str, name: str | None, states: torch.Tensor) -> torch.Tensor:
        norm = None if name is None else getattr(self, f"{branch}_{name}")
        return states if norm is None else norm(states)

    def _add(self, residual: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.residual_dropout:
            output = F.dropout(output, self.residual_dropout, self.training)
        if self.residual_multiplier is not None:
            output = output * self.residual_multiplier
        return residual + output

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values=None,
        cross_attention_kwargs: dict | None = None,
        **kwargs,
    ) -> torch.Tensor:
        def self_attention(states):
            return self.self_attn(
                states,
                attention_mask,
                position_bias,
                position_embeddings=position_embeddings,
                past_key_values=getattr(past_key_values, "self_attention_cache", past_key_values),
                **kwargs,
            )[0]

        def cross_attention(states):
            return self.cross_attn(
                states,
                encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                past_key_values=past_key_values,
                layer_idx=kwargs.get("layer_idx"),
                **(cross_attention_kwargs or {}),
            )[0]

        branches = {"self_attn": self_attention, "cross_attn": cross_attention, "mlp": self.mlp}
        if self.cross_attn is None or encoder_hidden_states is None:
            del branches["cross_attn"]
        run = self._run_parallel if self.placement.parallel else self._run_in_turn
        return run(branches, hidden_states)

    def _run_in_turn(self, branches: dict, hidden_states: torch.Tensor) -> torch.Tensor:
        place = self.placement
        for name, function in branches.items():
            inputs = self._norm(name, place.inputs, hidden_states)
            output = self._norm(name, place.output, function(inputs))
            residual = inputs if self.residual_from_norm else hidden_states
            hidden_states = self._norm(name, place.sum, self._add(residual, output))
        return hidden_states

    def _run_parallel(self, branches: dict, hidden_states: torch.Tensor) -> torch.Tensor:
        place = self.placement
        first = self._norm("self_attn", place.inputs, hidden_states)
        total = None
        for name, function in branches.items():
            shared = name == "self_attn" or (place.inputs and getattr(self, f"{name}_{place.inputs}") is None)
            output = function(first if shared else self._norm(name, place.inputs, hidden_states))
            output = self._norm(name, place.output, output)
            total = output if total is None else total + output
        return self._norm("mlp", place.sum, self._add(first if self.residual_from_norm else hidden_states, total))
