"""Opens checkpoints by their own code files, in a process that has no hf_llm. Run by test_saving.py:

    python elsewhere.py FOLDER_OR_REPOSITORY...

Each is opened by every Auto class of its `auto_map`. Where a folder has `expected.safetensors`, that holds inputs and
logits of the language model.
"""

import os
import sys

import safetensors.torch
import torch
import transformers


sys.modules["hf_llm"] = None  # any import of it raises ImportError

torch.set_num_threads(1)

for name in sys.argv[1:]:
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    assert getattr(transformers, config.architectures[0]).__name__ in config.auto_map  # for `transformers serve`
    for auto_name in config.auto_map:
        if auto_name == "AutoConfig":
            continue
        model = getattr(transformers, auto_name).from_pretrained(name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([[1, 6]])
        if auto_name == "AutoModelForMultipleChoice":
            inputs["input_ids"] = inputs["input_ids"][None]
        expected = os.path.join(name, "expected.safetensors")
        is_language_model = auto_name in ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")
        if is_language_model and os.path.exists(expected):
            inputs = safetensors.torch.load_file(expected)
            logits = inputs.pop("logits")
            with torch.no_grad():
                torch.testing.assert_close(model(**inputs).logits, logits, rtol=0, atol=2e-6)
        else:
            model(**inputs)
        if model.can_generate():
            model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
        print(name, auto_name, type(model).__name__)
