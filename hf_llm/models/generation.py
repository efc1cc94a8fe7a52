"""What `generate` asks of decoders: prompts of packed documents, texts that outgrow longrope, continuous batching."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin

from .attention import ATTENTIONS
from .compat import CACHE
from .configuration import LLMDecoderConfig
from .operators import decoding
from .positions import POSITIONS
from .visibility import Documents, find_documents, past_length


class _TellsBackends(GenerationMixin):
    """Tells the decoder's backend when `generate` adds tokens."""

    @contextmanager
    def _optimize_model_for_decode(self) -> Iterator[None]:
        with super()._optimize_model_for_decode(), decoding(self.get_decoder()):
            yield


class DecoderGenerationMixin(_TellsBackends):
    """`generate` of a causal decoder."""

    def init_continuous_batching(self, *args, **kwargs):
        """As in transformers; refused where positions bias the scores, since a paged cache does not say how far apart
        two tokens are, and where something else than keys and values is cached."""
        refused = {
            "position_embedding": POSITIONS[self.config.position_embedding].kind == "bias",
            "attention_type": not ATTENTIONS[self.config.attention_type].fits_paged_cache,
        }
        for field in (field for field, no in refused.items() if no):
            raise ValueError(
                f"Continuous batching cannot honour `{field}={getattr(self.config, field)!r}`: use `generate`."
            )
        return super().init_continuous_batching(*args, **kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """As in transformers; where `document_ids` are passed, positions are counted in each document."""
        if model_kwargs.get("document_ids") is not None:
            return Documents(model_kwargs["document_ids"]).positions()
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, document_ids=None, **kwargs):
        """As in transformers, but when a text outgrows longrope's short frequencies, its cached keys have been rotated
        by the wrong ones: the cache is computed anew, once (as in transformers' Phi-3). New tokens belong to the
        prompt's last document."""
        new, cache = kwargs.get("next_sequence_length"), kwargs.get(CACHE)
        if outgrows_longrope(self.config, cache, new, kwargs.get("position_ids")):
            if inputs_embeds is not None:  # of the prompt; what has been generated since has ids
                generated = past_length(cache) + new - inputs_embeds.shape[1]
                embeddings = self.get_input_embeddings()(input_ids[:, input_ids.shape[1] - generated :])
                inputs_embeds, kwargs["is_first_iteration"] = torch.cat((inputs_embeds, embeddings), dim=1), True
            kwargs[CACHE] = kwargs["next_sequence_length"] = None
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        is_first = kwargs.get("is_first_iteration", False)
        pass_documents(inputs, document_ids, inputs.get(CACHE), kwargs.get("attention_mask"), is_first)
        return inputs


class EncoderDecoderGenerationMixin(_TellsBackends):
    """`generate` of an encoder-decoder."""

    def _prepare_encoder_decoder_kwargs_for_generation(self, *args, **kwargs):
        """As in transformers, which has another name for it from 5.20 on; PEFT 0.21 looks for this one."""
        new = getattr(super(), "_prepare_text_encoder_decoder_kwargs_for_generation", None)
        return (new or super()._prepare_encoder_decoder_kwargs_for_generation)(*args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, decoder_token_type_ids=None, decoder_document_ids=None, **kwargs
    ):
        """As in transformers, and as in [`DecoderGenerationMixin`] where a text outgrows longrope's short frequencies;
        new tokens have the last one's `decoder_token_type_ids` and belong to the last document."""
        new, positions = kwargs.get("next_sequence_length"), kwargs.get("decoder_position_ids")
        if outgrows_longrope(self.config.decoder, kwargs.get(CACHE), new, positions):
            kwargs[CACHE] = kwargs["next_sequence_length"] = None
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        mask, is_first = kwargs.get("decoder_attention_mask"), kwargs.get("is_first_iteration", False)
        self_cache = getattr(inputs.get(CACHE), "self_attention_cache", None)
        pass_documents(inputs, decoder_document_ids, self_cache, mask, is_first, "decoder_")
        if decoder_token_type_ids is not None:
            types, length = decoder_token_type_ids, inputs["decoder_input_ids"].shape[1]
            if not kwargs.get("is_first_iteration"):
                types = torch.cat((types, types[:, -1:].expand(-1, input_ids.shape[1] - types.shape[1])), dim=1)
            inputs["decoder_token_type_ids"] = types[:, -length:]
        return inputs


def outgrows_longrope(
    config: LLMDecoderConfig, cache: Cache | None, new: int | None, position_ids: torch.LongTensor | None
) -> bool:
    """Whether longrope rotates `new` tokens by its long frequencies, but rotated those of the cache by its short ones.

    position_ids (batch, cached + new), or `None` where the place in the row is the position."""
    limit = config.longrope_limit
    if limit is None or new is None or cache is None:
        return False
    past = int(past_length(cache))
    if past and position_ids is not None and position_ids.shape[-1] == past + new:
        return bool(position_ids[:, :past].max() < limit <= position_ids.max())
    return 0 < past <= limit < past + new


def pass_documents(
    inputs: dict, document_ids: torch.LongTensor | None, cache: Cache | None, attention_mask, is_first: bool, half=""
) -> None:
    """Add to the inputs that `generate` has prepared the documents of a prompt (batch, prompt), the last of which goes
    on in new tokens, or nothing where the cache remembers them.

    half: "decoder_" in an encoder-decoder. `generate` makes the masks of static caches beforehand, without documents:
    where there are some, attention_mask, from which it made them, takes their place.
    """
    ids = inputs.get(f"{half}input_ids")
    shape = (inputs["inputs_embeds"] if ids is None else ids).shape[:2]
    is_made = inputs.get(f"{half}attention_mask") is not attention_mask
    known = None if is_first else getattr(cache, "document_ids", None)
    if document_ids is None and is_made and is_first:
        documents = find_documents(None, inputs.get(f"{half}position_ids"), attention_mask, cache, shape)
        document_ids = None if documents is None else documents.ids
    elif document_ids is not None and known is not None and known.shape[1] >= document_ids.shape[1]:
        document_ids = None
    elif document_ids is not None and document_ids.shape[1] != shape[1]:
        total = shape[1] + (int(past_length(cache)) if known is None else known.shape[1])
        new = document_ids.amax(-1, keepdim=True).expand(-1, max(total - document_ids.shape[1], 0))
        document_ids = torch.cat((document_ids, new), dim=-1)[:, :total]
    inputs[f"{half}document_ids"] = document_ids
    if is_made and (document_ids is not None or known is not None):
        inputs[f"{half}attention_mask"] = attention_mask
