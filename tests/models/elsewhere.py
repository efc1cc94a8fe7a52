"""Opens checkpoints by their own code files, in a process that has no hf_llm. Run by test_remote_code.py:

    python elsewhere.py FOLDER_OR_REPOSITORY...

Each is opened by every Auto class of its `auto_map`; one with `expected.safetensors`, which holds inputs (`in.*`) and
outputs (`out.*`), by the class that wrote it, and must give these outputs. Names of repositories are followed by those
of the folders that they show, `NAME=FOLDER`.
"""

import os
import sys

import safetensors
import torch
import transformers


sys.modules["hf_llm"] = None  # any import of it raises ImportError

torch.set_num_threads(1)


def compare(name: str, model, tensors: dict[str, torch.Tensor]) -> None:
    inputs = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
    with torch.no_grad():
        outputs = model(**inputs)
    for key, value in tensors.items():  # the checkpoint's own code is plain PyTorch; backends round otherwise
        if key.startswith("out."):
            message = f"{name}, {key}: {(outputs[key[4:]] - value).abs().max():.2e}\n{model.config}"
            torch.testing.assert_close(outputs[key[4:]], value, rtol=1e-5, atol=2e-5, msg=message)


for argument in sys.argv[1:]:
    name, _, folder = argument.partition("=")
    expected = os.path.join(folder or name, "expected.safetensors")
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    tensors = {}
    if os.path.exists(expected):
        with safetensors.safe_open(expected, "pt") as file:
            tensors, written_by = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()["auto"]
    for auto_name in [written_by] if tensors else config.auto_map:
        if auto_name == "AutoConfig":
            continue
        model = getattr(transformers, auto_name).from_pretrained(name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        if tensors:
            compare(f"{name}, {auto_name}", model, tensors)
        if model.can_generate() and not tensors:
            model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
        print(name, auto_name, type(model).__name__)
