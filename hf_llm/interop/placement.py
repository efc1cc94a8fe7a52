"""Put an imported model on its devices, by the `device_map` of `from_pretrained`.

The native model is opened on the CPU, where its weights are mapped from the file; what moves is the imported one.
"""

from pathlib import Path

from transformers import PreTrainedModel
from transformers.integrations.accelerate import (
    _get_device_map,
    accelerate_dispatch,
    check_and_set_device_map,
    get_device,
)


PLACEMENT = ("device_map", "max_memory", "offload_folder", "offload_buffers")


def place(
    model: PreTrainedModel,
    device_map=None,
    max_memory: dict | None = None,
    offload_folder: str | Path | None = None,
    offload_buffers: bool = False,
) -> None:
    """
    Move a model's modules to the devices of a map, with the hooks that bring inputs there.

    Args:
        device_map: a device, a dictionary from our module names to devices ("disk" among them), or "auto", "balanced",
            "balanced_low_0", "sequential".
        max_memory, offload_folder, offload_buffers: as in `from_pretrained`.

    Raises:
        ValueError: a module has no place in the map, or goes to disk and there is no `offload_folder`.
    """
    if device_map is None:
        return
    device_map = _get_device_map(model, check_and_set_device_map(device_map), max_memory, None)
    if "disk" in device_map.values():
        if offload_folder is None:
            raise ValueError("`device_map` has modules on disk: say where, by `offload_folder`.")
        from accelerate.utils import offload_state_dict  # which `device_map` alone needs

        weights = model.state_dict().items()
        offload_state_dict(offload_folder, {n: w for n, w in weights if get_device(device_map, n) == "disk"})
    accelerate_dispatch(model, None, device_map, offload_folder, None, offload_buffers)
    model.hf_device_map = device_map
