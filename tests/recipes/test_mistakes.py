"""Mistakes on command lines: exit status 2, one line that names field, value and what is legal; nothing is written."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_llm
from hf_llm.data import train_tokenizer


RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TRAINING = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True}
LENGTH = {"function": "length", "options": {"target": 3}}

SETTINGS = {
    "pretrain": {
        "output_dir": "out",
        "model": {"model_type": "hf_llm_decoder", **SIZES},
        "tokenizer": {"vocab_size": 320},
        "data": {"corpus": "corpus/*.txt", "row_length": 32, "cache_dir": "packed"},
        "objective": {"name": "causal"},
        "training": TRAINING,
    },
    "finetune": {
        "output_dir": "out",
        "model": {"path": "encoder"},
        "task": "sequence_classification",
        "data": {"dataset": "labelled.jsonl"},
        "training": TRAINING,
    },
    "sft": {
        "output_dir": "out",
        "model": {"path": "decoder"},
        "data": {"dataset": "labelled.jsonl"},
        "training": TRAINING,
    },
    "seq2seq": {
        "output_dir": "out",
        "model": {"path": "encoder_decoder"},
        "data": {"dataset": "pairs.jsonl", "source": "prompt", "target": "chosen"},
        "training": TRAINING,
    },
    "dpo": {
        "output_dir": "out",
        "model": {"path": "decoder"},
        "data": {"dataset": "pairs.jsonl"},
        "training": TRAINING,
    },
    "ppo": {
        "output_dir": "out",
        "model": {"path": "decoder"},
        "data": {"dataset": "pairs.jsonl"},
        "rewards": [LENGTH],
        "training": {**TRAINING, "max_completion_length": 4},
    },
    "reward_model": {
        "output_dir": "out",
        "model": {"path": "decoder"},
        "data": {"dataset": "pairs.jsonl"},
        "training": TRAINING,
    },
}
MISTAKES = {
    "pretrain": [
        ("--config nowhere.yaml", "--config nowhere.yaml: No such file"),
        ("--config broken.yaml", "--config broken.yaml, line 2, column 2: not valid YAML: expected ',' or ']'"),
        ("--config list.yaml", "--config list.yaml: expected a mapping of sections, got list"),
        ("--output_dir file", "output_dir = file cannot be written"),
        ("--output_dir file/run", "output_dir = file/run cannot be written"),
        ("--output_dir 7", "output_dir = 7 is not of type str"),
        ("--resume sometimes", "resume = 'sometimes' is neither 'auto', 'never' nor a checkpoint"),
        ("--seed -1", "seed = -1 must be at least 0"),
        ("--cpu_threads 0", "cpu_threads = 0 must be at least 1"),
        ("--imports nowhere.py", "nowhere.py is no Python file"),
        ("--trainig.max_steps 3", "unknown key 'trainig'; did you mean 'training'?"),
        ("--tokenizer.path nowhere", "tokenizer.path = 'nowhere' cannot be opened: no such folder"),
        ("--tokenizer.path corpus", "tokenizer.path = 'corpus' cannot be opened"),
        ("--tokenizer.path file", "tokenizer.path = 'file' cannot be opened"),
        ("--tokenizer.vocab_size 5", "vocab_size=5: algorithm='bpe' needs at least 260"),
        ("--tokenizer.algorithm bpee", "tokenizer.algorithm = 'bpee' is unknown; did you mean 'bpe'?"),
        ("--data.corpus nowhere.txt", "corpus 'nowhere.txt': no such file, folder or glob"),
        ("--data.corpus empty.txt", "corpus 'empty.txt': empty"),
        ("--data.row_length 0", "data.row_length = 0 must be at least 8"),
        ("--data.row_length -3", "data.row_length = -3 must be at least 8"),
        ("--data.row_lenght 64", "unknown key 'data.row_lenght'; did you mean 'row_length'?"),
        ("--data.held_out_fraction 1.5", "data.held_out_fraction = 1.5 must be at least 0 and less than 1"),
        ("--data.validation_rows 0", "data.validation_rows = 0 must be at least 1"),
        ("--data.num_proc 0", "data.num_proc = 0 must be at least 1"),
        ("--objective.name masked_lm", "objective='masked_lm': cannot train stack='decoder'; legal there are causal"),
        ("--objective.name caussal", "objective='caussal': must be one of causal"),
        ("--objective.mask_probability 0.3", "objective 'causal': unknown option 'mask_probability'"),
        (
            "--model.model_type hf_llm_decodr",
            "model.model_type = 'hf_llm_decodr' is unknown; did you mean 'hf_llm_deco",
        ),
        ("--model.hiden_size 8", "unknown key 'model.hiden_size'; did you mean 'hidden_size'?"),
        ("--model.hidden_size -16", "model: `hidden_size=-16` must be at least 1"),
        ("--model.hidden_size 0", "model: `hidden_size=0` must be at least 1"),
        ("--model.num_attention_heads 3", "model: `num_attention_heads=3` must divide `hidden_size=16`"),
        ("--model.num_key_value_heads 3", "model: `num_key_value_heads=3` must divide `num_attention_heads=2`"),
        ("--model.num_hidden_layers -1", "model: `num_hidden_layers=-1` must be at least 1"),
        ("--model.intermediate_size 0", "model: `intermediate_size=0` must be at least 1"),
        ("--model.norm_type layernrom", "model: `norm_type='layernrom'` is not known. Legal values: 'layernorm'"),
        ("--model.hidden_act geluu", "model: `hidden_act='geluu'` is not known. Legal values: 'gelu'"),
        ("--model.layer_types SSX", "model: `layer_types='SSX'` must be a pattern of the letters S"),
        ("--model.sliding_window 0", "model: `sliding_window=0` must be at least 1"),
        ("--model.residual_dropout 1", "model: `residual_dropout=1` must be in [0, 1)"),
        ("--model.rope_parameters {rope_type: yarnn}", "`rope_parameters['rope_type']='yarnn'` is not known"),
        ("--training.max_steps 0", "training.max_steps = 0 must be at least 1"),
        ("--training.num_train_epochs -1", "training.num_train_epochs = -1 must be greater than 0"),
        ("--training.learning_rate -1", "training.learning_rate = -1 must be at least 0"),
        ("--training.learning_rate fast", "training.learning_rate = 'fast' is not of type float"),
        ("--training.per_device_train_batch_size 0", "training.per_device_train_batch_size = 0 must be at least 1"),
        ("--training.gradient_accumulation_steps 0", "training.gradient_accumulation_steps = 0 must be at least 1"),
        ("--training.global_batch_size 3", "training.global_batch_size = 3 is not a multiple of 2"),
        ("--training.optimizer adamx", "training.optimizer = 'adamx' is unknown; legal: adamw"),
        ("--training.optim adamw_torch", "training.optim is not set here: use training.optimizer"),
        ("--training.schedule wds", "training.schedule = 'wds' is unknown; legal: cosine"),
        ("--training.bf16 true --training.fp16 true", "training: At most one of fp16 and bf16"),
        ("--training.warmup_steps -1", "training.warmup_steps = -1 must be at least 0"),
        ("--training.warmup_steps 9", "training.warmup_steps = 9 is more than training.max_steps = 1"),
        ("--training.eval_steps 0", "training.eval_steps = 0 must be greater than 0"),
        ("--training.save_steps 0", "training.save_steps = 0 must be greater than 0"),
        ("--training.logging_steps 0", "training.logging_steps = 0 must be greater than 0"),
        ("--training.max_grad_norm -1", "training.max_grad_norm = -1 must be at least 0"),
        ("--training.weight_decay -0.1", "training.weight_decay = -0.1 must be at least 0"),
        ("--training.eval_strategy sometimes", "training: sometimes is not a valid IntervalStrategy"),
        ("--training.report_to tensorbord", "training.report_to = 'tensorbord' is unknown; legal: "),
        ("--training.report_to neptune", "training.report_to = 'neptune' needs its package"),
        ("--samples.temperature -1", "samples.temperature = -1 must be at least 0"),
        ("--samples.max_new_tokens 0", "samples.max_new_tokens = 0 must be at least 1"),
        ("--word_vectors nowhere.txt", "word_vectors = 'nowhere.txt' is no file"),
    ],
    "finetune": [
        ("--task classification", "did you mean 'sequence_classification' or 'token_classification'?"),
        ("--task token_clasification", "did you mean 'token_classification'?"),
        ("--task token_classification", "the train split has no column 'words'"),
        ("--data.dataset empty.jsonl", "dataset 'empty.jsonl': empty"),
        ("--data.dataset nowhere.jsonl", "dataset 'nowhere.jsonl': no such file"),
        ("--data.dataset broken.jsonl", "dataset 'broken.jsonl': cannot read"),
        ("--data.dataset nulls.jsonl", "has None as 'text', which is no text"),
        ("--data.dataset pairs.jsonl", "the train split has no column 'text'"),
        ("--data.dataset {name: labelled.jsonl, columns: {text: nope}}", "columns=['nope'] not found"),
        ("--data.dataset {name: labelled.jsonl, colums: {text: nope}}", "unknown keys ['colums']"),
        ("--data.max_length 0", "data.max_length = 0 must be at least 1"),
        ("--data.max_train_samples 0", "data.max_train_samples = 0 must be at least 1"),
        ("--model.path nowhere", "model.path = 'nowhere' cannot be opened: no such folder"),
        ("--model.path corpus", "model.path = 'corpus' cannot be opened"),
        ("--model.fields {hiden_size: 3}", "unknown key 'model.fields.hiden_size'; did you mean 'hidden_size'?"),
        ("--model.dtype float17", "model.dtype = 'float17' is no dtype; legal: float32"),
        ("--model.attn_implementation sdpaa", '`attn_implementation="sdpaa"` is not supported'),
        ("--model.adapter nowhere", "model.adapter = 'nowhere' is no PEFT adapter"),
        ("--peft {method: lorra}", "peft.method = 'lorra' is unknown; did you mean 'lora'?"),
        ("--peft {method: lora, rr: 3}", "unknown key 'peft.rr'; did you mean 'r'?"),
        ("--training.max_steps 0", "training.max_steps = 0 must be at least 1"),
        ("--training.max_steps -5", "training.max_steps = -5 must be at least 1"),
        ("--training.num_train_epochs 0", "training.num_train_epochs = 0 must be greater than 0"),
        ("--training.optim adamww", "training: adamww is not a valid OptimizerNames"),
        ("--training.per_device_eval_batch_size 0", "training.per_device_eval_batch_size = 0 must be at least 1"),
        ("--output_dir file", "output_dir = file cannot be written"),
    ],
    "sft": [
        ("--model.path encoder", "model: a hf_llm_encoder has no head for AutoModelForCausalLM"),
        ("--model.path encoder_decoder", "is an encoder-decoder"),
        ("--data.dataset empty.jsonl", "dataset 'empty.jsonl': empty"),
        ("--data.dataset nulls.jsonl", "has None as 'text', which is no text"),
        ("--data.dataset chats.jsonl --data.chat_template nope", "data.chat_template = 'nope' is neither"),
        ("--data.dataset chats.jsonl --data.chat_template chatml", "needs the tokens ['<|im_end|>', '<|im_start|>']"),
        ("--data.dataset null_chats.jsonl --data.chat_template t.jinja", "has the content null"),
        ("--training.max_length -1", "training.max_length = -1 must be at least 1"),
        ("--training.max_length 1", "training.max_length = 1 leaves nothing to learn of the train split"),
        ("--training.assistant_only_loss true", "training.assistant_only_loss = True needs conversations"),
        ("--samples.count -1", "samples.count = -1 must be at least 0"),
    ],
    "seq2seq": [
        ("--data.source nope", "data.source = 'nope' is no column of the data"),
        ("--data.max_target_length 0", "data.max_target_length = 0: must be at least 2"),
        ("--task.name translate", "task.name = 'translate' is unknown; did you mean 'translation'?"),
        ("--generation {num_beams: 0}", "generation.num_beams = 0: must be a whole number, at least 1"),
        ("--generation {num_beamz: 4}", "unknown key 'generation.num_beamz'; did you mean 'num_beams'?"),
    ],
    "dpo": [
        ("--data.dataset labelled.jsonl", "the train split has no column 'chosen'"),
        ("--training.beta -1", "training.beta = -1 must be at least 0"),
        ("--training.max_length 2", "training.max_length = 2 leaves nothing of the train split"),
    ],
    "ppo": [
        ("--rewards []", "rewards: PPO learns from rewards"),
        ("--rewards length", "rewards = 'length' is not of type list"),
        ("--rewards [{function: lenght}]", "rewards.function = 'lenght' is neither FILE.py:function, nor"),
        ("--rewards [{function: length}]", "rewards.function = 'length' needs rewards.options.target"),
        ("--rewards [{function: length, options: {targt: 3}}]", "'rewards.options.targt'; did you mean 'target'?"),
        ("--rewards [{function: mine.py:nice}]", "rewards.function = 'mine.py:nice' cannot be imported"),
        ("--rewards [{function: nowhere.py:nice}]", "nowhere.py is no file"),
        ("--rewards [{model: nowhere}]", "rewards.model = 'nowhere' cannot be opened"),
        ("--rewards [{model: decoder}]", "decoder is no trained reward model"),
        ("--value_model nowhere", "value_model = 'nowhere' cannot be opened"),
        ("--training.kl_coef -1", "training: kl_coef = -1, but it must be at least 0"),
        ("--training.num_mini_batches 0", "training: num_mini_batches = 0, but it must be at least 1"),
        ("--data.dataset long.jsonl", "max_completion_length = 4 leaves 2044 of 2048 positions"),
        ("--data.dataset labelled.jsonl", "the train split has no column 'prompt'"),
    ],
    "reward_model": [
        ("--data.dataset labelled.jsonl", "the train split has no column 'chosen'"),
        ("--training.max_length 0", "training.max_length = 0 must be at least 1"),
    ],
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A working directory with tiny checkpoints and data sets, good and bad ones."""
    folder = tmp_path_factory.mktemp("material")
    functions = [f"def function_{i}(x):\n    return x * {i}\n" for i in range(60)]
    (folder / "corpus").mkdir()
    for i, text in enumerate(functions):
        (folder / "corpus" / f"{i}.txt").write_text(text)
    for stack in ("decoder", "encoder"):
        tokenizer = train_tokenizer(functions, vocab_size=320, stack=stack, show_progress=False)
        tokenizer.save_pretrained(folder / stack)
        config_class = getattr(hf_llm, f"LLM{stack.title()}Config")
        config = config_class(vocab_size=320, **SIZES, pad_token_id=tokenizer.pad_token_id)
        head = {"decoder": hf_llm.LLMDecoderForCausalLM, "encoder": hf_llm.LLMEncoderForMaskedLM}[stack]
        head(config).save_pretrained(folder / stack)
    half = {"vocab_size": 320, **SIZES}
    both = hf_llm.LLMEncoderDecoderConfig(encoder=half, decoder=half, decoder_start_token_id=0)
    hf_llm.LLMEncoderDecoderForConditionalGeneration(both).save_pretrained(folder / "encoder_decoder")
    tokenizer.save_pretrained(folder / "encoder_decoder")

    def chat(i: int, answer: str | None) -> dict:
        return {"messages": [{"role": "user", "content": f"f{i}"}, {"role": "assistant", "content": answer}]}

    rows = {
        "labelled": [{"text": f"def f{i}", "label": i % 2} for i in range(60)],
        "nulls": [{"text": f"def f{i}" if i % 9 else None, "label": i % 2} for i in range(60)],
        "pairs": [{"prompt": f"def f{i}", "chosen": "x", "rejected": "y"} for i in range(60)],
        "long": [{"prompt": f"def f{i} " * 400} for i in range(60)],
        "chats": [chat(i, "x") for i in range(60)],
        "null_chats": [chat(i, None) for i in range(60)],
        "empty": [],
    }
    for name, entries in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    texts = {
        "broken.jsonl": '{"text": "a", "label": 1}\n{"text": \n',
        "broken.yaml": "a: [1\nb: 2",
        "list.yaml": "- 1",
        "empty.txt": "",
        "file": "x",
        "mine.py": "def rude(completions, **columns):\n    return [0.0] * len(completions)\n",
        "t.jinja": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def overrides(words: str) -> list[str]:
    """`--a {b: c, d: e} --f g` as words."""
    return [word for part in words.split("--")[1:] for word in (f"--{part.split()[0]}", part.strip().split(" ", 1)[1])]


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [(recipe, *case) for recipe, cases in MISTAKES.items() for case in cases],
    ids=lambda value: value if value in MISTAKES or value.startswith("--") else "",
)
def test_a_mistake(recipe, words, message, material, monkeypatch, capsys):
    monkeypatch.chdir(material)
    Path("run.yaml").write_text(yaml.safe_dump(SETTINGS[recipe]))
    given = overrides(words)
    config = [] if given[0] == "--config" else ["--config", "run.yaml"]
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *config, *given])
    with pytest.raises(SystemExit) as status:
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    assert status.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"{recipe}.py: error: ") and message in last
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "launcher",
    [["accelerate", "launch", "--quiet", "--cpu"], ["torchrun", "--nproc-per-node", "2"]],
    ids=lambda w: w[0],
)
def test_a_launcher_ends_with_the_error(launcher, material):
    """`accelerate launch` with nothing after it, torchrun with the error as the cause in its report."""
    (material / "run.yaml").write_text(yaml.safe_dump(SETTINGS["pretrain"]))
    words = [*launcher, RECIPES / "pretrain.py", "--config", "run.yaml", "--model.hiden_size", "3"]
    command = [Path(sys.executable).with_name(words[0]), *words[1:]]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(command, cwd=material, env=environment, capture_output=True, text=True, timeout=120)
    message = "pretrain.py: error: unknown key 'model.hiden_size'; did you mean 'hidden_size'?"
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip(" =")]
    assert run.returncode != 0 and lines[-1].endswith(message), run.stderr
    assert "Traceback" not in run.stderr or launcher[0] == "torchrun"
