"""A CLIP that reads captions with room for prompts and weighs their words for a picture.

Source: DCAR (arXiv:2508.04028): w = |S(word, blank) - S(word, picture)|. How w, which is of the size 0.01 to 0.1,
becomes a factor of the word's embedding is ours, see `scaled`.

A weighted caption has one feature for each picture. Weights made from a caption's own picture and used against
others would give the answer away, so every weight here belongs to a pair and is used for that pair alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from lvlm_guard.adapters.loading import is_tuned
from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["raise", "truncate"]


@dataclass(frozen=True)
class CaptionInputs:
    """A batch of captions as a CLIP's text encoder takes them: BOS, slots, words, EOS, padding; [n, tokens] each.

    The mask is 0 on padding, and `words` true on pieces of the captions' own words.
    """

    input_ids: Tensor
    attention_mask: Tensor
    words: Tensor

    def __getitem__(self, rows: Tensor | slice | list[int]) -> CaptionInputs:
        """Return some of the captions."""
        return CaptionInputs(self.input_ids[rows], self.attention_mask[rows], self.words[rows])


def budget(length: int, slots: int) -> int:
    """Return how many word pieces a caption may have: the encoder's length without BOS, EOS and the slots."""
    return length - 2 - slots


def caption_inputs(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    placeholder_ids: Sequence[int] = (),
    *,
    length: int = 77,
    too_long: TooLong = "raise",
) -> CaptionInputs:
    """Return captions with the placeholder tokens after BOS, padded to the longest.

    Args:
        tokenizer, texts: of the CLIP; at least one caption.
        placeholder_ids: of the prompts (`DualPromptConfig.placeholder_ids`); none for a CLIP without text prompts.
        length: most tokens of the text encoder.
        too_long: "raise", or "truncate" to cut the caption's end; EOS stays, which the feature is read from.

    Raises:
        TextError: a caption is empty or too long.
        KnobError: there is no caption, or another `too_long`.
        UnsupportedModelError: the tokenizer has no begin or end token.
    """
    if too_long not in get_args(TooLong):
        raise KnobError(f"too_long is {too_long!r}: give 'raise' or 'truncate'.")
    if isinstance(texts, str) or not texts:
        raise KnobError("Give a list of captions, also if it is one, with at least one in it.")
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is None or end is None:
        raise UnsupportedModelError(
            "This tokenizer has no begin or no end token, between which CLIP reads a caption: load the one that lies "
            "with the CLIP."
        )
    most = budget(length, len(placeholder_ids))
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for pieces, text in zip(rows, texts, strict=True):
        if not pieces:
            raise TextError(f"The caption {text!r} is empty. Say what the picture shows.")
        if len(pieces) > most and too_long == "raise":
            raise TextError(
                f"A caption has {len(pieces)} word pieces, but {most} is the most: this CLIP reads {length} tokens, of "
                f"which BOS, EOS and {len(placeholder_ids)} prompts take {length - most}. Shorten it, or give "
                f"too_long='truncate'. It begins: {text[:60]!r}."
            )
    head = [begin, *placeholder_ids]
    sequences = [torch.tensor([*head, *row[:most], end]) for row in rows]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    ids = pad_sequence(sequences, batch_first=True, padding_value=pad)
    at, lengths = torch.arange(ids.shape[1]), torch.tensor([[len(sequence)] for sequence in sequences])
    return CaptionInputs(ids, (at < lengths).long(), (at >= len(head)) & (at < lengths - 1))


LEAST, MOST = 0.25, 4.0  # bounds of a factor; ours

Factors = Tensor | Callable[[Tensor], Tensor]
"""Of word embeddings, [n, tokens]; or a function of the embeddings [n, tokens, width]."""

_FACTORS: ContextVar[Factors | None] = ContextVar("_FACTORS", default=None)


def raw(blank: Tensor, image: Tensor) -> Tensor:
    """Return w = |S(word, blank) - S(word, picture)| from the cosines of words, same shapes."""
    return (blank.float() - image.float()).abs()


