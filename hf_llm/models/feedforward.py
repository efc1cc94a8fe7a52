"""Feed-forward layers: plain, gated, and mixture of experts.

Shapes: (batch, seq, hidden) -> (batch, seq, hidden); inside the experts T tokens, E experts, k chosen for each token.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from .operators import cast_once, operator
from .table import Table


@operator
def gate(gate_states: torch.Tensor, up_states: torch.Tensor, act_fn: nn.Module) -> torch.Tensor:
    """act(gate) * up."""
    return act_fn(gate_states) * up_states


@operator
def feed_forward(hidden_states: torch.Tensor, mlp: "FeedForward") -> torch.Tensor:
    """What `FeedForward` computes of hidden_states (..., hidden)."""
    return mlp.run(hidden_states)


class FeedForward(nn.Module):
    """
    down(act(up(x))).

    A subclass does not inherit the tensor-parallel plan: without one of its own, each rank holds all of it.
    """

    is_gated = False
    tp_plan = {"up_proj": "colwise", "down_proj": "rowwise"}

    def __init__(self, config: PreTrainedConfig, intermediate_size: int | None = None):
        super().__init__()
        width = intermediate_size or config.intermediate_size
        self.up_proj = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_residual = True
        self.act_fn = ACT2FN[config.hidden_act]
        self.dropout = config.activation_dropout

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.act_fn(self.up_proj(hidden_states))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return feed_forward(hidden_states, self)

    def run(self, hidden_states: torch.Tensor) -> torch.Tensor:
        activated = self.activate(hidden_states)
        if self.dropout:
            activated = F.dropout(activated, self.dropout, self.training)
        return self.down_proj(activated)


class GatedFeedForward(FeedForward):
    """down(act(gate(x)) * up(x)): SwiGLU, GeGLU, ... (https://arxiv.org/abs/2002.05202)."""

    is_gated = True
    tp_plan = {"gate_proj": "colwise", **FeedForward.tp_plan}

    def __init__(self, config: PreTrainedConfig, intermediate_size: int | None = None):
        super().__init__(config, intermediate_size)
        width = intermediate_size or config.intermediate_size
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.gate = _gate_function(config)

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = cast_once(hidden_states)
        return self.gate(self.gate_proj(hidden_states), self.up_proj(hidden_states), self.act_fn)


FEED_FORWARDS = Table("feed_forward", gated=GatedFeedForward, plain=FeedForward)


class _ClampedGate:
    """gpt-oss: (clamp(up) + 1) * g * sigmoid(alpha * g), g the gate clamped from above (its reference code)."""

    def __init__(self, limit: float | None, alpha: float | None):
        self.limit, self.alpha = limit, 1.0 if alpha is None else alpha

    def __call__(self, gate: torch.Tensor, up: torch.Tensor, act_fn: nn.Module) -> torch.Tensor:
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)


def _gate_function(config: PreTrainedConfig):
    if config.swiglu_limit is None and config.swiglu_alpha is None:
        return gate
    return _ClampedGate(config.swiglu_limit, config.swiglu_alpha)


class Router(nn.Module):
    """Softmax over experts, top-k, scores scaled to sum to one if `norm_topk_prob`.

    (T, hidden) -> logits (T, E), scores (T, k), indices (T, k).
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.jitter = config.router_jitter_noise
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.num_experts)) if config.router_bias else None

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.training and self.jitter:
            noise = torch.empty_like(hidden_states).uniform_(1.0 - self.jitter, 1.0 + self.jitter)
            hidden_states = hidden_states * noise
        logits = F.linear(hidden_states, self.weight, self.bias)
        scores, indices = logits.softmax(-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            scores = scores / scores.sum(-1, keepdim=True)
        return logits, scores.to(hidden_states.dtype), indices


class _Experts(nn.Module):
    """E feed-forwards as 3-D weights, run by transformers' experts implementations (grouped_mm, batched_mm, eager)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        experts, width, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        gated = config.feed_forward == "gated"
        up_name, up_width = ("gate_up_proj", 2 * width) if gated else ("up_proj", width)
        self.num_experts = experts
        self.up_name = up_name
        self.act_fn = ACT2FN[config.hidden_act]
        self.gate = _gate_function(config)
        setattr(self, up_name, nn.Parameter(torch.empty(experts, up_width, hidden)))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        if config.expert_bias:
            setattr(self, f"{up_name}_bias", nn.Parameter(torch.empty(experts, up_width)))
            self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden))

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.gate(*gate_up.chunk(2, dim=-1), self.act_fn)

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """hidden_states (T, hidden), indices and scores (T, k) -> (T, hidden), one expert after the other."""
        output = torch.zeros_like(hidden_states)
        up, up_bias = getattr(self, self.up_name), getattr(self, f"{self.up_name}_bias", None)
        down_bias = getattr(self, "down_proj_bias", None)
        for expert in indices.unique():
            if expert == self.num_experts:  # the sentinel of expert parallelism: a token routed to another rank
                continue
            token, slot = torch.where(indices == expert)
            states = F.linear(hidden_states[token], up[expert], None if up_bias is None else up_bias[expert])
            states = self._apply_gate(states) if self.up_name == "gate_up_proj" else self.act_fn(states)
            states = F.linear(states, self.down_proj[expert], None if down_bias is None else down_bias[expert])
            output.index_add_(0, token, (states * scores[token, slot, None]).to(output.dtype))
        return output


# `use_experts_implementation` fixes form and bias of the weights for a class, so there is a class for each pair.
@use_experts_implementation(has_gate=True, has_bias=False)
class GatedExperts(_Experts):
    pass


@use_experts_implementation(has_gate=True, has_bias=True)
class GatedBiasedExperts(_Experts):
    pass


@use_experts_implementation(has_gate=False, has_bias=False)
class PlainExperts(_Experts):
    pass


@use_experts_implementation(has_gate=False, has_bias=True)
class PlainBiasedExperts(_Experts):
    pass


# (feed_forward, expert_bias)
EXPERTS: dict[tuple[str, bool], type[_Experts]] = {
    ("gated", False): GatedExperts,
    ("gated", True): GatedBiasedExperts,
    ("plain", False): PlainExperts,
    ("plain", True): PlainBiasedExperts,
}


class MixtureOfExperts(nn.Module):
    """Sparse feed-forward: each token goes to its top-k experts (https://arxiv.org/abs/1701.06538), and to the shared
    expert if there is one."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.gate = Router(config)
        self.experts = EXPERTS[config.feed_forward, config.expert_bias](config)
        self.shared_expert = self.shared_expert_gate = None
        if config.shared_expert_intermediate_size is not None:
            self.shared_expert = FEED_FORWARDS[config.feed_forward](config, config.shared_expert_intermediate_size)
            if config.shared_expert_gate:
                self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])  # (T, hidden)
        _, scores, indices = self.gate(tokens)
        output = self.experts(tokens, indices, scores)
        if self.shared_expert is not None:
            shared = self.shared_expert(tokens)
            if self.shared_expert_gate is not None:
                shared = torch.sigmoid(self.shared_expert_gate(tokens)) * shared
            output = output + shared
        return output.view_as(hidden_states)


def get_feed_forward(config: PreTrainedConfig, layer_idx: int) -> nn.Module:
    """The feed-forward of one layer."""
    if config.num_experts and config.mlp_layer_types[layer_idx] == "sparse":
        return MixtureOfExperts(config)
    return FEED_FORWARDS[config.feed_forward](config)
