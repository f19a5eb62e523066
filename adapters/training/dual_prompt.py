"""A retriever's training, from its data to its folder: begun or gone on with, selected, calibrated, saved."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.data import CaptionData, FactsData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.errors import check
from lvlm_guard.adapters.evaluation.gallery import Gallery
from lvlm_guard.adapters.evaluation.metrics import UNTUNED, Candidate, selected
from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.prompts import SHALLOW, DualPromptConfig, configuration, layers_of
from lvlm_guard.adapters.prompts.heads import FeatureHead
from lvlm_guard.adapters.prompts.producers import Cascade, Clusters, Conditioned, k_means
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.folder import Memory, make, parts, untuned
from lvlm_guard.adapters.retrieval.model import budget
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.training.free import adapted, informed, objects, ready, sentences_of
from lvlm_guard.adapters.training.recipe import Advance, Learnt, Recipe, about, made_once
from lvlm_guard.adapters.training.retrieval import RetrievalTask, calibrate, chosen, scored
from lvlm_guard.adapters.training.trainer import learning, train
from lvlm_guard.errors import WeightsError

WORLD = "the embedded world"  # as its store is described
LORA = "lora"
FIRST = "first"  # the folder of an earlier stage, in that of the training
LAYER, SIDES = re.compile(r"layers\.(\d+)\."), ("text", "vision")


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Args:
        clip: "embedded", a folder or a hub id.
        prompts: a named configuration of `lvlm_guard.adapters.prompts`, or "lora": a stock LoRA of q and v.
        depth: layers with prompts; None for `reach`, or as many as the CLIP has.
        n_ctx, coupling_rank: prompts of a layer, and the rank of text to vision; None for the configuration's own.
        reach: of the prompts where no depth is given.
        options: further fields of `DualPromptConfig`.
        init: folders of adapters whose mean is started from.
        work, lacks: the preset that this is of and what of the work is not exact, for the card.
        free, after: ways of `training.free`, instead of trained prompts, or beside them where claims gain by it.
        first: a stage that is trained before, whose prompts this one begins from; None for none.
        teacher: folder or hub id of the CLIP that the term "distilled" learns from; "" for the untuned CLIP.
        search: of "search": "proposer" (edits, climbing, history, feedback), "fitness" (auroc, mixed), "budget".
        knowledge: whether claims are read with keywords of what the bank says of their objects.
        bank: file of "sentences" and of knowledge; empty for what the word bank says.
        proposer: command that writes prompts: the message on its input, a prompt a line on its output.
        strength: lambda of the word weights, by which L_cate alone is learnt: selection, calibration and matching
            never weigh words, so it is 0 unless asked for.
        losses: what is learnt by; its temperature is left aside for `tau`.
        alike: pairs of one category that a batch takes together; 1 takes them as they come.
        tau: temperature; None for the CLIP's own. A wrong one makes losses of cosines far too sharp or flat.
        withheld: objects about which no claim is trained, chosen by or calibrated on, to see what is learnt of others.
    """

    clip: str = "embedded"
    prompts: str = "dual-prompt"
    depth: int | None = None
    n_ctx: int | None = None
    coupling_rank: int | None = None
    reach: int = 9
    options: Mapping[str, Any] = field(default_factory=dict)
    init: tuple[str, ...] = ()
    work: str = ""
    lacks: str = ""
    free: str = ""
    after: str = ""
    first: Plan | None = None
    teacher: str = ""
    search: Mapping[str, Any] = field(default_factory=dict)
    knowledge: bool = False
    bank: str = ""
    proposer: str = ""
    strength: float = 0.0
    losses: LossStack = field(default_factory=LossStack)
    alike: int = 1
    tau: float | None = None
    withheld: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self, {"alike": 1})

    @property
    def named(self) -> dict[str, Any]:
        """What the card says of it."""
        return {"configuration": self.work or self.free or self.prompts, "lacks": self.lacks}


