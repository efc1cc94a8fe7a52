"""Texts of a data set: strings, or conversations (lists of messages) that a chat template turns into strings."""

from datasets import Dataset, Features, Json, List
from transformers import PreTrainedTokenizerBase


CALLS = ("tool_calls", "function_call")  # keys of a message that may stand for its content
_TEXT_PARTS = ("text", "input_text", "output_text")  # types of parts: those of chat completions, and of responses


def is_conversation(value) -> bool:
    """Whether a value is a list of messages, each a mapping with a role and a content (or calls of tools)."""
    return isinstance(value, list) and bool(value) and all(_is_message(message) for message in value)


def _is_message(value) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return bool(value["role"]) and ("content" in value or _has_calls(value))


def _has_calls(message: dict) -> bool:
    return any(message.get(key) for key in CALLS)


def read_texts(dataset: Dataset, columns: list[str], split: str) -> Dataset:
    """
    The data set with texts that chat templates can write: contents that are lists of text parts are joined by line
    breaks, and keys without a value, which Arrow adds to messages, are dropped. A content stays null beside calls.

    Args:
        columns: of texts, all strings or all conversations.

    Raises:
        ValueError: names the first example that is neither, or has a message without text.
    """
    chat = isinstance(dataset[0][columns[0]], list)
    legal = "a list of messages, with role and content each" if chat else "a text"
    changed = set()
    for column in columns:
        for i, value in enumerate(dataset[column]):
            where = f"data: example {i} of {split}"
            if not (is_conversation(value) if chat else isinstance(value, str)):
                raise ValueError(f"{where} has {repr(value)[:80]} as {column!r}: must be {legal}")
            for n, message in enumerate(value if chat else ()):
                try:
                    if _plain(message) != message:
                        changed.add(column)
                except ValueError as error:
                    raise ValueError(f"{where} has {column!r} whose message {n} {error}") from None
    if not changed:
        return dataset
    features = Features({**dataset.features, **{column: List(Json()) for column in changed}})
    return dataset.map(
        lambda row: {column: [_plain(message) for message in row[column]] for column in changed},
        features=features,
        desc="Joining parts of messages",
    )


def _plain(message: dict) -> dict:
    """A message with a text as content. Raises ValueError, the end of a sentence, where it has none."""
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
                raise ValueError(f"has a part {repr(part)[:80]}: a language model reads parts of type text alone")
        content = "\n".join(part["text"] for part in content)
    elif content is None and not _has_calls(message):
        raise ValueError(f"({message['role']}) has the content null, and no tool_calls: it must say something")
    elif not isinstance(content, str | None):
        raise ValueError(f"has the content {repr(content)[:80]}: it must be a text or a list of text parts")
    others = {key: value for key, value in message.items() if value is not None and key != "content"}
    return {**others, "content": content}


def check_calls(dataset: Dataset, columns: list[str], split: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError on the first message with calls of tools, if the chat template writes none."""
    for key in CALLS:
        if key in tokenizer.chat_template:
            continue
        for column in columns:
            for i, messages in enumerate(dataset[column]):
                if any(message.get(key) for message in messages):
                    raise ValueError(
                        f"data: example {i} of {split} has a message with {key} in {column!r}, which the chat "
                        "template does not write: set data.chat_template to a file with a template that does"
                    )
