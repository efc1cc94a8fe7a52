"""Plans of transformers for several devices: tensor, expert and pipeline parallelism."""

from .attention import ATTENTIONS, Attention
from .feedforward import FEED_FORWARDS
from .positions import POSITIONS


class ParallelPlans:
    """The plans of one stack (mixed into its configuration), read off what its parts say of themselves."""

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """Tensor-parallel plan, and what has been added to it."""
        return {**self._own_tp_plan(), **self.__dict__.get("base_model_tp_plan", {})}

    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]) -> None:
        """Keeps the additions: transformers adds a row for tied embeddings here until 5.20."""
        own = self._own_tp_plan()
        self.__dict__["base_model_tp_plan"] = {name: style for name, style in plan.items() if own.get(name) != style}

    def _own_tp_plan(self) -> dict[str, str]:
        """The attention's plan, the feed-forwards', the experts'."""
        plan, attention = {}, ATTENTIONS[self.attention_type]
        branches = {"self_attn": attention}
        if getattr(self, "add_cross_attention", False):
            branches["cross_attn"] = Attention if attention.self_attention_only else attention
        for branch, cls in branches.items() if POSITIONS[self.position_embedding].kind != "bias" else ():
            own = cls.tp_plan(self) if "tp_plan" in vars(cls) else {}
            plan |= {f"layers.*.{branch}.{name}": style for name, style in own.items()}
        feed_forward = vars(FEED_FORWARDS[self.feed_forward]).get("tp_plan", {})
        if self.mlp_layer_types is None or "dense" in self.mlp_layer_types:
            plan |= {f"layers.*.mlp.{name}": style for name, style in feed_forward.items()}
        if self.is_moe and self.feed_forward == "gated" and not self.expert_bias:
            plan["layers.*.mlp.experts.gate_up_proj"] = "packed_colwise"
            plan["layers.*.mlp.experts.down_proj"] = "rowwise"
            plan["layers.*.mlp.experts"] = "moe_tp_experts"
        if self.is_moe and self.shared_expert_intermediate_size is not None:
            plan |= {f"layers.*.mlp.shared_expert.{name}": style for name, style in feed_forward.items()}
        return plan

    @property
    def base_model_ep_plan(self) -> dict[str, str] | None:
        """Expert-parallel plan: each rank holds some experts."""
        if not self.is_moe or self.feed_forward != "gated" or self.expert_bias:
            return None
        return {
            "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
            "layers.*.mlp.experts.down_proj": "grouped_gemm",
            "layers.*.mlp.experts": "ep_dispatch_experts",
        }

    @property
    def base_model_pp_plan(self) -> dict[str, tuple] | None:
        """Pipeline plan, or `None` where transformers' schedule (embed_tokens, layers, norm) would be wrong."""
        extras = (
            POSITIONS[self.position_embedding].kind in ("embedding", "bias"),
            self.embedding_norm,
            self.embedding_projection is not None,
            self.type_vocab_size > 0,
            self.layer_sharing is not None,
            not self.final_norm,
            self.is_moe,
        )
        if any(extras):
            return None
        return {
            "embed_tokens": (["input_ids"], ["inputs_embeds"]),
            "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
            "norm": (["hidden_states"], ["hidden_states"]),
        }
