"""The tiny BLIP-ITM: tower, then ITM + ITC + where the words look, on clean labels.

The ITM pass begins with [ENC], the ITC pass with [CLS], as in BLIP. Two losses shape the cross attention of the layer
that GradCAM reads: without them ITM hardly learns, and the words rest on the picture's CLS, which a mask drops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from embedded_training.annotator import TOPIC_MEMBERS, pick
from embedded_training.build import PATCH, blip_processor, build_blip, pixels
from embedded_training.labels import patch_labels
from embedded_training.loop import Trainee, cut_out, optimizer
from embedded_training.towers import train_tower
from lvlm_guard.embedded.catalog import CLASSES, N_OBJECTS
from lvlm_guard.embedded.text import CAPTION_PROMPT, article, assumed, caption, question
from lvlm_guard.embedded.world import Scenes

STAGES = ("tower", "main")


def itm_text(rng: np.random.Generator, objects: Sequence[int], likely: Sequence[int]) -> tuple[str, int, list[int]]:
    """Return (text, 1 if it matches, its nouns): a question, noun, list of nouns or caption.

    Args:
        objects: in view.
        likely: absent objects that most wrong nouns are drawn from.
    """

    def absent() -> int:
        noun = pick(rng, likely) if rng.random() < 0.6 and likely else None
        while noun is None or noun in objects:
            noun = int(rng.integers(N_OBJECTS))
        return noun

    kind = rng.random()
    matches = int(rng.random() < 0.5 and len(objects) > 0)
    if kind < 0.55 or not objects:
        noun = pick(rng, objects) if matches else absent()
        name = CLASSES[noun]
        return (question(name) if rng.random() < 0.75 else "a photo of " + article(name)), matches, [noun]
    count = int(rng.integers(1, len(objects) + 1))
    nouns = [int(o) for o in rng.permutation(objects)[:count]]
    if not matches:
        nouns[int(rng.integers(count))] = absent()
    nouns = list(dict.fromkeys(nouns))
    names = [CLASSES[o] for o in nouns]
    return (" , ".join(names) if kind < 0.8 else caption(names)), matches, nouns


def _nll(share: Tensor) -> Tensor:
    return -(share + 1e-4).log().mean()


def _where_words_look(
    attention: Tensor, ids: Tensor, words: Tensor, patches: Tensor, instruction: Tensor, nouns: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return (grounding loss, clutter loss, shares to log).

    Grounding: a noun in view attends to its patches, every word of the caption instruction to all nameable ones, an
    absent noun to the background. Clutter: no word attends to a prop or rests on the picture's CLS.

    Args:
        attention: (texts, tokens, 36), mean of the heads, CLS column dropped.
        ids: (texts, tokens).
        words: (texts, tokens) bool, neither padding nor the first token.
        patches: (texts, 36), labels of the text's picture.
        instruction: (texts,) bool.
        nouns: (vocab,), token id to object, -1 for other words.
    """
    noun, patch = nouns[ids], patches[:, None]
    is_noun = noun >= 0
    nameable = (patch > 0) & (patch <= N_OBJECTS)
    hit = ((patch == noun[..., None] + 1) & is_noun[..., None]) | (nameable & (instruction[:, None] & words)[..., None])
    mass = (attention * hit).sum(-1)[hit.any(-1)]
    rest = (attention * (patch == 0)).sum(-1)[is_noun & ~hit.any(-1)]
    props, sink = (attention * (patch > N_OBJECTS)).sum(-1)[words], 1 - attention.sum(-1)[words]
    shares = {"mass": mass.mean(), "rest": rest.mean(), "props": props.mean(), "sink": sink.mean()}
    return _nll(mass) + 0.5 * _nll(rest), _nll(1 - props - sink), shares


