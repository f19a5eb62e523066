"""Ways to adapt a CLIP without gradients: other sentences for a claim, or remembered pictures and negatives beside it.

What is found lies in the retriever's card and, where it is tensors, beside it; matchers and tables read it from there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from torch.nn.functional import normalize

from lvlm_guard.adapters import search as searching
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.evaluation.metrics import auroc
from lvlm_guard.adapters.losses import LossInputs, LossStack
from lvlm_guard.adapters.prompts.heads import parted
from lvlm_guard.adapters.retrieval.bank import Sentences
from lvlm_guard.adapters.retrieval.claims import TEMPLATE, Claims, claim, known_of
from lvlm_guard.adapters.retrieval.folder import Memory
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.terms import claims
from lvlm_guard.adapters.testtime import cache, mine
from lvlm_guard.adapters.training.pairs import NULL, null_image
from lvlm_guard.adapters.training.trainer import learning
from lvlm_guard.errors import KnobError, WeightsError
from lvlm_guard.matching.platt import platt
from lvlm_guard.matching.vocabulary import article

if TYPE_CHECKING:
    from lvlm_guard.adapters.training.dual_prompt import Pictures, Plan

# fmt: off
WORDS = ("photo", "picture", "image", "of", "the", "in", "with", "this", "is", "there", "scene", "small", "large",
         "only")
# fmt: on
"""Words that edits draw from, as far as the tokenizer knows them."""

SEEDS = (TEMPLATE, "{article} {object}", "there is {article} {object} in the picture", "the {object}")
LLM = ("history", "feedback")  # proposers that ask a command of the user's
MINUTES = 10  # that a command which writes prompts may think
GATED, SHADED = 256, 200  # pictures by which a gate is learnt, and steps
SHADES = (1.0, 0.5, 0.25, 0.1)  # of the light that there is, from well-lit to dark
CONCEPT_STEPS, CONCEPT_RATE = 200, 3e-4  # of learning features of objects, by Adam; ours, chosen on validation scenes
Found = dict[str, Any]  # what is to be told of an adaptation


class Given(NamedTuple):
    """What a way has: claims about what training pictures show, and an untuned retriever that it changes in place."""

    plan: Plan
    pictures: Pictures
    retriever: DualPromptRetriever
    claims: Claims
    rng: np.random.Generator

    @property
    def features(self) -> Tensor:
        """Of the training pictures by the untuned CLIP, [n, d]."""
        return self.pictures.frozen(self.pictures.train.images)

    def remember(self, kind: str, names: tuple[str, ...], **tensors: Tensor) -> None:
        """Give the retriever a memory."""
        self.retriever.memory = Memory(kind, names, tensors)


def adapted(plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, seed: int) -> Found:
    """Adapt an untuned retriever in place by what the plan says; return what is to be told of it.

    Raises `TrainingError` as `objects`, and `KnobError` for an unknown way, or as `ready`.
    """
    ready(plan)
    if plan.free not in WAYS:
        raise KnobError(f"There is no training-free way {plan.free!r}: give one of {', '.join(WAYS)}.")
    return WAYS[plan.free](Given(plan, pictures, retriever, objects(plan, pictures), np.random.default_rng(seed)))


def objects(plan: Plan, pictures: Pictures) -> Claims:
    """Return the claims about what training pictures show; raises `TrainingError` where they tell of no object."""
    find = known_of(pictures.train, pictures.bank)
    made = Claims.of([find(image) for image in pictures.train.images], without=plan.withheld)
    if not made.telling:
        raise TrainingError("Facts tell of no object that is in some pictures and absent in others; see --data.")
    return made


def ready(plan: Plan) -> None:
    """Raise what is lacking before anything is read, not hours later when this plan's turn comes.

    Raises:
        KnobError: an LLM writes the prompts and none is given, or the file of sentences can't be read or lacks pairs.
        WeightsError: a folder to start from holds no adapter.
    """
    sentences = Sentences.from_file(plan.bank) if plan.bank else Sentences({})
    name = plan.work or "this work"
    if plan.free == "pairs" and not sentences.pairs:
        raise KnobError(
            f'Of {name} there must be sentences that tell two objects apart: give --bank FILE with "pairs".'
        )
    if plan.search.get("proposer") in LLM and not plan.proposer:
        raise KnobError(
            f"The prompts of {name} are written by an LLM: give one, --proposer 'COMMAND' (message in, lines out)."
        )
    for folder in plan.init:
        if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise WeightsError(f"{folder} holds no adapter to start from: give a folder that `lvlm-guard train` wrote.")


def _described(given: Given) -> Found:
    retriever, sentences = given.retriever, sentences_of(given.plan, given.pictures)
    retriever.card = replace(retriever.card, sentences={name: tuple(said) for name, said in sentences.classes.items()})
    return {"sentences": sum(map(len, sentences.classes.values()))}


def _told_apart(given: Given) -> Found:
    sides = Sentences.from_file(given.plan.bank).sides(given.claims.names, given.retriever.text_features)
    given.remember("pairs", given.claims.names, sides=sides)
    return {"pairs": int((sides.square().sum(-1) > 0).sum())}


def _searched(given: Given) -> Found:
    retriever, names, image = given.retriever, given.claims.names, given.features

    def scored(prompt: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        texts = [prompt.format(article=article(name), object=name) for name in names]
        return given.claims.judged((image @ retriever.text_features(texts).T).numpy())

    def logits(prompt: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        scores, true = scored(prompt)
        slope, offset = platt(scores, true, balanced=True)
        return slope * scores + offset, true

    def ranked(prompts: Sequence[str]) -> list[float]:
        return [float(auroc(s[t], s[~t])) for s, t in map(scored, prompts)]

    def calibrated(prompts: Sequence[str]) -> list[float]:
        return [searching.mixed(s, t) for s, t in map(logits, prompts)]

    seeds = [seed for seed in SEEDS if known(retriever, seed.format(article="a", object=names[0]))]
    how = given.plan.search
    fitness = calibrated if how.get("fitness") == "mixed" else ranked
    history = searching.search(seeds, _proposer(given), fitness, int(how.get("budget", 64)), given.rng)
    best = history.best
    retriever.card = replace(retriever.card, templates=(best,))
    scores, true = logits(best)
    err = float(np.mean([(scores[true] <= 0).mean(), (scores[~true] > 0).mean()]))
    # a uniform prior over words of the vocabulary, which every prompt of the search is of
    nats = len(best.split()) * float(np.log(len(retriever.inputs.tokenizer)))
    told: Found = {"prompt": best, "fitness": history.fitness[best], "tried": len(history.fitness)}
    return told | {"error": err, "bound": searching.bound(err, len(image), nats), "nats": nats}


def _proposer(given: Given) -> searching.Propose:
    name = given.plan.search.get("proposer", "edits")
    if name not in LLM:
        words = [word for word in WORDS if known(given.retriever, word)]
        return searching.edits(words) if name == "edits" else searching.climbing(words)
    captions = [row.caption for row in given.pictures.train.rows[:5]] if name == "history" else []
    chat = partial(_chatted, given.plan.proposer)
    return searching.chatting(chat, k=10 if captions else 5, worst=not captions, captions=captions)


def _chatted(command: str, message: str) -> str:
    """Return the reply of a user's command to a message; raises `TrainingError` where it fails or takes too long."""
    how: Any = {"text": True, "capture_output": True, "check": True, "timeout": 60 * MINUTES}
    try:
        return str(subprocess.run(command, shell=True, input=message, **how).stdout)
    except (OSError, subprocess.SubprocessError) as error:
        raise TrainingError(f"The proposer {command!r} failed: {error}.") from error


