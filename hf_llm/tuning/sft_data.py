"""Examples of supervised fine-tuning: conversations, prompts and completions, or texts; and their chat template."""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers

from hf_llm.data.encoding import check_offsets
from hf_llm.data.tokenization import CHAT_TEMPLATE


# columns of the kinds of data that SFTTrainer knows, the most telling first
FORMATS = {"conversation": ("messages",), "prompt and completion": ("prompt", "completion"), "text": ("text",)}
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


def kind_of(dataset: Dataset) -> str:
    """The key of `FORMATS` that a data set has.

    Raises:
        ValueError: it has none; its columns are listed.
    """
    for kind, columns in FORMATS.items():
        if set(columns) <= set(dataset.column_names):
            return kind
    wanted = ", ".join(" and ".join(f"`{c}`" for c in columns) for columns in FORMATS.values())
    raise ValueError(
        f"data.dataset: its columns are {dataset.column_names}; needed are {wanted} (rename by data.dataset.columns)"
    )


def check_answers(dataset: Dataset, split: str) -> None:
    """Raise ValueError on the first conversation in which no assistant says anything."""
    for column in set(dataset.column_names) - {"prompt"}:
        for i, value in enumerate(dataset[column]):
            if isinstance(value, list) and all(message["role"] != "assistant" for message in value):
                raise ValueError(
                    f"training.assistant_only_loss = True: in example {i} of {split} no assistant says anything"
                )


def has_messages(row: dict) -> bool:
    """Whether an example is made of messages (role and content), which a chat template turns into text."""
    return isinstance(row.get("messages", row.get("prompt")), list)


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str | None, assistant_only: bool) -> None:
    """Give the tokenizer the chat template that training needs.

    Args:
        template: as `SftData.chat_template`.
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
    if assistant_only and not has_generation_markers(tokenizer.chat_template):
        raise ValueError(
            "training.assistant_only_loss = True needs a chat template that marks what the assistant says with "
            "{% generation %} ... {% endgeneration %}, which the tokenizer's does not: set data.chat_template to "
            "'chatml' or to a file with such a template"
        )


def prompt_text(tokenizer: PreTrainedTokenizerBase, row: dict) -> str:
    """What an example begins with, up to where the model goes on: the first message of a conversation, say."""
    if has_messages(row):
        opening = row["messages"][:1] if "messages" in row else row["prompt"]
        return tokenizer.apply_chat_template(opening, tokenize=False, add_generation_prompt=True)
    return row["prompt"] if "prompt" in row else row["text"][: len(row["text"]) // 4]