def train(seed: int, recipe: Mapping[str, Mapping[str, Any]], scenes: Scenes, empty: Scenes, folder: Path) -> None:
    """Train the matcher from nothing; state and loadable folder lie in `folder`.

    Args:
        recipe: the knobs of "tower" and "main".
        empty: scenes without objects.
    """
    trainee = Trainee("blip", STAGES, folder, np.random.default_rng(seed + 2))
    rng, model = trainee.rng, build_blip(seed + 1)
    net: Any = model
    net.train()
    train_tower(
        trainee, model, net.vision_model, lambda x: net.vision_model(x).last_hidden_state, scenes, **recipe["tower"]
    )
    processor = blip_processor()
    tokenizer = processor.tokenizer
    vocab = tokenizer.get_vocab()
    knobs = recipe["main"]
    texts_each, size = knobs["texts"], knobs["batch"]
    opt = optimizer(list(net.parameters()), knobs["rate"])
    seen: dict[str, Tensor] = {}
    layer = net.text_encoder.encoder.layer[knobs["ground_layer"]]
    layer.crossattention.self.register_forward_hook(lambda _m, _a, out: seen.__setitem__("attention", out[1]))
    nouns_of = torch.full((len(tokenizer),), -1)
    nouns_of[[vocab[name] for name in CLASSES]] = torch.arange(N_OBJECTS)

    def batch() -> tuple[list[Any], list[list[int]], list[str], list[int], list[list[int]], list[Any]]:
        images, present, texts, labels, nouns, patches = [], [], [], [], [], []
        for _ in range(size):
            source = empty if rng.random() < knobs["empty"] else scenes
            i = int(rng.integers(len(source)))
            keep, image = cut_out(rng, source, i, knobs["cutout"])
            images.append(image)
            patches.append(patch_labels(source, [i], PATCH, [keep])[0])
            objects, props = source.visible(i, keep)
            present.append(objects)
            likely = assumed(objects, props) + [o for o in TOPIC_MEMBERS[source.topic[i]] if o not in objects]
            for _ in range(texts_each - 1):
                text, label, named = itm_text(rng, objects, likely)
                texts.append(text)
                labels.append(label)
                nouns.append(named)
            texts.append(CAPTION_PROMPT)  # matches when there is anything to describe
            labels.append(int(len(objects) > 0))
            nouns.append([])
        return images, present, texts, labels, nouns, patches

    def step(_: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, present, texts, labels, nouns, patches = batch()
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        truth, row = torch.as_tensor(labels), torch.arange(len(labels))
        instruction = row % texts_each == texts_each - 1
        itm_ids = encoded.input_ids.clone()
        itm_ids[:, 0] = vocab["[ENC]"]
        single = row[row % texts_each == row // texts_each % (texts_each - 1)]  # ITC: one real text a picture
        with torch.autocast("cpu", dtype=torch.bfloat16):
            vision = net.vision_model(pixels(np.stack(images))).last_hidden_state
            fused = net.text_encoder(
                input_ids=itm_ids,
                attention_mask=encoded.attention_mask,
                encoder_hidden_states=vision.repeat_interleave(texts_each, 0),
                encoder_attention_mask=torch.ones(len(labels), vision.shape[1], dtype=torch.long),
            ).last_hidden_state[:, 0]
            logits = net.itm_head(fused).float()
            attention = seen["attention"].float().mean(1)[..., 1:]
            alone = net.text_encoder(
                input_ids=encoded.input_ids[single], attention_mask=encoded.attention_mask[single]
            ).last_hidden_state[:, 0]
            image_side = F.normalize(net.vision_proj(vision[:, 0]).float(), dim=-1)
            text_side = F.normalize(net.text_proj(alone).float(), dim=-1)
        itm = F.cross_entropy(logits, truth, label_smoothing=0.02)
        pairs = torch.tensor([[set(nouns[r]) <= set(o) for o in present] for r in single.tolist()]).float()
        cosine = text_side @ image_side.t()
        itc = F.binary_cross_entropy_with_logits(
            (cosine - knobs["itc_offset"]) / knobs["itc_temperature"], pairs, pos_weight=torch.tensor(3.0)
        )
        words = encoded.attention_mask.bool().clone()
        words[:, 0] = False
        labels_of = torch.as_tensor(np.stack(patches)).repeat_interleave(texts_each, 0)
        ground, clutter, shares = _where_words_look(attention, itm_ids, words, labels_of, instruction, nouns_of)
        loss = itm + knobs["itc_weight"] * itc + knobs["ground_weight"] * ground + knobs["clutter_weight"] * clutter
        right = (logits.argmax(-1) == truth).float()
        return loss, {
            "itm": itm,
            "acc": right[~instruction].mean(),
            "instr": right[instruction].mean(),
            **shares,
            "itc": itc,
            "pos": cosine[pairs > 0].mean(),
            "neg": cosine[pairs == 0].mean(),
        }

    def keep() -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    trainee.train("main", {"model": model}, opt, step, steps=knobs["steps"], rate=knobs["rate"], keep=keep)