def _remembered(given: Given) -> Found:
    image, text = given.features, given.retriever.text_features(given.claims.texts)
    held = cache(image, (image @ text.T / given.retriever.model.tau).softmax(-1))
    given.remember("cache", given.claims.names, **held, text=text)
    return {"remembered": len(held["keys"])}


def _negated(given: Given) -> Found:
    retriever, own = given.retriever, given.retriever.text_features(given.claims.texts)
    words = [name for name in given.pictures.bank.meta_of if known(retriever, name)]
    said = retriever.text_features([TEMPLATE.format(article=article(word), object=word) for word in words])
    # of each claim what is far from it and of its own: the rest of the list, however true of the picture
    found = [mine(own[k : k + 1], words, said, len(words) // 2) for k in range(len(own))]
    most, place = min(map(len, found)), {word: k for k, word in enumerate(words)}
    negatives = torch.stack([said[[place[word] for word in each[:most]]] for each in found])
    given.remember("negatives", given.claims.names, negatives=negatives)
    return {"negatives": most}


def _gated(given: Given) -> Found:
    """Learn two prompts, of well-lit and of dark pictures: CLIP-LIT (arXiv:2303.17569), margins between shades."""
    from lvlm_guard.adapters.training.dual_prompt import build

    retriever, pictures = given.retriever, given.pictures
    images = pictures.train.images
    keys = [images[int(k)] for k in given.rng.permutation(len(images))[:GATED]]
    mean, std = (torch.tensor(of)[:, None, None] for of in (retriever.inputs.mean, retriever.inputs.std))
    lit = pictures.pixels(keys) * std + mean
    chain = torch.stack([retriever.frozen_features((lit * shade - mean) / std)[0] for shade in SHADES], 1)
    pair = build(replace(given.plan, free="", prompts="coop", options={"producer": "experts", "experts": 2}), pictures)
    said, d = pair.text_inputs(["photo"]), chain.shape[-1]
    optimizer = torch.optim.AdamW(learning(pair.model).values(), lr=1e-2)
    stack = LossStack(contrastive=0, hard_negative=0, more={"ordered": 1.0})
    for _ in range(SHADED):
        prompts = parted(pair.model.encode_text(said.input_ids, said.attention_mask), 2, d)[0].cpu()
        logits = chain @ prompts.T / retriever.model.tau
        ends = -logits[:, 0].log_softmax(-1)[:, 0] - logits[:, -1].log_softmax(-1)[:, 1]
        value = stack(LossInputs(chain=logits.softmax(-1)[..., 0])).total + ends.mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    undecided = (chain[:, 0] @ retriever.text_features(given.claims.texts).T).mean()[None]
    given.remember("gate", (), pair=prompts.detach(), undecided=undecided)
    share = logits.detach().softmax(-1)[..., 0].mean(0)
    return {"lit": round(float(share[0]), 4), "dark": round(float(share[-1]), 4)}


def _visual(given: Given) -> Found:
    """Fit by which cosine with the NULL image a text is not visual (arXiv:2305.10434), on texts of training."""
    retriever = given.retriever
    null = retriever.model.images(null_image(retriever.inputs.side))[0]
    texts = [*NULL, *given.claims.texts, *(row.caption for row in given.pictures.train.rows[:256])]
    cosines = (retriever.text_features(texts) @ null).double().numpy()
    line = platt(cosines, np.arange(len(texts)) < len(NULL), balanced=True)
    given.remember("visualness", (), null=null, line=torch.tensor(line).float())
    visual = retriever.visualness(texts) > 0.5
    return {"visual": float(visual[len(NULL) :].float().mean()), "not": float((~visual[: len(NULL)]).float().mean())}


def _conceived(given: Given) -> Found:
    made, image, tau = given.claims, given.features, given.retriever.model.tau
    text = nn.Parameter(given.retriever.text_features(made.texts).clone())
    true, false = torch.from_numpy(made.true), torch.from_numpy(made.false)
    slope, offset = platt(*made.judged((image @ text.detach().T).numpy()), balanced=True)
    optimizer = torch.optim.Adam([text], lr=CONCEPT_RATE)
    for _ in range(CONCEPT_STEPS):
        optimizer.zero_grad()
        loss = claims(image @ normalize(text, dim=-1).T + offset / slope, true, false, tau=tau)
        loss.backward()
        optimizer.step()
    given.remember("concepts", made.names, text=normalize(text.detach(), dim=-1))
    return {"concepts": len(text), "loss": float(loss.detach())}


def _viewed(given: Given) -> Found:
    given.remember("views", given.claims.names)
    return {"names": len(given.claims.names)}


def known(retriever: DualPromptRetriever, text: str) -> bool:
    """Return whether the tokenizer knows all words of a text."""
    tokenizer = retriever.inputs.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(ids) and (tokenizer.unk_token_id == tokenizer.eos_token_id or tokenizer.unk_token_id not in ids)


def informed(retriever: DualPromptRetriever, sentences: Sentences) -> None:
    """Let claims be read with keywords of what is said of their objects where they fit: KAPT (arXiv:2308.11186), P9."""
    most = retriever.inputs.context - retriever.text_inputs(["a"]).input_ids.shape[1] + 1
    told = {}
    for name in sentences.classes:
        words = sentences.keywords(name, partial(known, retriever))
        said = f"{claim(name)}, {words}"
        if words and len(retriever.inputs.tokenizer(said, add_special_tokens=False)["input_ids"]) <= most:
            told[name] = (said,)
    retriever.card = replace(retriever.card, sentences=told)


def sentences_of(plan: Plan, pictures: Pictures) -> Sentences:
    """Return what the plan's bank says of objects, or else the word bank."""
    return Sentences.from_file(plan.bank) if plan.bank else Sentences.of(pictures.bank)


WAYS: dict[str, Callable[[Given], Found]] = {
    "sentences": _described, "pairs": _told_apart, "search": _searched, "cache": _remembered, "negatives": _negated,
    "gate": _gated, "visualness": _visual, "concepts": _conceived, "views": _viewed,
}  # fmt: skip
"""What `Plan.free` may be."""
