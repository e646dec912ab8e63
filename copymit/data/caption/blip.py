"""BLIP in torch: images in, captions drawn by nucleus sampling out.

Needs the extra `caption` (torch, transformers); only the command imports this module.
Nothing is drawn here: the caller hands in one uniform number per token, so that a
caption depends on them and the image alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from PIL import Image
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BlipForConditionalGeneration,
    GenerationConfig,
    LogitsProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil


@dataclass(frozen=True)
class Blip:
    """A captioning model with everything that it needs."""

    model: Any  # BlipForConditionalGeneration
    tokenizer: Any
    preprocess: BlipImageProcessorPil
    top_p: float
    min_length: int

    def __call__(
        self, images: Sequence[Image.Image], uniforms: Float64[np.ndarray, "B M L"]
    ) -> list[list[str]]:
        """Writes M captions for each of B images, of L tokens at most.

        Args:
          images: RGB, of any size.
          uniforms: in [0, 1), one per token.
        """
        count, num_captions, max_length = uniforms.shape
        text = self.model.config.text_config
        pixels = self.preprocess(images=list(images), return_tensors="pt").pixel_values
        with torch.inference_mode():
            seen = self.model.vision_model(pixels.to(self.model.device))[0]
            # The image is looked at once, however many captions it gets.
            seen = seen.repeat_interleave(num_captions, dim=0)
            start = seen.new_full((len(seen), 1), text.bos_token_id, dtype=torch.long)
            nucleus = Nucleus(
                torch.from_numpy(uniforms.reshape(-1, max_length)).to(seen.device),
                self._forbidden(text.vocab_size).to(seen.device),
                end=text.sep_token_id,
                top_p=self.top_p,
                min_length=self.min_length,
            )
            tokens = self.model.text_decoder.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                encoder_hidden_states=seen,
                encoder_attention_mask=seen.new_ones(seen.shape[:-1], dtype=torch.long),
                logits_processor=[nucleus],
                # Of its own: a checkpoint's may hold penalties or beams.
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max_length,
                    eos_token_id=text.sep_token_id,
                    pad_token_id=text.pad_token_id,
                    bos_token_id=text.bos_token_id,
                ),
            )
        texts = [
            " ".join(self.tokenizer.decode(row, skip_special_tokens=True).split())
            for row in tokens[:, 1:].tolist()
        ]
        return [texts[i * num_captions :][:num_captions] for i in range(count)]

    def _forbidden(self, vocab_size: int) -> torch.Tensor:
        """Marks the tokens that are no text; the end of the caption is allowed."""
        forbidden = torch.arange(vocab_size) >= len(self.tokenizer)
        text = self.model.config.text_config
        forbidden[[*self.tokenizer.all_special_ids, text.bos_token_id]] = True
        forbidden[text.sep_token_id] = False
        return forbidden


class Nucleus(LogitsProcessor):
    """Chooses each token by the uniform number of its place, and leaves no other.

    The token is where the cumulative probability of the nucleus, the likeliest tokens
    that hold `top_p` of the mass together, passes the number.

    Source: Holtzman et al. 2020 (arXiv 1904.09751), section 3.1.
    """

    def __init__(
        self,
        uniforms: torch.Tensor,
        forbidden: torch.Tensor,
        *,
        end: int,
        top_p: float,
        min_length: int,
    ):
        self.uniforms = uniforms
        self.forbidden = forbidden
        self.end = end
        self.top_p = top_p
        self.min_length = min_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - 1
        scores = scores.double().masked_fill(self.forbidden, -torch.inf)
        if place < self.min_length:
            scores[:, self.end] = -torch.inf
        probabilities = scores.softmax(-1)
        falling, order = probabilities.sort(dim=-1, descending=True, stable=True)
        outside = falling.cumsum(-1) - falling >= self.top_p
        outside = torch.zeros_like(outside).scatter(-1, order, outside)
        mass = probabilities.masked_fill(outside, 0).cumsum(-1)
        sought = self.uniforms[:, place, None] * mass[:, -1:]
        chosen = torch.searchsorted(mass, sought, right=True)
        # Rounding must not pass the last token that has any mass.
        chosen = torch.minimum(chosen, (mass < mass[:, -1:]).sum(-1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


def load_blip(name: str, *, top_p: float, min_length: int, max_length: int) -> Blip:
    """Loads a captioning model, on a GPU if there is one.

    Args:
      name: a hub id or a folder, as transformers writes it.
    Raises:
      OSError: if there is no such model.
      ValueError: if it is no BLIP for captions, or captions would be too long for it.
    """
    config: Any = AutoConfig.from_pretrained(name)
    if config.model_type != "blip":
        raise ValueError(
            f"--model={name} is a {config.model_type} model: use a BLIP for captions, "
            "such as Salesforce/blip-image-captioning-base"
        )
    longest = config.text_config.max_position_embeddings - 1
    if max_length > longest:
        raise ValueError(
            f"--max_length={max_length} is more than the {longest} tokens of {name}"
        )
    loaded: Any = BlipForConditionalGeneration.from_pretrained(
        name, output_loading_info=True
    )
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(
            f"--model={name} lacks {len(info['missing_keys'])} weights of a captioning "
            f"model, such as {sorted(info['missing_keys'])[0]}: use a BLIP for captions"
        )
    return Blip(
        model.eval().to("cuda" if torch.cuda.is_available() else "cpu"),
        AutoTokenizer.from_pretrained(name),
        BlipImageProcessorPil.from_pretrained(name),
        top_p,
        min_length,
    )
