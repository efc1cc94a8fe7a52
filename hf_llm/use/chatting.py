"""A conversation with a model in the terminal: `hf-llm chat MODEL`."""

from collections.abc import Callable

from transformers import TextStreamer

from .tasks import Model, conversation


HELP = "Type a message; /new starts over, /exit or Ctrl-D ends."


def chat(model: Model, read: Callable[[str], str] = input) -> list[dict]:
    """
    Talk until the user leaves; answers are printed as they are generated.

    Args:
        model: of the task `chat`.
        read: prints a prompt and returns the user's line; raises EOFError at the end.

    Returns:
        The messages of the last conversation.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    messages = start = conversation(model, {"messages": []})
    print(f"{model.path}. {HELP}")
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return messages
        if text == "/exit":
            return messages
        if text == "/new":
            messages = start
        elif text:
            messages = [*messages, {"role": "user", "content": text}]
            messages = [*messages, {"role": "assistant", "content": answer(model, messages)}]


def answer(model: Model, messages: list[dict], streamer: TextStreamer | None = None) -> str:
    """The assistant's next turn, streamed; to the terminal unless a streamer is given. Ctrl-C ends it early."""
    streamer = streamer or TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = model.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.model.device)
    options = model.options
    settings = {"max_new_tokens": options.max_new_tokens, "do_sample": bool(options.temperature)}
    if options.temperature:
        settings["temperature"] = options.temperature
    output = model.model.generate(**inputs, **settings, streamer=streamer, pad_token_id=model.tokenizer.pad_token_id)
    return model.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
