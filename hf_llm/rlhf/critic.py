"""The critic: a value for every token, from a backbone of its own or the policy's."""

import copy

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import AutoModel, PreTrainedModel

from hf_llm.training.settings import opening


NAME = "critic"  # of the submodule of the policy


class Critic(nn.Module):
    """A linear head on the last hidden states of `backbone`, or on the policy's (`backbone=None`).

    It is a submodule of the policy and runs inside the policy's forward pass: one DDP wrapper, one optimizer and one
    gradient clip cover both.

    Args:
        backbone: takes the policy's inputs and returns hidden states (batch, seq, hidden_size) first.
        init: "normal" (standard deviation 1 / sqrt(hidden_size + 1)) or "zeros".

    Attributes:
        detached: whether gradients stop at the hidden states of a shared backbone.
    """

    def __init__(self, backbone: nn.Module | None, hidden_size: int, init: str = "normal"):
        super().__init__()
        self.backbone = backbone
        self.value_head = nn.Linear(hidden_size, 1)  # float32, whatever the backbone is in
        self.detached = False
        nn.init.zeros_(self.value_head.bias)
        if init == "zeros":
            nn.init.zeros_(self.value_head.weight)
        else:
            nn.init.normal_(self.value_head.weight, std=(hidden_size + 1) ** -0.5)

    def forward(self, hidden_states: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Values (batch, seq) in float32, from the policy's `hidden_states` (batch, seq, hidden) or its `inputs`."""
        if self.backbone is not None:
            hidden_states = self.backbone(**inputs, use_cache=False)[0]
        elif self.detached:
            hidden_states = hidden_states.detach()
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.value_head(hidden_states.float()).squeeze(-1)


def base_of(model: nn.Module) -> nn.Module:
    """The model inside adapters."""
    return model.get_base_model() if is_peft_model(model) else model


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head. T5's language models contain none: one is made with the same weights."""
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    base = AutoModel.from_config(model.config).to(device=model.device, dtype=model.dtype)
    base.load_state_dict(model.state_dict(), strict=False)
    return base


def copy_backbone(policy: nn.Module) -> nn.Module:
    """A copy of the policy's backbone, without adapters. It shares the frozen weights of a policy with adapters."""
    if not is_peft_model(policy):
        return copy.deepcopy(backbone_of(policy))
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad} | {id(b): b for b in policy.buffers()}
    tuner = copy.deepcopy(policy.base_model, shared)
    bare = tuner.unload() if hasattr(tuner, "unload") else tuner
    vars(bare).pop("forward", None)  # TRL's, which is bound to the policy
    return bare.base_model


def build_critic(
    policy: nn.Module,
    kind: str,
    value_head_init: str = "normal",
    value_model: str | PreTrainedModel | None = None,
    peft_config=None,
    reward_model: PreTrainedModel | None = None,
) -> Critic:
    """Make the critic of a policy.

    Args:
        policy: a language model, with or without adapters, without critic.
        kind: as `PPOConfig.critic`; ignored if there is a `value_model`.
        value_model: a model, or its path, whose backbone becomes the critic's.
        peft_config: adapters for the critic's backbone. None: those of the policy if the critic begins as its copy.
        reward_model: whose backbone may begin the critic: the only one, of the policy's architecture and vocabulary.

    Raises:
        ValueError: the backbone does not fit the policy, or looks at later tokens; or no reward model fits.
    """
    base = base_of(policy)
    if kind == "auto":
        kind = "policy" if reward_model is None or is_peft_model(policy) else "reward_model"
    if value_model is not None:
        if isinstance(value_model, str):
            with opening("value_model", value_model):
                value_model = AutoModel.from_pretrained(value_model, dtype=torch.float32)
        backbone = backbone_of(base_of(value_model))
    elif kind == "reward_model":
        if reward_model is None:
            raise ValueError(
                'critic = "reward_model" needs exactly one reward model, of the architecture and vocabulary of the '
                'policy: use critic = "policy", or pass a value_model'
            )
        backbone = copy.deepcopy(backbone_of(reward_model))
    elif kind == "policy":
        backbone = copy_backbone(policy)
        if is_peft_model(policy) and peft_config is None:
            peft_config = _same_adapters(policy)
    else:
        backbone = None

    if backbone is None:
        if peft_config is not None:
            raise ValueError('value_peft_config has no effect with critic = "shared", whose backbone is the policy\'s')
        return Critic(None, _width(base, base.get_decoder()), value_head_init).to(base.device)

    if backbone.config.is_encoder_decoder != base.config.is_encoder_decoder:
        kinds = {True: "an encoder-decoder", False: "not one"}
        raise ValueError(
            f"the critic's backbone {type(backbone).__name__} is {kinds[backbone.config.is_encoder_decoder]}, but the "
            f"policy {type(base).__name__} is {kinds[base.config.is_encoder_decoder]}: they read the same inputs"
        )
    sizes = num_embeddings(backbone), num_embeddings(base)
    if sizes[0] < sizes[1]:
        raise ValueError(
            f"the critic's backbone has embeddings for {sizes[0]} tokens and the policy for {sizes[1]}: both must "
            "have the same tokenizer"
        )
    if peft_config is None:
        backbone.requires_grad_(True)
    else:
        from peft import get_peft_model

        peft_config.task_type = None
        backbone = get_peft_model(backbone, peft_config)
    backbone.to(base.device)
    return Critic(backbone, _width(base, backbone), value_head_init).to(base.device)


def _same_adapters(policy: nn.Module):
    """A PEFT configuration that adapts the same modules in the critic's backbone as in the policy's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {n for n, m in backbone_of(policy.get_base_model()).named_modules() if isinstance(m, BaseTunerLayer)}
    config = copy.deepcopy(policy.peft_config["default"])
    for name in ("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, name):
            setattr(config, name, None)
    config.target_modules = adapted
    return config


def num_embeddings(model: PreTrainedModel) -> int:
    """Rows of a model's token embeddings."""
    return model.get_input_embeddings().weight.shape[0]


@torch.no_grad()
def _width(policy: PreTrainedModel, backbone: nn.Module) -> int:
    """Size of a backbone's last hidden states, by a forward pass: `hidden_size` ignores output projections.

    Raises:
        ValueError: the backbone of a decoder's critic looks at later tokens.
    """
    tokens = torch.zeros(2, 4, dtype=torch.long, device=policy.device)
    tokens[1, -1] = 1
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if policy.config.is_encoder_decoder:
        if backbone is policy.get_decoder():
            inputs["encoder_hidden_states"] = policy.get_encoder()(**inputs)[0]
        else:
            inputs["decoder_input_ids"] = tokens
    was_training = backbone.training
    backbone.eval()
    hidden = backbone(**inputs, use_cache=False)[0]
    backbone.train(was_training)
    eps, hidden = torch.finfo(hidden.dtype).eps, hidden.float()
    rounding = 16 * eps * hidden.abs().max()
    if not policy.config.is_encoder_decoder and (hidden[0, :-1] - hidden[1, :-1]).abs().max() > rounding:
        raise ValueError(
            f"the critic's backbone {type(backbone).__name__} looks at later tokens, so its values would know the "
            'future: use a causal model, or critic = "policy"'
        )
    return hidden.shape[-1]
