"""A page in the browser for what a model is for: `hf-llm demo MODEL`, with Gradio."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

from transformers import TextIteratorStreamer

from .chatting import answer
from .tasks import TASKS, Model, conversation


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def make_page(model: Model):
    """The page (`gradio.Blocks`), to be launched: a chat, or inputs beside what the model makes of them.

    Raises:
        ValueError: Gradio is not installed, or the model's tokenizer has no chat template.
    """
    try:
        import gradio
    except ImportError as error:
        raise ValueError("hf-llm demo needs Gradio: pip install 'hf_llm[demo]'") from error
    name = next(name for name, task in TASKS.items() if task is model.task)
    title = f"{Path(model.path).name}: {name}"
    if name == "chat":
        conversation(model, {"messages": []})
        return gradio.ChatInterface(functools.partial(_stream, model), title=title, api_name="predict")
    outputs = {
        "scores": lambda: gradio.Label(label="classes"),
        "spans": lambda: gradio.HighlightedText(label="spans"),
        "vector": lambda: gradio.JSON(label="vector"),
        "text": lambda: gradio.Textbox(label="prediction", lines=6),
    }
    return gradio.Interface(
        lambda *values: _shown(model, dict(zip(model.task.inputs, values, strict=True))),
        [gradio.Textbox(label=label, lines=4) for label in model.task.inputs],
        outputs[model.task.shape](),
        title=title,
        description=model.task.about,
        flagging_mode="never",
        api_name="predict",
    )


def _shown(model: Model, row: dict):
    """What is shown of the model's record."""
    (record,) = model([row])
    if model.task.shape == "scores":
        return record.get("scores") or {str(record["prediction"]): 1.0}
    if model.task.shape == "spans":
        spans = [{"entity": span["label"], **span} for span in record["prediction"]]
        return {"text": row["text"], "entities": spans}
    return record["prediction"]


def _stream(model: Model, text: str, history: list[dict]) -> Iterator[str]:
    """The answer to a message, as far as it is generated."""
    turns = [{"role": turn["role"], "content": _plain(turn["content"])} for turn in history]
    messages = conversation(model, {"messages": [*turns, {"role": "user", "content": text}]})
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    Thread(target=answer, args=(model, messages, streamer), daemon=True).start()
    found = ""
    for part in streamer:
        found += part
        yield found


def _plain(content: str | list) -> str:
    """The text of a turn, which Gradio keeps as a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
