"""Runs of an encoder or encoder-decoder that start from a decoder: its tokenizer, its configuration, its weights."""

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ..models.encoder import LLMEncoderForMaskedLM
from ..models.encoder_decoder import LLMEncoderDecoderForConditionalGeneration
from ..surgery import build_from_decoder, encoder_config, encoder_decoder_config, load_decoder
from ..surgery.tokens import prepare_tokenizer, token_fields
from .config import FromDecoderSection
from .settings import opening


MODEL_CLASSES = {"encoder": LLMEncoderForMaskedLM, "encoder-decoder": LLMEncoderDecoderForConditionalGeneration}


class DecoderStart:
    """What a run takes over from a decoder.

    Attributes:
        tokenizer: the decoder's, with the special tokens that the stack needs.
    """

    def __init__(self, section: FromDecoderSection, stack: str):
        """
        Args:
            section: the run's `from_decoder`.
            stack: "encoder" or "encoder-decoder".

        Raises:
            ValueError: not a decoder, or one that cannot move.
        """
        self.section, self.stack = section, stack
        with opening("from_decoder.path", section.path):
            self.decoder = load_decoder(section.path)
            self.tokenizer = AutoTokenizer.from_pretrained(section.path)
        self._known_tokens = prepare_tokenizer(self.tokenizer, stack, section.extra_special_tokens)

    def model_config(self, fields: dict) -> PreTrainedConfig:
        """The decoder's configuration for the other stack; `fields` are those that the run wants otherwise."""
        fields = {**token_fields(self.tokenizer, self.decoder.config.vocab_size), **fields}
        if self.stack == "encoder":
            return encoder_config(self.decoder.config, **fields)
        return encoder_decoder_config(self.decoder.config, self.section.tied, **fields)

    def make_model(self, config: PreTrainedConfig) -> PreTrainedModel:
        """The model in float32 with the decoder's weights, which are then let go."""
        decoder, self.decoder = self.decoder, None
        return build_from_decoder(
            MODEL_CLASSES[self.stack], config, decoder, self.section.cross_attention, self._known_tokens
        ).float()
