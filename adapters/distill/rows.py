"""Prompts and answers as the model's inputs, and where in its logits each answer token is told.

One picture's prompts begin alike: with the picture. Where a model's positions and picture features do not depend
on the text, its row holds that beginning once and then every prompt and answer after it, which do not see each
other (a 4-D attention mask; positions go on from the beginning for each). 13 texts about a picture of 576
tokens then cost little more than one. Other models get a row for each text. The logits are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lvlm_guard.adapters.distill.lessons import Answer, Lesson
from lvlm_guard.errors import TextError, UnsupportedModelError
from lvlm_guard.families.family import Family
from lvlm_guard.matching import Vocabulary
from lvlm_guard.matching.claims import finder_of
from lvlm_guard.pretrained import ask, templated
from lvlm_guard.verify.check import mentions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def without_repeats(
    lines: Iterable[str], tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, least: float
) -> Iterator[str]:
    """Yield the lines of an answer file with `unrepeated` descriptions; see there."""
    for lesson in map(Lesson.of, lines):
        answers = [a if a.object is not None else unrepeated(a, tokenizer, vocabulary, least) for a in lesson.answers]
        yield replace(lesson, answers=answers).line()


def unrepeated(answer: Answer, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, least: float) -> Answer:
    """Return an answer whose distributions hold no token that can only name an object that it has named before.

    A guard that keeps a model from naming what is not there lets it name a thing twice where it goes on listing: the
    only noun left that is true. A student that learns to say the same names fewer things, so where the guard's
    distribution held enough for words that name nothing again, at `least` this share, those alone are the lesson. Ours.
    """
    finder = finder_of(tokenizer, vocabulary)
    kept = []
    for step, (ids, shares) in zip(answer.open, answer.soft, strict=True):
        before = answer.tokens[:step]
        named = {mention.object for mention in mentions(str(tokenizer.decode(before)), vocabulary)}
        reached = finder.reachable(before, ids) if named else {}
        new = [place for place, token in enumerate(ids) if not reached.get(token) or not reached[token] <= named]
        enough = sum(shares[place] for place in new) >= least * sum(shares) > 0
        kept.append(([ids[k] for k in new], [shares[k] for k in new]) if new and enough else (ids, shares))
    return replace(answer, soft=kept)


PACKED = ("llava", "llava_next")  # whose positions are plain numbers, and whose towers do not read the text
MASKED = ("sdpa", "eager")  # attentions that take a 4-D mask

Example = tuple[Image, Sequence[Answer]]  # a picture, and answers about it


@dataclass
class Rows:
    """A batch, and its N answer tokens.

    Args:
        inputs: keyword arguments of the model.
        row, place: [N] each: whose logits tell the token.
        token: [N], the token that the teacher took.
        first: [N] bool: the first token of an answer to a question about an object.
        open: [N] bool: the guard had a choice.
        soft_ids, soft: [N, K] each: the guard's distribution at open steps; zeros elsewhere.
    """

    inputs: dict[str, Any]
    row: Tensor
    place: Tensor
    token: Tensor
    first: Tensor
    open: Tensor
    soft_ids: Tensor
    soft: Tensor

    def to(self, device: Any) -> Rows:
        """Return the same on a device."""
        told = [value.to(device) for value in vars(self).values() if isinstance(value, Tensor)]
        return Rows({k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()}, *told)


def _attention(model: Any) -> Any:
    return getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)


def packable(model: Any) -> bool:
    """Tell whether one row may hold all texts about a picture."""
    return model.config.model_type in PACKED and _attention(model) in MASKED


class Layout:
    """Makes batches for a model, wrapped by PEFT or not; `packed`: one row holds all texts about a picture.

    By default that is where the model allows it.
    """

    def __init__(self, model: Any, processor: Any, packed: bool | None = None) -> None:
        self.processor = processor
        self.packed = packable(model) if packed is None else packed
        self.dtype = model.dtype
        token = Family().image_token_id(model.config)
        if token is None:
            raise UnsupportedModelError(
                f"The model's {type(model.config).__name__} names no image token (image_token_index), so its pictures' "
                "places in a prompt can't be told. Fetch the model and its processor again."
            )
        self.image_token, self.pad = token, processor.tokenizer.pad_token_id or 0
        self.bool_mask = _attention(model) == "sdpa"

    def rows(self, examples: Sequence[Example]) -> Rows:
        """Return the batch of some pictures and answers about them."""
        made, spans = self._packed(examples) if self.packed else self._single(examples)
        inputs = {
            key: value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in made.items()
        }
        answers = [answer for _, some in examples for answer in some]
        width = max((len(ids) for answer in answers for ids, _ in answer.soft), default=1)
        told: list[tuple[Any, ...]] = []
        for answer, (row, start) in zip(answers, spans, strict=True):
            soft = dict(zip(answer.open, answer.soft, strict=True))
            for t, token in enumerate(answer.tokens):
                ids, p = soft.get(t, ([], []))
                rest = width - len(ids)
                padded = [*ids, *[0] * rest], [*p, *[0.0] * rest]
                told.append((row, start + t, token, answer.object is not None and t == 0, t in soft, *padded))
        return Rows(inputs, *(torch.tensor(column) for column in zip(*told, strict=True)))

    def _single(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Return a row for each text, and (row, place that tells its first token) of each."""
        pairs = [(image, answer) for image, answers in examples for answer in answers]
        made = dict(ask(self.processor, [[image] for image, _ in pairs], [answer.prompt for _, answer in pairs]))
        prompts = [ids[mask.bool()] for ids, mask in zip(made["input_ids"], made["attention_mask"], strict=True)]
        whole = [torch.cat([ids, ids.new_tensor(a.tokens)]) for ids, (_, a) in zip(prompts, pairs, strict=True)]
        made["input_ids"] = pad_sequence(whole, True, self.pad)
        made["attention_mask"] = pad_sequence([torch.ones_like(ids) for ids in whole], True)
        if "mm_token_type_ids" in made:  # of the prompt's own length; answers hold no picture
            made["mm_token_type_ids"] = (made["input_ids"] == self.image_token).long()
        return made, [(row, len(prompt) - 1) for row, prompt in enumerate(prompts)]

    def _packed(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Return a row for each picture: what its prompts share, then each text's rest as a segment of its own."""
        images = [image for image, _ in examples]
        made = dict(ask(self.processor, [[image] for image in images], [answers[0].prompt for _, answers in examples]))
        columns: tuple[list[Tensor], ...] = ([], [], [])
        spans: list[tuple[int, int]] = []
        for number, (image, answers) in enumerate(examples):
            whole = made["input_ids"][number][made["attention_mask"][number].bool()].tolist()
            prompts = self._prompts(image, [answer.prompt for answer in answers], whole)
            shared = min(_alike(prompts), min(map(len, prompts)) - 1)
            ids, positions, segments = prompts[0][:shared], [*range(shared)], [0] * shared
            for segment, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1):
                own = [*prompt[shared:], *answer.tokens]
                spans.append((number, len(ids) + len(prompt) - shared - 1))
                ids += own
                positions += range(shared, shared + len(own))
                segments += [segment] * len(own)
            for column, values in zip(columns, (ids, positions, segments), strict=True):
                column.append(torch.tensor(values))
        ids_, positions_, of = (
            pad_sequence(each, True, pad) for each, pad in zip(columns, (self.pad, 0, -1), strict=True)
        )
        place = torch.arange(ids_.shape[1])
        alike = (of[:, None] == of[:, :, None]) | (of[:, None] == 0)
        seen = alike & (place <= place[:, None]) & (of >= 0)[:, :, None]
        mask = (seen | torch.eye(len(place), dtype=torch.bool))[:, None]  # padding sees itself: no row is empty
        if not self.bool_mask:
            mask = torch.zeros(mask.shape, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        return made | {"input_ids": ids_, "attention_mask": mask, "position_ids": positions_}, spans

    def _prompts(self, image: Image, prompts: Sequence[str], first: list[int]) -> list[list[int]]:
        """Return the token ids of prompts about one picture, of which the first's are known.

        The picture's placeholders are as many in each, so the processor need not see it again.
        """
        texts = templated(self.processor, [[image]] * len(prompts), prompts)
        bos = self.processor.tokenizer.bos_token
        special = not (bos and texts[0].startswith(bos))
        bare = self.processor.tokenizer(texts, add_special_tokens=special)["input_ids"]
        count = first.count(self.image_token)
        found = []
        for ids in bare:
            if ids.count(self.image_token) != 1:
                raise TextError("A prompt must show its picture once: write it without the picture's placeholder.")
            at = ids.index(self.image_token)
            found.append([*ids[:at], *[self.image_token] * count, *ids[at + 1 :]])
        return found


def _alike(prompts: Sequence[list[int]]) -> int:
    """Return how many first tokens all prompts share."""
    columns = zip(*prompts, strict=False)
    return next((at for at, column in enumerate(columns) if len(set(column)) > 1), min(map(len, prompts)))
