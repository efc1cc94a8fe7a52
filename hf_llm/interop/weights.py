"""The weights of a model, ours or native: which there are, which are one tensor, and how they are handed over.

Nothing is held twice. A weight that only changes its name is the same memory on both sides; where the layout changes,
the old memory is given back as soon as the new one is filled, if the model that it belongs to is not needed any more.
"""

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from .configurations import InteropError
from .family import Family


def aliases(model: PreTrainedModel) -> dict[str, str]:
    """Name of a tied weight -> the name that it is tied to, where they really are one tensor."""
    state = model.state_dict(keep_vars=True)
    tied = model.all_tied_weights_keys.items()
    return {name: source for name, source in tied if name in state and state[name] is state.get(source)}


def untied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of a model, each tied weight under its source's name only."""
    tied = aliases(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def tying(family: Family, model: PreTrainedModel) -> dict[str, bool]:
    """Which of embeddings and head are one tensor, as fields of ours. The tensors decide, not the configuration."""
    found, head, embedding = {}, model.get_output_embeddings(), model.get_input_embeddings()
    if family.stack == "encoder_decoder":
        halves = model.base_model
        embedding = halves.decoder.embed_tokens
        found["share_embeddings"] = halves.encoder.embed_tokens.weight is embedding.weight
    if head is not None:
        found["tie_word_embeddings"] = head.weight is embedding.weight
    return found


def untie_head(model: PreTrainedModel) -> None:
    """Give the head a weight of its own, whatever the configuration says."""
    head, tied = model.get_output_embeddings(), aliases(model)
    head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    model.all_tied_weights_keys = {name: tied[name] for name in aliases(model)}


def empty(model_class: type, config: PreTrainedConfig, **kwargs) -> PreTrainedModel:
    """A model whose weights are still to be assigned (its buffers are computed, its memory is not touched)."""
    with no_init_weights():
        model = model_class(config, **kwargs).eval()
    model.tie_weights()  # which is otherwise done with the initialisation
    return model


class Receiver:
    """A model that gets its weights one after the other; whatever does not fit it is an InteropError."""

    def __init__(self, model: PreTrainedModel, what: str):
        self.model, self.what = model, what
        self.shapes = {name: tensor.shape for name, tensor in untied(model).items()}

    def check_names(self, names: Iterable[str]) -> None:
        """`names` are those of all weights, once each."""
        missing, extra = sorted(set(self.shapes) - set(names)), sorted(set(names) - set(self.shapes))
        if missing or extra:
            raise InteropError(f"{self.what}: missing weights {missing[:8]}, unexpected weights {extra[:8]}.")

    def assign(self, name: str, tensor: torch.Tensor) -> None:
        """Make `tensor` the weight of that name (a copy of it, where it is not contiguous)."""
        if tensor.shape != self.shapes[name]:
            expected = tuple(self.shapes[name])
            raise InteropError(f"{self.what}: {name} has the shape {tuple(tensor.shape)}, expected {expected}.")
        owner, _, leaf = name.rpartition(".")
        module, tensor = self.model.get_submodule(owner), tensor.contiguous()
        if leaf in module._parameters:
            module._parameters[leaf] = torch.nn.Parameter(tensor)
        else:
            module._buffers[leaf] = tensor

    def finish(self) -> PreTrainedModel:
        """The model, when all is assigned."""
        self.model.tie_weights(recompute_mapping=False)
        return self.model


class FileMemory:
    """
    The memory that checkpoint files are mapped to. All tensors of a file are one mapping, which lives as long as the
    last of them; what was read stays in memory although its tensor is gone, unless it is given back.
    """

    def __init__(self):
        maps = Path("/proc/self/maps")  # of Linux; elsewhere nothing is given back
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.exists() else []
        ranges = (line.split()[0].split("-") for line in lines if line.endswith(".safetensors"))
        self.ranges = [(int(start, 16), int(end, 16)) for start, end in ranges]

    def give_back(self, tensor: torch.Tensor) -> None:
        """Unload what a tensor has in the memory of a file; if it is read again, it is loaded again."""
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if any(first <= start and end <= last for first, last in self.ranges):
            start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if start < end:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
