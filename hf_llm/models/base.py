"""What all models share: capabilities, choice of the attention backend, initialisation."""

import json
from pathlib import Path, PureWindowsPath

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.output_capturing import OutputRecorder

from .attention import Attention, check_backend
from .compat import CACHE_NAMES
from .configuration import LLMStackConfig
from .feedforward import Router, _Experts
from .layer import TransformerLayer
from .norms import LayerNorm
from .positions import RelativeBias


def check_shards(folder: Path) -> None:
    """Raise ValueError if an index of shards in `folder` names a file outside it."""
    for index in sorted(folder.glob("*.index*.json")):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # no index of shards, or a damaged one: whoever reads it says so
        paths = {name: PureWindowsPath(name) for name in sorted(map(str, names))}  # of either kind of separator
        if outside := [name for name, path in paths.items() if path.anchor or ".." in path.parts]:
            raise ValueError(f"{index} names files outside its folder, which are not read: {', '.join(outside)}")


class LLMPreTrainedModel(PreTrainedModel):
    """Base of every model of the package."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerLayer"]
    _skip_keys_device_placement = CACHE_NAMES
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # transformers looks for these in the text of the file that defines a model; ours are in attention.py and
    # feedforward.py
    _can_set_attn_implementation_cached_value = True
    _can_set_experts_implementation_cached_value = True
    _can_record_outputs = {
        "hidden_states": TransformerLayer,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
        "router_logits": OutputRecorder(Router, index=0),
    }
    accepts_loss_kwargs = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As in transformers, which would follow an index of shards out of the checkpoint's folder."""
        if pretrained_model_name_or_path is not None:
            check_shards(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """
        The backend to use. Unasked, sdpa if it honours the configuration, eager otherwise; an explicit choice that
        cannot be honoured (softcap with sdpa, ALiBi with flash attention, ...) raises ValueError.
        """
        stack = self.config.is_stack
        if requested_attention is None and stack:
            try:
                check_backend(self.config, "sdpa")
            except ValueError:
                requested_attention = "eager"
        chosen = super().get_correct_attn_implementation(requested_attention, is_init_check)
        if stack:
            check_backend(self.config, chosen)
        return chosen

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """Kernels of the Hub do not pass through `get_correct_attn_implementation`: they are checked here."""
        chosen = super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)
        if self.config.is_stack:
            check_backend(self.config, chosen)
        return chosen

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """As in transformers; where a stack refuses, every stack keeps the backend it has."""
        configs = [module.config for module in self.modules() if isinstance(module, PreTrainedModel)]
        before = [config._attn_implementation for config in configs]
        try:
            super().set_attn_implementation(attn_implementation, **kwargs)
        except (ValueError, ImportError):
            for config, backend in zip(configs, before):
                config._attn_implementation_internal = backend
            raise

    @property
    def supports_pp_plan(self) -> bool:
        """Whether a pipeline of transformers computes what the model does: the head's plan alone says nothing."""
        return self.config.base_model_pp_plan is not None

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, mesh_manager):
        """As in transformers, which does not look at the plan before it splits a model into a pipeline."""
        if mesh_manager is not None and distributed_config.pp_size > 1 and not model.supports_pp_plan:
            raise ValueError(
                f"`pp_size={distributed_config.pp_size}`: this configuration cannot run as a pipeline, which knows "
                "token embeddings, layers and a last norm alone (see `base_model_pp_plan`). Use `tp_size` or "
                "`fsdp_size`."
            )
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """As in transformers, which has the other name alone until 5.22."""
        self._check_checkpoints(activation_checkpointing_kwargs)
        enable = getattr(super(), "activation_checkpointing_enable", super().gradient_checkpointing_enable)
        enable(activation_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """As in transformers."""
        self._check_checkpoints(gradient_checkpointing_kwargs)
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def _check_checkpoints(self, checkpointing_kwargs: dict | None) -> None:
        """Raise ValueError for reentrant checkpoints beside router losses, whose gradients they lose."""
        stacks = [module.config for module in self.modules() if isinstance(module, PreTrainedModel)]
        weights = [
            stack.router_aux_loss_coef or stack.router_z_loss_coef
            for stack in stacks
            if stack.is_stack and stack.is_moe
        ]
        if any(weights) and (checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError(
                "`use_reentrant=True` loses the gradients of the router losses: set it to False, or "
                "`router_aux_loss_coef` and `router_z_loss_coef` to 0."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        One place for every parameter:

            matrices (linear, experts, router)      normal(0, initializer_range)
            matrices that write into the residual   the same / sqrt(2 * layers), or as is, or zero (`residual_init`)
            stream (o_proj, down_proj)
            embeddings (token, position, type)      normal(0, embedding_initializer_range or initializer_range)
            relative position bias                  normal(0, initializer_range)
            norms                                   weight 1 (0 where it is applied as 1 + w), bias 0
            biases, attention sinks                 0
            rotary frequencies                      computed (not saved)
            other parameters of a variant           by the module's own `init_parameters()`

        https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
        (section 2.3) is the source of the depth scaling.
        """
        config = getattr(module, "config", None)
        config = config if getattr(config, "is_stack", False) else self.config
        std = config.initializer_range
        if isinstance(module, nn.Linear):
            _init_matrix(module.weight, std, config, getattr(module, "writes_residual", False))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            embedding_std = getattr(config, "embedding_initializer_range", None)
            init.normal_(module.weight, std=std if embedding_std is None else embedding_std)
        elif isinstance(module, LayerNorm):
            if module.weight is not None:
                init.constant_(module.weight, module.weight_init)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Router):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, _Experts):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("_bias"):
                    init.zeros_(parameter)
                else:
                    _init_matrix(parameter, std, config, writes_residual=name == "down_proj")
        elif isinstance(module, RelativeBias):
            init.normal_(module.relative_attention_bias.weight, std=std)
        elif isinstance(module, Attention):
            if config.attention_sinks:
                init.zeros_(module.sinks)
        else:
            super()._init_weights(module)  # rotary embeddings
        if hasattr(module, "init_parameters"):  # of a variant from outside
            module.init_parameters()


def _init_matrix(weight: torch.Tensor, std: float, config: LLMStackConfig, writes_residual: bool) -> None:
    scheme = getattr(config, "residual_init", "normal") if writes_residual else "normal"
    if scheme == "zero":
        init.zeros_(weight)
        return
    if scheme == "depth_scaled":
        std = std / (2 * config.num_hidden_layers) ** 0.5
    init.normal_(weight, std=std)
