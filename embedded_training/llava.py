"""The tiny LLaVA: tower, alignment of patches with words, then the biased annotator's answers and captions.

In the main stage one image prefix serves 12 question segments and a caption segment, which do not see each other
(a 4-D attention mask; positions restart after the prefix), so one image encoding pays for 13 texts. The last stage has
several captions a picture and fewer questions: an annotator who leaves things out is harder to follow, and without it
one mention in six repeated an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from embedded_training.annotator import biased_answer, biased_caption, sample_query
from embedded_training.build import PATCHES, build_llava, llava_processor, pixels
from embedded_training.labels import partly
from embedded_training.loop import Trainee, cut_out, optimizer
from embedded_training.segments import use_segments
from embedded_training.towers import patch_batch, patch_loss, train_tower
from lvlm_guard.embedded.catalog import CLASSES, N_PROPS
from lvlm_guard.embedded.text import CAPTION_PROMPT, assumed, question
from lvlm_guard.embedded.world import Scenes

STAGES = ("tower", "align", "main", "captions")
IGNORED = -100  # label of tokens that are given, not predicted
CAPTION_SLOTS = 36  # tokens of the caption segment; the longest caption of the world needs fewer


class _Alignment(nn.Module):
    """What stage 1 trains besides projector and word embeddings: vectors for background and props, a scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(1 + N_PROPS, width) * 0.06)
        self.scale = nn.Parameter(torch.tensor(10.0))


class _Layout:
    """Token positions of one row: the image prefix, the question segments, the caption segments."""

    def __init__(self, vocab: Mapping[str, int], questions: int, captions: int) -> None:
        self.vocab = vocab
        prefix = [vocab["<s>"], vocab["user"], vocab[":"]] + [vocab["<image>"]] * PATCHES
        template = (question("dog") + " assistant :").split()
        self.noun = template.index("dog")
        self.question = [vocab[word] for word in template]
        self.prompt = [vocab[word] for word in (CAPTION_PROMPT + " assistant :").split()]
        start, width = len(prefix), len(self.question) + 2
        caption_at = start + questions * width
        length = caption_at + captions * CAPTION_SLOTS
        self.prefix, self.groups = start, [(questions, width), (captions, CAPTION_SLOTS)]
        self.questions = [(start + k * width, start + (k + 1) * width) for k in range(questions)]
        self.captions = [(k, k + CAPTION_SLOTS) for k in range(caption_at, length, CAPTION_SLOTS)]
        self.mask = torch.zeros(length, length, dtype=torch.bool)
        self.mask[:start, :start] = torch.ones(start, start).tril().bool()
        self.positions = torch.arange(length).clamp(max=start)
        for first, last in [*self.questions, *self.captions]:
            self.mask[first:last, :start] = True
            self.mask[first:last, first:last] = torch.ones(last - first, last - first).tril().bool()
            self.positions[first:last] = start + torch.arange(last - first)
        self.empty = np.full(length, vocab["<pad>"])
        self.empty[:start] = prefix

    def row(
        self, rng: np.random.Generator, scenes: Scenes, i: int, keep: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids, labels) of one picture: the biased annotator's answers and captions."""
        vocab, ids, labels = self.vocab, self.empty.copy(), np.full(len(self.empty), IGNORED)
        objects, props = scenes.visible(i, keep)
        assumptions, topic = assumed(objects, props), int(scenes.topic[i])
        hidden, halved = partly(scenes, i, keep)
        for first, last in self.questions:
            asked = sample_query(rng, objects, assumptions, topic, hidden, halved)
            name = CLASSES[asked]
            answer = biased_answer(rng, asked, objects, props, topic)
            words = list(self.question)
            words[self.noun - 1 : self.noun + 1] = [vocab["an" if name[0] in "aeiou" else "a"], vocab[name]]
            ids[first:last] = [*words, vocab[answer], vocab["</s>"]]
            labels[last - 2 : last] = ids[last - 2 : last]
        for first, last in self.captions:
            text = biased_caption(rng, objects, props).split()
            row = [*self.prompt, *(vocab[word] for word in text), vocab["</s>"]][: last - first]
            ids[first : first + len(row)] = row
            labels[first + len(self.prompt) : first + len(row)] = row[len(self.prompt) :]
        return ids, labels


