"""The critic: a value for every token, from a backbone of its own or the policy's."""

import copy

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import AutoModel, PreTrainedModel


NAME = "critic"  # of the submodule of the policy


class Critic(nn.Module):
    """A linear head on the last hidden states of `backbone`, or on the policy's (`backbone=None`).

    It is a submodule of the policy and runs inside the policy's forward pass: one DDP wrapper, one optimizer and one
    gradient clip cover both.

    Args:
        backbone: takes the policy's inputs and returns hidden states (batch, seq, hidden_size) first.
        init: "normal" (standard deviation 1 / sqrt(hidden_size + 1)) or "zeros".

    Attributes:
        detached: whether the head learns without moving a shared backbone.
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


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """What gives the last hidden states, without a head. T5's family has none inside its language models: one is made
    that has the same weights."""
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    base = AutoModel.from_config(model.config).to(device=model.device, dtype=model.dtype)
    base.load_state_dict(model.state_dict(), strict=False)
    return base


def copy_backbone(policy: nn.Module) -> nn.Module:
    """A backbone like the policy's, without its adapters and with its weights.

    The frozen weights of a policy with adapters are not copied: both backbones hold the same tensors.
    """
    if not is_peft_model(policy):
        return copy.deepcopy(backbone_of(policy))
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad} | {id(b): b for b in policy.buffers()}
    tuner = copy.deepcopy(policy.base_model, shared)
    bare = tuner.unload() if hasattr(tuner, "unload") else tuner
    vars(bare).pop("forward", None)  # the one that TRL put there belongs to the policy
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
        policy: a language model, with or without adapters, to which no critic is attached yet.
        kind: "policy", "reward_model" or "shared"; without effect beside `value_model`.
        value_model: a model, or where one is, whose backbone the critic takes over.
        peft_config: adapters for the critic's backbone. None: those of the policy if the critic begins as its copy.
        reward_model: for `kind="reward_model"`.

    Raises:
        ValueError: the backbone does not fit the policy, or looks at later tokens.
    """
    base = policy.get_base_model() if is_peft_model(policy) else policy
    if value_model is not None:
        if isinstance(value_model, str):
            value_model = AutoModel.from_pretrained(value_model, dtype=torch.float32)
        backbone = backbone_of(value_model.get_base_model() if is_peft_model(value_model) else value_model)
    elif kind == "reward_model":
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
    if len_of(backbone) < len_of(base):
        raise ValueError(
            f"the critic's backbone has embeddings for {len_of(backbone)} tokens and the policy for {len_of(base)}: "
            "both must have the same tokenizer"
        )
    if peft_config is None:
        backbone.requires_grad_(True)
    else:
        from peft import get_peft_model

        peft_config.task_type = None
        backbone = get_peft_model(backbone, peft_config)
    backbone.to(base.device)
    critic = Critic(backbone, _width(base, backbone), value_head_init).to(base.device)
    if not base.config.is_encoder_decoder:
        _check_causal(critic)
    return critic


def _same_adapters(policy: nn.Module):
    """A PEFT configuration that adapts in the critic's backbone what is adapted in the policy's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {n for n, m in backbone_of(policy.get_base_model()).named_modules() if isinstance(m, BaseTunerLayer)}
    config = copy.deepcopy(policy.peft_config["default"])
    for name in ("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, name):
            setattr(config, name, None)
    config.target_modules = adapted
    return config


def len_of(model: PreTrainedModel) -> int:
    """Number of tokens that the embeddings of a model know."""
    return model.get_input_embeddings().weight.shape[0]


@torch.no_grad()
def _width(policy: PreTrainedModel, backbone: nn.Module) -> int:
    """Size of a backbone's last hidden states: projections behind them make configurations poor witnesses."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=policy.device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if policy.config.is_encoder_decoder:
        if backbone is policy.get_decoder():
            inputs["encoder_hidden_states"] = policy.get_encoder()(**inputs)[0]
        else:
            inputs["decoder_input_ids"] = tokens
    return backbone(**inputs, use_cache=False)[0].shape[-1]


@torch.no_grad()
def _check_causal(critic: Critic) -> None:
    """Raise ValueError if values change with tokens that come later."""
    was_training = critic.training
    critic.eval()
    tokens = torch.zeros(2, 4, dtype=torch.long, device=critic.value_head.weight.device)
    tokens[1, -1] = 1
    hidden = critic.backbone(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)[0]
    dtype, hidden = hidden.dtype, hidden.float()
    critic.train(was_training)
    rounding = 16 * torch.finfo(dtype).eps * hidden.abs().max()
    if (hidden[0, :-1] - hidden[1, :-1]).abs().max() > rounding:
        raise ValueError(
            f"the critic's backbone {type(critic.backbone).__name__} looks at later tokens, so its values would know "
            'the future: use a causal model, or critic = "policy"'
        )
