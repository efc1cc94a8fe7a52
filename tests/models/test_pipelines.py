"""Generation as people meet it: with a tokenizer, through pipelines, as a stream, behind `transformers serve`."""

import sys
import threading

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    pipeline,
)
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import Modality
from transformers.models.auto import modeling_auto
from transformers.pipelines import SUPPORTED_TASKS

from hf_llm import registration
from hf_llm.models.common import auto_map

from .tiny import MODELS, STACKS, tiny_config


SENTENCES = ["the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore"]
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
NEW = 6


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on two sentences: any text goes in and comes out again."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=64,
    )


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    """`checkpoint(stack)`: a folder with model and tokenizer."""
    folders = {}

    def save(stack: str):
        if stack not in folders:
            torch.manual_seed(0)
            folders[stack] = tmp_path_factory.mktemp(stack)
            config = tiny_config(stack, vocab_size=len(tokenizer), initializer_range=0.3, max_position_embeddings=128)
            MODELS[stack](config).save_pretrained(folders[stack])
            tokenizer.save_pretrained(folders[stack])
        return str(folders[stack])

    return save


def continuation(checkpoint: str, text: str) -> str:
    """What a decoder writes greedily after `text`."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    output = AutoModelForCausalLM.from_pretrained(checkpoint).generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_text_generation_pipeline(checkpoint):
    folder = checkpoint("decoder")
    generator = pipeline("text-generation", folder)
    kwargs = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    expected = [continuation(folder, text) for text in SENTENCES]
    assert [generator(text, **kwargs)[0]["generated_text"] for text in SENTENCES] == expected
    batched = generator(SENTENCES, batch_size=2, **kwargs)  # padded on the left by the pipeline
    assert [result[0]["generated_text"] for result in batched] == expected
    assert generator(SENTENCES[0], max_new_tokens=NEW)[0]["generated_text"].startswith(SENTENCES[0])

    chat = [{"role": "user", "content": "the fox"}]
    answer = generator(chat, max_new_tokens=NEW, do_sample=False)[0]["generated_text"][-1]
    assert answer == {"role": "assistant", "content": continuation(folder, "user: the fox\nassistant:")}


def test_fill_mask_pipeline(checkpoint, tokenizer):
    filler = pipeline("fill-mask", checkpoint("encoder"))
    guesses = filler("the quick <mask> fox", top_k=3)
    inputs = tokenizer("the quick <mask> fox", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = filler.model(**inputs).logits
    best = logits[inputs["input_ids"] == tokenizer.mask_token_id][0].softmax(-1).topk(3)
    assert [guess["token"] for guess in guesses] == best.indices.tolist()
    assert [guess["score"] for guess in guesses] == pytest.approx(best.values.tolist())
    assert [len(several) for several in filler(["a <mask>", "by <mask> sea"], top_k=2, batch_size=2)] == [2, 2]


@pytest.mark.parametrize("task", ["text2text-generation", "summarization", "translation"])
def test_encoder_decoder_pipelines_where_transformers_has_them(task, checkpoint):
    if task not in SUPPORTED_TASKS:
        pytest.skip(f"transformers {transformers.__version__} has no {task} pipeline")
    assert pipeline(task, checkpoint("encoder_decoder"))(SENTENCES[0], max_new_tokens=NEW)


def test_feature_extraction_pipeline(checkpoint):
    for stack in ("encoder", "decoder"):
        features = pipeline("feature-extraction", checkpoint(stack))(SENTENCES[0], return_tensors=True)
        assert features.shape[0] == 1 and features.shape[2] == 32


@pytest.mark.parametrize("stack", ["decoder", "encoder_decoder"])
def test_a_stream_is_the_text_of_generate(stack, checkpoint):
    folder = checkpoint(stack)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto_class = AutoModelForCausalLM if stack == "decoder" else AutoModelForSeq2SeqLM
    model = auto_class.from_pretrained(folder)
    inputs = tokenizer(SENTENCES[0], return_tensors="pt", return_token_type_ids=False)
    kwargs = {"max_new_tokens": 12, "do_sample": False}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **kwargs, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    prompt = inputs["input_ids"].shape[1] if stack == "decoder" else 1
    whole = tokenizer.decode(model.generate(**inputs, **kwargs)[0, prompt:], skip_special_tokens=True)
    assert len(pieces) > 1 and "".join(pieces) == whole


def test_stop_strings(checkpoint):
    folder = checkpoint("decoder")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(SENTENCES[0], return_tensors="pt", return_token_type_ids=False)
    kwargs = {"max_new_tokens": 12, "do_sample": False}
    free = tokenizer.decode(model.generate(**inputs, **kwargs)[0])
    stop = next(character for character in free[len(SENTENCES[0]) + 2 :] if character.isascii())
    stopped = tokenizer.decode(model.generate(**inputs, **kwargs, stop_strings=stop, tokenizer=tokenizer)[0])
    assert free.startswith(stopped) and stop in stopped[len(SENTENCES[0]) :] and len(stopped) < len(free)


# -- serve ------------------------------------------------------------------------------------------------------------


def test_the_names_that_transformers_looks_up():
    """`serve`, Trainer, pipelines and PEFT find a class by name on `transformers` and in its name tables."""
    for stack, (config_class, module) in registration.STACKS.items():
        for auto_name, target in auto_map(stack).items():
            if auto_name == "AutoConfig":
                continue
            name = target.split(".")[1]
            assert getattr(transformers, name) is getattr(sys.modules["transformers"], name) is getattr(module, name)
            assert getattr(modeling_auto, registration.NAME_TABLES[auto_name])[config_class.model_type] == name


@pytest.mark.parametrize("stack", STACKS)
def test_serve_opens_a_checkpoint(stack, checkpoint):
    manager = ModelManager(device="cpu", dtype="float32", model_timeout=-1)
    model, processor = manager.load_model_and_processor(manager.process_model_name(checkpoint(stack)))
    for loaded in manager.loaded_models.values():
        loaded._timer.cancel()
    assert type(model) is MODELS[stack]
    assert processor.pad_token == "<pad>"
    if stack == "decoder":
        assert manager.get_model_modality(model, processor) is Modality.LLM
