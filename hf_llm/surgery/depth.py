"""Another number of layers: the last ones are dropped, or blocks appended that change nothing at first."""

import re

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.configuration import MIRRORED
from .weights import silence


PER_LAYER = ("layer_types", "mlp_layer_types", "rope_layers")  # fields with an entry for each layer


def own_fields(config: PreTrainedConfig) -> dict:
    """`to_dict()` without what an encoder-decoder mirrors from its decoder."""
    mirrored = MIRRORED if config.sub_configs else ()
    return {name: value for name, value in config.to_dict().items() if name not in mirrored}


def with_depth(config: PreTrainedConfig, depths: dict[str, int]) -> PreTrainedConfig:
    """
    A copy of a configuration with other numbers of layers. Lists with an entry for each layer are cut, or their last
    entry is repeated.

    Args:
        depths: "" of an encoder or a decoder, "encoder" or "decoder" of an encoder-decoder -> its number of layers.

    Raises:
        ValueError: layers that share their weights, or a configuration that cannot be.
    """
    fields = own_fields(config)
    for part, depth in depths.items():
        section = fields[part] if part else fields
        if section.get("layer_sharing") is not None:
            raise ValueError("`num_hidden_layers` cannot change where layers share their weights (`layer_sharing`).")
        section["num_hidden_layers"] = depth
        for name in PER_LAYER:
            if entries := section.get(name):
                section[name] = (entries + entries[-1:] * depth)[:depth]
    return type(config)(**fields)


def with_layers(weights: dict[str, Tensor], config: PreTrainedConfig, depths: dict[str, int]) -> dict[str, Tensor]:
    """
    The weights of a model with other numbers of layers: without the last ones, or with copies of the last one.

    Args:
        weights: by name, of the model with `config`.
        depths: as in `with_depth`.
    """
    found = dict(weights)
    for part, depth in depths.items():
        known = (getattr(config, part) if part else config).num_hidden_layers
        layer = re.compile(rf"(.*\b{part + '.' if part else ''}layers\.)(\d+)(\..*)")
        for name, weight in weights.items():
            if (place := layer.fullmatch(name)) is None:
                continue
            if int(place[2]) >= depth:
                del found[name]
            elif int(place[2]) == known - 1:
                found |= {f"{place[1]}{i}{place[3]}": weight.clone() for i in range(known, depth)}
    return found


def silence_appended(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """
    Make attention and feed-forward of layers that the model has more of than `config` write nothing into the residual
    stream: with norms before them, the model computes what it did (block expansion, https://arxiv.org/abs/2401.02415).
    """
    for part in config.sub_configs or [""]:
        known = (getattr(config, part) if part else config).num_hidden_layers
        for layer in model.base_model.get_submodule(part).layers[known:]:
            for branch in ("self_attn", "cross_attn", "mlp"):
                if getattr(layer, branch) is not None:
                    silence(layer, branch)
