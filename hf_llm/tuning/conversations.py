"""Texts of a data set: strings, or conversations (lists of messages) that a chat template turns into strings."""

from pathlib import Path

from datasets import Dataset, Features, Json, List
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers

from hf_llm.data.encoding import check_offsets
from hf_llm.data.tokenization import CHAT_TEMPLATE

from .examples import check_texts


TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"  # of ChatML
_CALLS = ("tool_calls", "function_call")  # keys of a message that may stand for its content
_TEXT_PARTS = ("text", "input_text", "output_text")  # types of parts: those of chat completions, and of responses


def is_conversation(value) -> bool:
    """Whether a value is a list of messages, each a mapping with a role and a content (or calls of tools)."""
    return isinstance(value, list) and bool(value) and all(_is_message(message) for message in value)


def _is_message(value) -> bool:
    has_role = isinstance(value, dict) and isinstance(value.get("role"), str) and value["role"] != ""
    return has_role and ("content" in value or any(value.get(key) for key in _CALLS))


def read_texts(dataset: Dataset, columns: list[str], split: str) -> Dataset:
    """
    The data set with texts that chat templates can write: contents that are lists of text parts are joined by line
    breaks, and keys without a value, which Arrow adds to messages, are dropped. A content stays null beside calls.

    Args:
        columns: of texts, all strings or all conversations.

    Raises:
        ValueError: names the first example that is neither, or has a message without text.
    """
    if not isinstance(dataset[0][columns[0]], list):
        for column in columns:
            check_texts(dataset, column, split)
        return dataset

    def read(row: dict, i: int) -> dict:
        where, texts = f"data: example {i} of {split} has", {}
        for column in columns:
            if not is_conversation(row[column]):
                legal = "a list of messages, with role and content each"
                raise ValueError(f"{where} {repr(row[column])[:80]} as {column!r}: must be {legal}")
            texts[column] = [
                _plain(message, f"{where} {column!r} whose message {n}") for n, message in enumerate(row[column])
            ]
        return texts

    features = Features({**dataset.features, **dict.fromkeys(columns, List(Json()))})
    return dataset.map(read, with_indices=True, features=features, desc="Reading messages")


def _plain(message: dict, where: str) -> dict:
    """A message with a text as content. Raises ValueError where it has none."""
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
                raise ValueError(
                    f"{where} has a part {repr(part)[:80]}: a language model reads parts of type text alone"
                )
        content = "\n".join(part["text"] for part in content)
    elif content is None and not any(message.get(key) for key in _CALLS):
        raise ValueError(f"{where} ({message['role']}) has the content null, and no tool_calls: it must say something")
    elif not isinstance(content, str | None):
        raise ValueError(f"{where} has the content {repr(content)[:80]}: it must be a text or a list of text parts")
    return {**{key: value for key, value in message.items() if value is not None}, "content": content}


def check_calls(dataset: Dataset, columns: list[str], split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError on the first message with calls of tools, if the chat template writes none."""
    unwritten = [key for key in _CALLS if key not in tokenizer.chat_template]
    for column in columns if unwritten else ():
        for i, messages in enumerate(dataset[column]):
            if found := [key for key in unwritten if any(message.get(key) for message in messages)]:
                raise ValueError(
                    f"data: example {i} of {split} has a message with {found[0]} in {column!r}, which the chat "
                    "template does not write: set data.chat_template to a file with a template that does"
                )


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str | None, assistant_only: bool = False) -> None:
    """Give the tokenizer the chat template that training needs.

    Args:
        template: None keeps the tokenizer's; "chatml", or a file with a Jinja template.
        assistant_only: whether it must mark what the assistant says.

    Raises:
        ValueError: there is none, it has no such marks, it needs tokens that the tokenizer lacks, or the tokenizer
            cannot find the marks.
    """
    if template == "chatml":
        if missing := {TURN_START, TURN_END} - set(tokenizer.get_vocab()):
            raise ValueError(f"data.chat_template = 'chatml' needs the tokens {sorted(missing)} in the vocabulary")
        begins_itself = tokenizer.bos_token in (None, TURN_START)
        tokenizer.chat_template = CHAT_TEMPLATE.removeprefix("{{ bos_token }}" if begins_itself else "")
    elif template is not None:
        if not Path(template).is_file():
            raise ValueError(f"data.chat_template = {template!r} is neither 'chatml' nor a file")
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template, and the data is conversations: set data.chat_template to 'chatml' or "
            "to a file with a Jinja template"
        )
    if assistant_only:
        check_offsets(tokenizer, "training.assistant_only_loss = True")
        if not has_generation_markers(tokenizer.chat_template):
            raise ValueError(
                "training.assistant_only_loss = True needs a chat template that marks what the assistant says with "
                "{% generation %} ... {% endgeneration %}, which the tokenizer's does not: set data.chat_template to "
                "'chatml' or to a file with such a template"
            )