def scaled(weights: Tensor, strength: float, words: Tensor | None = None) -> Tensor:
    """Return factors of embeddings: 1 + strength * (w / mean(w) - 1), within 0.25 to 4, [..., tokens] float32.

    Args:
        weights: w of each token; where all of a row are 0, as for a blank picture, its factors are 1.
        strength: lambda; 0 gives 1 everywhere.
        words: bool: which tokens are words; the mean is over them, and others get 1. None: all are.
    """
    weights = weights.float()
    words = torch.ones_like(weights, dtype=torch.bool) if words is None else words
    weights = weights.masked_fill(~words, 0)
    mean = weights.sum(-1, keepdim=True) / words.sum(-1, keepdim=True).clamp(min=1)
    relative = torch.where(mean > 0, weights / mean.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
    factors = (1 + strength * (relative - 1)).clamp(LEAST, MOST)
    return torch.where(words, factors, 1.0)


def prepare(clip: nn.Module) -> None:
    """Let a CLIP's word embeddings be weighed by `weighing`; without it they are what they were, bit for bit."""
    embedding = next((m for name, m in clip.named_modules() if name.endswith("text_model.embeddings")), None)
    if embedding is None:
        raise UnsupportedModelError(
            f"A {type(clip).__name__} has no text_model.embeddings: give a CLIPModel of transformers."
        )
    table = embedding.token_embedding
    if _weigh not in table._forward_hooks.values():
        table.register_forward_hook(_weigh)


@contextmanager
def weighing(factors: Factors | None) -> Iterator[None]:
    """Multiply word embeddings by factors, before positions are added, in this thread; None: by nothing."""
    token = _FACTORS.set(factors)
    try:
        yield
    finally:
        _FACTORS.reset(token)


def _weigh(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    factors = _FACTORS.get()
    if callable(factors):
        return factors(output)
    return output if factors is None else output * factors[..., None].to(output)


def again(first: Tensor, pair: Callable[[Tensor, Tensor], Tensor], top: int) -> Tensor:
    """Return scores [queries, candidates] whose order is: the best `top` by the second score, the rest by the first.

    Args:
        first: [queries, candidates]; those that are not scored again are moved below the others.
        pair: second score of (queries, candidates), [p] each -> [p].
        top: how many of each query are scored again.
    """
    best = first.topk(min(top, first.shape[1]), dim=1).indices
    queries = torch.arange(len(first))[:, None].expand_as(best)
    second = pair(queries.flatten(), best.flatten()).reshape(best.shape).to(first)
    chosen = torch.zeros_like(first, dtype=torch.bool).scatter(1, best, True)
    rest = first.masked_fill(chosen, -torch.inf).max(1, keepdim=True).values
    # one unit of the scores apart, so that no rounding lets one of the rest tie with the last of the best
    below = torch.where(rest.isfinite(), first - rest + second.min(1, keepdim=True).values - 1, first)
    return below.scatter(1, best, second)


AT_ONCE = 64
"""Pictures or captions in one pass of an encoder."""


class Features(NamedTuple):
    """Normalised features in float32: image [n, d] and text [m, d]; None for a side that was not given."""

    image: Tensor | None
    text: Tensor | None


class RetrievalModel(nn.Module):
    """A CLIP and its prompts if it has any, always in evaluation mode: dropout would make its features another's.

    Given is a `CLIPModel`, or the `PeftModel` around one.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        prepare(clip)
        self.clip = clip.eval()
        self.lock = RLock()  # being frozen is a state
        self._alone: dict[int, Tensor] = {}
        self._blank: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}  # which can't be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.lock = RLock()

    @property
    def base(self) -> Any:
        """The `CLIPModel` itself, prompts included."""
        return self.clip.get_base_model() if is_tuned(self.clip) else self.clip

    @property
    def tau(self) -> float:
        """The temperature of its cosines, the backbone's 1 / exp(logit_scale) mostly: 0.01 for CLIP."""
        return self.gain * float(torch.exp(-self.base.logit_scale.detach().float()))

    @property
    def gain(self) -> float:
        """What an adapter multiplies all cosines by; 1 but for some with several features of a text."""
        head = getattr(getattr(self.base, "text_projection", None), "current", None)
        return 1.0 if head is None else float(head.gain)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.base.logit_scale.device)

    def train(self, mode: bool = True) -> RetrievalModel:
        """Change nothing of the CLIP."""
        super().train(mode)
        self.clip.eval()
        return self

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Return normalised image features, [n, d] float32, of pixels [n, 3, side, side]."""
        pixels = pixel_values.to(self.device, self.base.dtype)
        return normalize(self.base.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, factors: Factors | None = None
    ) -> Tensor:
        """Return normalised text features, [n, d] float32; the ids hold the prompts' placeholders (`CaptionInputs`)."""
        mask = None if attention_mask is None else attention_mask.to(self.device)
        with weighing(factors):
            out = self.base.get_text_features(input_ids=input_ids.to(self.device), attention_mask=mask)
        return normalize(out.pooler_output.float(), dim=-1)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> Features:
        """Return the features of both sides; in distributed training gradients need this one call."""
        return Features(
            None if pixel_values is None else self.encode_image(pixel_values),
            None if input_ids is None else self.encode_text(input_ids, attention_mask, factors),
        )

    def images(self, pixels: Tensor, *, frozen: bool = False) -> Tensor:
        """Return features of pixels without gradients, on the CPU; frozen: those of the untrained CLIP."""
        return self._asked(self.encode_image, frozen, pixels)

    def texts(self, inputs: CaptionInputs, factors: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return features of captions likewise; `factors` [n, tokens] weigh words. Frozen ones have no placeholders."""
        more = () if factors is None else (factors,)
        return self._asked(self.encode_text, frozen, inputs.input_ids, inputs.attention_mask, *more)

    def _asked(self, encode: Callable[..., Tensor], frozen: bool, *tensors: Tensor) -> Tensor:
        with self.lock, self.frozen() if frozen else torch.no_grad():
            parts = zip(*(tensor.split(AT_ONCE) for tensor in tensors), strict=True)
            return torch.cat([encode(*(part.to(self.device) for part in each)).cpu() for each in parts])

    def word_weights(self, frozen_image: Tensor, inputs: CaptionInputs) -> Tensor:
        """Return w of each token of m captions for the picture in the same row, [m, tokens], by frozen features [m, d].

        Where no word stands it has no meaning. Each piece is encoded once.
        """
        pieces, place = inputs.input_ids.unique(return_inverse=True)
        begin, end = inputs.input_ids[0, 0], inputs.input_ids[0, inputs.attention_mask[0].sum() - 1]
        with self.lock:
            if self._blank is None:
                side = self.base.config.vision_config.image_size
                # 0 after normalisation: a picture of the mean colour
                self._blank = self.images(torch.zeros(1, 3, side, side), frozen=True)[0]
            if new := [piece for piece in pieces.tolist() if piece not in self._alone]:
                ids = torch.tensor([[begin, piece, end] for piece in new])
                one = CaptionInputs(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
                self._alone.update(zip(new, self.texts(one, frozen=True), strict=True))
            alone = torch.stack([self._alone[int(piece)] for piece in pieces])[place]
        return raw(alone @ self._blank, torch.einsum("mtd,md->mt", alone, frozen_image.float()))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Be the untrained CLIP within this block, without gradients; captions come without placeholders then.

        PEFT's own switch makes every tensor of an adapter trainable when it turns it on again; here each is afterwards
        what it was.
        """
        asked = {parameter: parameter.requires_grad for parameter in self.clip.parameters()}
        try:
            with torch.no_grad(), self.clip.disable_adapter() if is_tuned(self.clip) else nullcontext():
                yield
        finally:
            for parameter, required in asked.items():
                parameter.requires_grad_(required)
