"""What goes on inside a model on one text: attention maps, logit lens, token attributions."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hf_llm.evaluation.opening import Opened


@dataclass(frozen=True)
class Example:
    """One text as a model reads it, and the prediction that is explained.

    Attributes:
        inputs: keywords of the model, batches of one.
        position: where the prediction is: an index into the tokens that have logits.
        read: what the attributions are of: the tokens of `input_ids`, as text.
        written: the tokens that have logits, as text; the same as `read` but for an encoder-decoder.
    """

    inputs: dict[str, torch.Tensor]
    position: int
    read: list[str]
    written: list[str]


def make_example(opened: Opened, text: str, target: str = "") -> Example:
    """
    Args:
        text: what is read. Of an encoder, the first mask token in it (written `[MASK]`) is predicted, or else the last
            token; of a decoder, the token after it.
        target: of an encoder-decoder, the beginning of what is written; the token after it is predicted.

    Raises:
        ValueError: a target for another stack, or an empty text.
    """
    tokenizer, model = opened.tokenizer, opened.model
    if target and opened.stack != "encoder-decoder":
        raise ValueError(f"target = {target!r} is only for an encoder-decoder, and this is a {opened.stack}")
    if opened.stack == "encoder":
        text = text.replace("[MASK]", tokenizer.mask_token)
    ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)["input_ids"].to(model.device)
    if not text or not ids.numel():
        raise ValueError("text is empty: there is nothing to look at")
    inputs = {"input_ids": ids}
    if opened.stack == "encoder-decoder":
        start = model.config.decoder_start_token_id
        written = [start, *tokenizer(target, add_special_tokens=False)["input_ids"]]
        inputs["decoder_input_ids"] = torch.tensor([written], device=model.device)
    last = inputs.get("decoder_input_ids", ids)
    masked = (ids[0] == tokenizer.mask_token_id).nonzero() if opened.stack == "encoder" else ids.new_zeros(0)
    position = int(masked[0]) if len(masked) else last.shape[1] - 1
    return Example(inputs, position, shown(tokenizer, ids[0]), shown(tokenizer, last[0]))


def shown(tokenizer, ids: torch.Tensor) -> list[str]:
    """Tokens as text in which white space can be seen."""
    signs = str.maketrans({"\n": "⏎", " ": "·", "\t": "⇥"})
    texts = (tokenizer.decode([i]).translate(signs) or "∅" for i in ids.tolist())
    return ["".join(c if c.isprintable() else "?" for c in text) for text in texts]


# ---- attention ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_maps(opened: Opened, example: Example) -> dict[str, np.ndarray]:
    """Attention weights by kind, each (layers, heads, from, to), rows summing to 1: "attention" of an encoder or a
    decoder, "encoder", "decoder" and "cross" of an encoder-decoder."""
    with _eager(opened.model):
        outputs = opened.model(**example.inputs, output_attentions=True, use_cache=False)
    kinds = {
        "attention": "attentions",
        "encoder": "encoder_attentions",
        "decoder": "decoder_attentions",
        "cross": "cross_attentions",
    }
    found = {kind: getattr(outputs, name, None) for kind, name in kinds.items()}
    return {kind: torch.cat(list(maps)).float().cpu().numpy() for kind, maps in found.items() if maps}


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Other backends do not keep the weights of attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


# ---- logit lens -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def logit_lens(opened: Opened, example: Example) -> torch.Tensor:
    """
    What the model would predict if its layers ended early (the logit lens of nostalgebraist, 2020).

    The states after each layer take the place of the last layer's output, so that everything behind it (final norm,
    projections, head, scale, softcap) is the model's own.

    Returns:
        logits (layers + 1, seq, vocabulary), float32: of the embeddings, then after each layer. The last row is the
        model's own output.

    Raises:
        ValueError: a model whose layers are not found.
    """
    layers = _layers(opened)
    states = []

    def record(module, arguments, output):
        states.extend([arguments[0], output] if not states else [output])

    with _hooks(layers, record):
        opened.model(**example.inputs, use_cache=False)
    return torch.cat([_ending_with(opened, example, layers, len(states) - 1, state) for state in states])


def _ending_with(opened: Opened, example: Example, layers: list[nn.Module], count: int, state: torch.Tensor):
    """Logits (1, seq, vocabulary) when the last of `count` calls of a layer gives `state`."""
    calls = 0

    def replace(module, arguments, output):
        nonlocal calls
        calls += 1
        return state if calls == count else None

    with _hooks(layers, replace):
        return opened.model(**example.inputs, use_cache=False).logits.float()


def _layers(opened: Opened) -> list[nn.Module]:
    """The layers whose output becomes the logits, each once (shared ones are called several times)."""
    base = opened.model.base_model
    layers = getattr(base.decoder if opened.stack == "encoder-decoder" else base, "layers", None)
    if layers is None:
        raise ValueError(
            f"a {type(opened.model).__name__} has no `layers`: import the checkpoint with `hf-llm import`"
        )
    return list(layers)


@contextlib.contextmanager
def _hooks(modules: list[nn.Module], hook: Callable) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- attributions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attributions:
    """How much each token that was read speaks for a prediction.

    Attributes:
        scores: (seq,) float64, nats. They sum to `log_probability - baseline_log_probability`, but for the error of
            the numerical integration.
        token_id: what is predicted.
        log_probability: of it, given the text.
        baseline_log_probability: of it, with a neutral token in each place.
    """

    scores: np.ndarray
    token_id: int
    log_probability: float
    baseline_log_probability: float


def integrated_gradients(
    opened: Opened, example: Example, token_id: int | None = None, points: int = 64, batch_size: int = 16
) -> Attributions:
    """
    Integrated gradients (https://arxiv.org/abs/1703.01365) of a predicted token's log-probability.

    The path goes from the embeddings of neutral tokens (the mask token, else the padding token; special tokens stay
    what they are) straight to those of the text, and is integrated by Gauss-Legendre quadrature. Embeddings of zeros
    would be no good start: a norm has no gradient to speak of there.

    Args:
        token_id: what is to be explained; default: the likeliest token.
        points: of the quadrature.
        batch_size: of them in a forward pass.

    Raises:
        ValueError: fewer than one point.
    """
    if points < 1:
        raise ValueError(f"points = {points}: must be at least 1")
    model, tokenizer, ids = opened.model, opened.tokenizer, example.inputs["input_ids"]
    others = {name: value for name, value in example.inputs.items() if name != "input_ids"}
    embed = model.get_input_embeddings()
    special = torch.tensor([i in tokenizer.all_special_ids for i in ids[0].tolist()], device=ids.device)
    ids_of_neutral = [tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
    neutral = next(i for i in ids_of_neutral if i is not None)
    with torch.no_grad():
        end, start = embed(ids), embed(torch.where(special, ids, neutral))

    def log_probabilities(embeddings: torch.Tensor) -> torch.Tensor:
        repeated = {name: value.expand(len(embeddings), -1) for name, value in others.items()}
        logits = model(inputs_embeds=embeddings, **repeated, use_cache=False).logits
        return logits[:, example.position].float().log_softmax(-1)

    with torch.no_grad():
        final, first = log_probabilities(torch.cat([end, start]))
    token_id = int(final.argmax()) if token_id is None else token_id
    nodes, weights = (torch.tensor(x, device=end.device) for x in np.polynomial.legendre.leggauss(points))
    gradient = torch.zeros_like(end[0], dtype=torch.float64)
    for part, weight in zip((nodes + 1).div(2).split(batch_size), weights.div(2).split(batch_size), strict=True):
        path = (start + part[:, None, None].to(end.dtype) * (end - start)).requires_grad_()
        value = log_probabilities(path)[:, token_id].sum()
        gradient += torch.einsum("p,psh->sh", weight, torch.autograd.grad(value, path)[0].double())
    scores = (gradient * (end - start)[0].double()).sum(-1)
    return Attributions(scores.cpu().numpy(), token_id, float(final[token_id]), float(first[token_id]))
