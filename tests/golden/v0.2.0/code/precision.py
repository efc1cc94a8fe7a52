"""Dtypes under autocast."""

import torch


def cast_once(hidden_states: torch.Tensor) -> torch.Tensor:
    """What several matrix products read, in their dtype under autocast, which would cast it for each of them."""
    device = hidden_states.device.type
    if hidden_states.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return hidden_states.to(torch.get_autocast_dtype(device))
    return hidden_states