@dataclass(frozen=True)
class Pictures:
    """A data set, read once for all trainings on it.

    Args:
        train, gallery, pixels: pairs, those of validation, and the pictures of both.
        frozen, untuned: features of the untuned CLIP for the training pictures, and its figures on the gallery.
        bank: what swaps are made of.
    """

    train: CaptionData
    gallery: Gallery
    pixels: Features
    frozen: Features
    untuned: dict[str, float]
    bank: WordBank

    @classmethod
    def read(
        cls,
        data: CaptionData,
        clip: str,
        *,
        validation: int | None = None,
        withheld: Sequence[str] = (),
        advance: Advance = lambda _: None,
    ) -> Pictures:
        """Read the training and validation parts of a data set; pictures that can't be read go, where it allows that.

        Candidates are measured on so many pictures of validation, None for all; `clip` and `withheld` are a plan's.

        Raises:
            DataError: a picture can't be read and is not to be skipped, or a part would be empty.
        """
        learnt, held_out = data.parted()
        bank = bank_of(data)
        plain = untuned(clip)
        wanted = held_out.images[:validation]
        pixels = Features([*learnt.images, *wanted], data.load, plain.image_inputs, advance)
        learnt, held_out = learnt.without(pixels.bad), held_out.without(pixels.bad)
        gone = {bad.image for bad in pixels.bad}
        gallery = Gallery.of(held_out, bank, len([image for image in wanted if image not in gone]), withheld)
        features = Features(learnt.images, str, lambda keys: plain.model.images(pixels(keys)))
        return cls(learnt, gallery, pixels, features, scored(gallery.searched(plain, pixels).figures()), bank)


def fitting(plan: Plan, facts: FactsData) -> FactsData:
    """Return facts whose captions the plan's CLIP can read whole beside its prompts; see `FactsData.fitting`."""
    if str(facts.store) == WORLD:  # made for a tiny context
        return facts
    clip, inputs = parts(plan.clip)
    own = 0 if plan.prompts == LORA or plan.free else len(_prompts(plan, clip, inputs).placeholder_ids)
    return facts.fitting(
        lambda text: len(inputs.tokenizer(text, add_special_tokens=False)["input_ids"]), budget(inputs.context, own)
    )


def bank_of(data: CaptionData) -> WordBank:
    """Return the word bank of a data set: the world's, one of the rows' own categories, or the package's."""
    if str(data.store) == WORLD:
        return WordBank.world()
    kinds: dict[str, list[str]] = {}
    for row in data.rows:
        if row.category:
            kinds.setdefault(row.meta or "thing", []).append(row.category)
    return WordBank.general().with_categories(kinds) if kinds else WordBank.general()


def withheld(data: CaptionData, share: float) -> tuple[str, ...]:
    """Return a share of the objects that the training pictures are known to show, the same ones each time."""
    names = {name for image in data.part("train").images for name in data.objects(image)[0]}
    return tuple(sorted(sorted(names, key=lambda name: sha256(name.encode()).digest())[: int(share * len(names))]))


def build(plan: Plan, pictures: Pictures) -> DualPromptRetriever:
    """Return an untrained retriever; raises as `ready`."""
    ready(plan)
    clip, inputs = parts(plan.clip)
    if plan.free:
        return make(clip, inputs, **plan.named)
    if plan.prompts == LORA:
        rank = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        made = make(get_peft_model(clip, rank), inputs, **plan.named)
    else:
        # objects that have a prompt of their own
        names = objects(plan, pictures).names if plan.options.get("head", {}).get("classes") else ()
        made = make(
            clip,
            inputs,
            config=_prompts(replace(plan, n_ctx=len(names)) if names else plan, clip, inputs),
            strength=plan.strength,
            weighting="two-stage" if plan.strength > 0 else "none",
            **plan.named,
        )
        if names:
            made.memory = Memory("classes", names, {})
        _tell(plan, pictures, made)
    if plan.init:
        start(made, plan.init)
    return made


def _tell(plan: Plan, pictures: Pictures, retriever: DualPromptRetriever) -> None:
    """Tell the pieces of a retriever what they need to know of the data."""

    def centres(k: int) -> Tensor:
        return k_means(pictures.frozen(pictures.train.images), k)

    if plan.knowledge:
        informed(retriever, sentences_of(plan, pictures))
    for module in retriever.model.modules():
        if isinstance(module, Clusters | Conditioned):
            module.centres = centres(module.config.experts)
        if isinstance(module, FeatureHead) and module.guided:
            texts = [retriever.said(text)[0] for text in objects(plan, pictures).texts]
            module.guide = normalize(retriever.frozen_features(texts=texts)[1].mean(0), dim=0)
        if isinstance(module, FeatureHead) and hasattr(module, "keys") and plan.options["producer"] == "conditioned":
            module.keys.data = normalize(centres(module.experts), dim=-1)


