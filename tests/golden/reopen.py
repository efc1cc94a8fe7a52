"""What golden checkpoints give, by whichever code opens them. Run as a script, by the code that they carry:

    python reopen.py FOLDER...

prints, for each, where the code came from and the largest difference of its logits. hf_llm cannot be imported there.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


LANGUAGE_MODELS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")


@torch.no_grad()
def reopen(folder: str | Path, **kwargs) -> tuple[torch.nn.Module, float]:
    """The language model and the largest difference of its logits, having opened every other head as well."""
    config = transformers.AutoConfig.from_pretrained(folder, **kwargs)
    heads = {name: getattr(transformers, name) for name in config.auto_map if name != "AutoConfig"}
    opened = {name: auto_class.from_pretrained(folder, **kwargs) for name, auto_class in heads.items()}
    model = next(opened[name] for name in LANGUAGE_MODELS if name in opened)
    inputs = load_file(Path(folder, "golden.safetensors"))
    expected = inputs.pop("logits")
    real = inputs.get("decoder_document_ids", inputs["document_ids"]) >= 0
    return model, float((model(**inputs).logits - expected)[real].abs().max())


if __name__ == "__main__":
    sys.modules["hf_llm"] = None  # any import of it raises ImportError
    for folder in sys.argv[1:]:
        model, difference = reopen(folder, trust_remote_code=True)
        print(type(model).__module__.split(".")[0], difference)
