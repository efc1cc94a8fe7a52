"""Dtypes under autocast."""

import torch


def autocast_dtype(states: torch.Tensor) -> torch.dtype:
    """The dtype that a matrix product casts `states` to."""
    device = states.device.type
    if states.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states.dtype


def cast_once(hidden_states: torch.Tensor) -> torch.Tensor:
    """What several matrix products read, in their dtype under autocast, which would cast it for each of them."""
    return hidden_states.to(autocast_dtype(hidden_states))
