"""One transformer layer: self-attention, cross-attention (decoders of encoder-decoders) and feed-forward, wired by
`norm_placement`:

    pre        x + f(norm(x))                          GPT-2, Llama
    post       norm(x + f(x))                          the original transformer, BERT
    sandwich   x + output_norm(f(norm(x)))             Gemma 2
    branch     x + norm(f(x))                          OLMo 2
    parallel   x + attn(norm(x)) + mlp(norm'(x))       GPT-J (one norm), GPT-NeoX (norm' is another)
"""

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import ATTENTIONS, Attention
from .feedforward import get_feed_forward
from .norms import get_norm
from .plain import written_here


@written_here
class TransformerLayer(GradientCheckpointingLayer):
    """hidden_states (batch, seq, hidden) -> the same shape. See the module's docstring for the wiring."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.placement = config.norm_placement
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

        branches = ["self_attn", "mlp"] if self.cross_attn is None else ["self_attn", "cross_attn", "mlp"]
        for branch in branches:
            shares = self.placement == "parallel" and branch == "mlp" and config.parallel_norms == 1
            skips = branch == "self_attn" and layer_idx == 0 and not config.first_layer_norm
            self.add_module(f"{branch}_norm", None if shares or skips else get_norm(config))
            if self.placement == "sandwich":
                self.add_module(f"{branch}_output_norm", get_norm(config))

    def _add(self, residual: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.residual_dropout:
            output = F.dropout(output, self.residual_dropout, self.training)
        if self.residual_multiplier is not None:
            output = output * self.residual_multiplier
        return residual + output

    def _branch(self, name: str, hidden_states: torch.Tensor, function) -> torch.Tensor:
        """One residual branch, its norms where `norm_placement` puts them."""
        inputs, norm = hidden_states, getattr(self, f"{name}_norm")
        if norm is not None and self.placement in ("pre", "sandwich"):
            inputs = norm(hidden_states)
        output = function(inputs)
        if self.placement == "sandwich":
            output = getattr(self, f"{name}_output_norm")(output)
        elif self.placement == "branch" and norm is not None:
            output = norm(output)
        hidden_states = self._add(inputs if self.residual_from_norm else hidden_states, output)
        return norm(hidden_states) if self.placement == "post" and norm is not None else hidden_states

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

        attends_across = self.cross_attn is not None and encoder_hidden_states is not None
        if self.placement == "parallel":
            inputs = hidden_states if self.self_attn_norm is None else self.self_attn_norm(hidden_states)
            output = self_attention(inputs)
            if attends_across:
                output = output + cross_attention(self.cross_attn_norm(hidden_states))
            mlp_inputs = inputs if self.mlp_norm is None else self.mlp_norm(hidden_states)
            residual = inputs if self.residual_from_norm else hidden_states
            return self._add(residual, output + self.mlp(mlp_inputs))

        hidden_states = self._branch("self_attn", hidden_states, self_attention)
        if attends_across:
            hidden_states = self._branch("cross_attn", hidden_states, cross_attention)
        return self._branch("mlp", hidden_states, self.mlp)