def start(retriever: DualPromptRetriever, folders: Sequence[str]) -> None:
    """Give a retriever the mean weights of adapters; raises `WeightsError` for one of another configuration."""
    clip: Any = retriever.model.clip
    there = {key: tuple(value.shape) for key, value in get_peft_model_state_dict(clip).items()}
    cascade = next((module for module in clip.modules() if isinstance(module, Cascade)), None)
    if cascade is not None:
        there = {key: (cascade.config.boosted, *shape[1:]) for key, shape in there.items() if "dual_prompt_ctx" in key}
    sources = []
    for folder in folders:
        read = load_file(Path(folder) / SAFETENSORS_WEIGHTS_NAME)
        # what regulates gradients is learnt beside prompts, and is none of them
        sources.append({key: value for key, value in read.items() if ".gates." not in key or key in there})
        if {key: tuple(value.shape) for key, value in sources[-1].items()} != there:
            raise WeightsError(f"{folder} holds an adapter of other prompts than those to be trained: give such a one.")
    mean = {key: torch.stack([source[key].float() for source in sources]).mean(0) for key in there}
    if cascade is None:
        set_peft_model_state_dict(clip, mean)
        return
    rows = {side: sorted((int(LAYER.findall(key)[0]), key) for key in mean if f"{side}_model" in key) for side in SIDES}
    cascade.boost({side: torch.stack([mean[key] for _, key in rows[side]])[None] for side in SIDES if rows[side]})


def _prompts(plan: Plan, clip: Any, inputs: Inputs) -> DualPromptConfig:
    given = {"n_ctx": plan.n_ctx, "depth": plan.depth, "coupling_rank": plan.coupling_rank}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if plan.depth is None and plan.prompts not in SHALLOW:
        options["depth"] = min(plan.reach, layers_of(clip, "text"), layers_of(clip, "vision"))
    return configuration(plan.prompts, inputs.tokenizer, **options, **plan.options)


def fit(
    plan: Plan, pictures: Pictures, recipe: Recipe, folder: Path, advance: Advance, stage: bool = False, **how: Any
) -> DualPromptRetriever:
    """Train a retriever and save it in a folder, see `made_once`; `how` as of `train`.

    Of a stage that another begins from, the last weights are kept, whatever they are worth on validation.
    """

    def learn(place: Path) -> Learnt[DualPromptRetriever]:
        own, main = plan, PartialState().is_main_process
        if plan.first is not None and not plan.init:
            same = {name: getattr(plan, name) for name in ("clip", "teacher", "depth", "withheld")}
            earlier = replace(plan.first, **same)
            fit(earlier, pictures, recipe, place / FIRST, lambda _: None, stage=True, **how)
            own = replace(plan, init=(str(place / FIRST),))
            torch.manual_seed(recipe.seed)
        retriever, history, begun = build(own, pictures), list[dict[str, Any]](), time.monotonic()
        note: dict[str, Any] = {"untuned": pictures.untuned, "parameters": 0, "found": {}}
        if plan.free:
            if main:
                note["found"] = adapted(own, pictures, retriever, recipe.seed)
                figures = pictures.gallery.searched(retriever, pictures.pixels).figures()
                both = Candidate(UNTUNED, pictures.untuned, claims=True), Candidate(0, figures, claims=True)
                best = selected(both)
            advance(recipe.steps)
        else:
            if how.get("device") == "cpu" or not torch.cuda.is_available():
                # backward is 1.5 times as fast at a tiny CLIP's size, 2 times in bfloat16
                retriever.model.base.set_attn_implementation("eager")
            task = RetrievalTask(retriever, pictures, own, recipe)
            measured, history = train(task, recipe, place, advance, **how)
            if main:
                best = chosen(task, place, measured, recipe, pictures.untuned, stage)
                note["parameters"] = sum(parameter.numel() for parameter in learning(task.model).values())
                del retriever.model.aids
                if plan.after and best.epoch != UNTUNED:
                    found = adapted(replace(own, free=plan.after), pictures, retriever, recipe.seed)
                    judged = pictures.gallery.searched(retriever, pictures.pixels).figures()["claims"]
                    if judged < best.figures["claims"]:  # claims are judged worse with it
                        retriever.memory = None
                    note["found"] = found | {"beside": retriever.memory is not None}
        if not main:
            return retriever, {}, []
        if best.epoch == UNTUNED:
            retriever = untuned(plan.clip, **plan.named)
        calibrate(retriever, pictures.gallery, pictures.pixels)
        note |= {"kept": best.epoch, "averaged": best.averaged, "figures": scored(best.figures, claims=best.claims)}
        return retriever, note | {"seconds": time.monotonic() - begun}, history

    told = about("dual-prompt", plan, recipe, pictures.train, how.get("device", "auto"))
    load = DualPromptRetriever.from_pretrained
    return made_once(load, told, recipe.steps, recipe.seed, folder, advance, learn)
