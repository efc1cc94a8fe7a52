"""Weights of transformers' own models in ours, by renaming: enough for tests of parity."""

import re

import torch


# (pattern, replacement), tried in order; the first that matches is applied and the others are not
LLAMA = [
    (r"(.*)\.input_layernorm\.(.*)", r"\1.self_attn_norm.\2"),
    (r"(.*)\.post_attention_layernorm\.(.*)", r"\1.mlp_norm.\2"),
]


def rename(name: str, table: list[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def load_native(ours: torch.nn.Module, native: torch.nn.Module, table: list[tuple[str, str]], change=None):
    """Load the native model's weights, renamed by `table`, into ours, strictly up to what is tied.

    change: function of (new name, tensor) -> {name: tensor}, where layouts differ.
    """
    weights = {}
    for name, tensor in native.state_dict().items():
        new_name = rename(name, table)
        weights |= {new_name: tensor} if change is None else change(new_name, tensor)
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    tied = set(ours.all_tied_weights_keys)
    assert set(missing) <= tied, f"missing: {missing}"
    assert not unexpected, f"unexpected: {unexpected}"
    return ours
