"""Compares models that are spread over ranks with whole ones. Run by test_training.py, once on each rank:

    torchrun --nproc-per-node 2 ranks.py tensor|fsdp|pipeline FOLDER...

Each folder holds a checkpoint and `batch.safetensors`. Logits, training loss and gradients must be those of one
process; transformers' pipelines give logits alone.
"""

import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

import hf_llm  # noqa: F401  (registers the models)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(mode: str, folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(hf_llm, config.architectures[0])
    sizes = {"tensor": {"tp_size": 2}, "fsdp": {"fsdp_size": 2}, "pipeline": {"pp_size": 2}}[mode]
    spread = model_class.from_pretrained(folder, distributed_config=DistributedConfig(**sizes)).eval()
    single = model_class.from_pretrained(folder).eval()
    batch = safetensors.torch.load_file(folder / "batch.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(whole(spread(**batch).logits), single(**batch).logits, rtol=0, atol=1e-5)

    if mode == "pipeline":
        return

    losses = [model.train()(**batch).loss for model in (spread, single)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(whole(losses[0]).detach(), losses[1].detach(), rtol=0, atol=1e-5)
    expected = dict(single.named_parameters())
    sharded = 0
    for name, parameter in spread.named_parameters():
        gradient = whole(parameter.grad)
        sharded += isinstance(parameter, DTensor) or parameter.shape != expected[name].shape
        if gradient.shape == expected[name].shape and "gate_up_proj" not in name:  # that one is interleaved
            torch.testing.assert_close(
                gradient, expected[name].grad, rtol=1e-4, atol=1e-5, msg=f"{folder.name} {name}"
            )
    assert sharded, "nothing was spread"

    if mode == "fsdp":  # ranks with another number of targets, and none: they must meet at every gathering
        batch["labels"][:, dist.get_rank() * 4 :] = -100
        spread(**batch).loss.backward()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for folder in sys.argv[2:]:
        compare(sys.argv[1], Path(folder))
        if dist.get_rank() == 0:
            print(Path(folder).name, flush=True)
    dist.destroy_process_group()