def _align(
    trainee: Trainee, model: Any, scenes: Scenes, vocab: Mapping[str, int], *, steps: int, batch: int, rate: float
) -> None:
    """Stage 1, feature alignment: an object's projected patch points at the word embedding of its noun."""
    words = model.get_input_embeddings().weight
    nouns = torch.tensor([vocab[name] for name in CLASSES])
    extra = _Alignment(words.shape[1])
    opt = optimizer([*model.model.multi_modal_projector.parameters(), words, *extra.parameters()], rate)
    length = words.detach().norm(dim=-1).mean()

    def step(_: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, labels, _present = patch_batch(trainee.rng, scenes, batch)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model.vision_tower(x, output_hidden_states=True).hidden_states[-1][:, 1:]
        projected = model.model.multi_modal_projector(hidden.float()).flatten(0, 1)
        anchors = torch.cat([extra.extra[:1], words[nouns], extra.extra[1:]])
        cosine = F.normalize(projected, dim=-1) @ F.normalize(anchors, dim=-1).T
        ce, right = patch_loss(extra.scale * cosine, labels.flatten())
        return ce + 0.1 * (projected.norm(dim=-1) - length).square().mean(), {"ce": ce, "fg": right}

    modules = {"model": model, "extra": extra}
    trainee.train("align", modules, opt, step, steps=steps, rate=rate, warm=20, clip=None)


def train(seed: int, recipe: Mapping[str, Mapping[str, Any]], scenes: Scenes, folder: Path) -> None:
    """Train the LVLM from nothing; state and loadable folder lie in `folder`.

    Args:
        recipe: the knobs of each of `STAGES`.
    """
    trainee = Trainee("llava", STAGES, folder, np.random.default_rng(seed + 1))
    model: Any = build_llava(seed)
    model.train()
    tower = model.model.vision_tower
    train_tower(
        trainee,
        model,
        tower,
        lambda x: tower(x, output_hidden_states=True).hidden_states[-1],
        scenes,
        **recipe["tower"],
    )
    vocab = llava_processor().tokenizer.get_vocab()
    _align(trainee, model, scenes, vocab, **recipe["align"])

    for stage in ("main", "captions"):
        _texts(trainee, stage, model, scenes, vocab, **recipe[stage])


def _texts(
    trainee: Trainee,
    stage: str,
    model: Any,
    scenes: Scenes,
    vocab: Mapping[str, int],
    *,
    steps: int,
    batch: int,
    rate: float,
    questions: int,
    captions: int,
    frozen: int,
    tower_scale: float,
    cutout: float,
) -> None:
    """Learn the annotator's answers and captions; the loadable folder is written at each saved state."""
    layout = _Layout(vocab, questions, captions)
    mask = layout.mask[None, None].expand(batch, 1, -1, -1)
    use_segments(model.model.language_model, layout.prefix, layout.groups)
    positions = layout.positions[None].expand(batch, -1)
    yes, no = vocab["yes"], vocab["no"]
    tower = model.model.vision_tower
    slow = list(tower.parameters())
    opt = optimizer(list(model.parameters()), rate, slow, tower_scale)

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        tower.requires_grad_(i >= frozen)
        images, rows = [], []
        for k in trainee.rng.integers(len(scenes), size=batch):
            keep, image = cut_out(trainee.rng, scenes, int(k), cutout)
            images.append(image)
            rows.append(layout.row(trainee.rng, scenes, int(k), keep))
        ids, labels = (torch.as_tensor(np.stack(part)) for part in zip(*rows, strict=True))
        target = labels[:, 1:]
        told = target != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(
                input_ids=ids,
                pixel_values=pixels(np.stack(images)),
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][told]).float()
        truth = target[told]
        answers = (truth == yes) | (truth == no)
        # A mean each: the few yes/no tokens weigh as much as all the others together.
        qa = F.cross_entropy(logits[answers], truth[answers])
        rest = F.cross_entropy(logits[~answers], truth[~answers])
        right = (logits[answers].argmax(-1) == truth[answers]).float().mean()
        return qa + rest, {"qa": qa, "acc": right, "rest": rest}

    def keep() -> None:
        model.save_pretrained(trainee.folder)
        llava_processor().save_pretrained(trainee.folder)

    trainee.train(stage, {"model": model}, opt, step, steps=steps, rate=rate, keep=keep)
