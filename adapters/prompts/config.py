"""What a set of learnable prompts is made of: where they enter, how deep, how many, how they start; and published ones.

Sources of the pieces: CoOp (arXiv:2109.01134, shallow text), VPT (arXiv:2203.12119, vision), MaPLe
(arXiv:2210.03117, deep and coupled), DCAR (arXiv:2508.04028, dual prompts). A published way is a function and its line
in `CONFIGURATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from lvlm_guard.errors import KnobError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def add_member(kind: Any, name: str) -> Any:
    """Return the member of a string enum whose name and value are `name`; adds it where it is not there yet.

    Args:
        kind: an enum whose members are strings equal to their names, as PEFT's are.
        name: of the member, upper case.
    """
    if name in kind.__members__:
        return kind[name]
    member: Any = str.__new__(kind, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = kind
    member._sort_order_ = len(kind._member_names_)
    type.__setattr__(kind, name, member)  # the enum's own __setattr__ refuses members
    kind._member_map_[name] = member
    kind._member_names_.append(name)
    kind._value2member_map_[name] = member
    hashable = getattr(kind, "_hashable_values_", None)  # Python 3.12 and later look values up here too
    if hashable is not None:
        hashable.append(name)
    return member


NAME = "DUAL_PROMPT"
CHOICES = {
    "sides": ("text", "vision", "both"),
    "coupling": ("none", "t2v"),
    "prompt_mode": ("replace", "residual"),
    "init": ("words", "normal"),
    "attention": ("full", "decoupled", "coordinated", "approximate"),
}
NEEDED = {
    "recurrent": ("text", "both"),
    "experts": ("text", "both"),
    "conditioned": ("text", "both"),
    "joint": ("both",),
    "mutual": ("both",),
    "style": ("vision", "both"),
    "clusters": ("vision", "both"),
    "summaries": ("vision", "both"),
}
"""Sides without which a producer has nothing to do."""

EACH = {"experts": "text", "conditioned": "text", "summaries": "vision"}
"""Producers by which a side has a feature by each expert."""

add_member(PeftType, NAME)


@dataclass
class DualPromptConfig(PeftConfig):
    """Learnable prompts in CLIP's encoders. Every option composes with every other, or is refused.

    Args:
        sides: "text", "vision" or "both" encoders.
        depth: how many layers from the first one on get prompts of their own; 1 is shallow. After the last of them
            the slots just flow on.
        n_ctx: prompts a layer, each a vector of the encoder's width.
        coupling: "none" gives each side its own prompts; "t2v" makes a layer's vision prompts from its text prompts,
            P = p F^T + b (MaPLe), so no vision prompt is free.
        coupling_rank: 0 for a full F [vision width, text width]; r replaces F by the product of two matrices of rank
            r, recommended below 10,000 pairs (ours, not the papers').
        prompt_mode: "replace" puts the prompt into the slot. "residual" adds it to what is in the slot and starts at
            zero, so that the text side starts as the hand-written prompt bit for bit at any depth. Vision slots have
            nothing in them at layer 0: there a small normal start is appended in either mode.
        init: of the text prompts at layer 0 under "replace": "words" takes embedding + position of the placeholder
            words, so that depth 1 starts as the hand-written prompt; "normal" draws from N(0, 0.02), as all others do.
        placeholder_ids: the n_ctx token ids that stand right after BOS in every caption and are overwritten; empty
            for "vision". `placeholders(tokenizer, n_ctx)` gives those of "a photo of a".
        fixed: places among the placeholders whose words stay, the others are overwritten: an attribute's name between
            prompts (ATPrompt, arXiv:2412.09442).
        producer: what makes prompts of the layers' tables: "tables" takes them as they are; `PRODUCERS` has the others.
        experts: sets of prompts of "clusters" and of the producers of `EACH`.
        boosted: prompts of an earlier stage before the n_ctx that are learnt, of the producer "cascade".
        attention: "full"; "decoupled" scales what patches and prompts say to each other in the vision encoder by
            1 + `eta` (DPL, arXiv:2308.10061); "coordinated" parts the vision prompts into `eta` sets: the class token
            sees the first, each patch that of the others whose mean its cosine is highest with, and with one set all
            see it (TCPA, arXiv:2505.02406); "approximate" has no prompt tokens and adds after each attention what it
            would gather from n_ctx of them, by matrices of rank `eta` (APT, arXiv:2306.15706).
        eta: as said; 0 is off.
        head: what is done with features, by option; see `FeatureHead`.
        target_modules: leave it out; it follows from the rest.

    Raises:
        KnobError: a value outside its range, or options that mean nothing together.
    """

    sides: str = "both"
    depth: int = 9
    n_ctx: int = 4
    coupling: str = "t2v"
    coupling_rank: int = 0
    prompt_mode: str = "replace"
    init: str = "words"
    placeholder_ids: list[int] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)
    producer: str = "tables"
    experts: int = 1
    boosted: int = 0
    attention: str = "full"
    eta: float = 0.0
    head: dict[str, Any] = field(default_factory=dict)
    target_modules: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type: Any = PeftType[NAME]
        for knob, choices in CHOICES.items():
            value = getattr(self, knob)
            if value not in choices:
                raise KnobError(
                    f"{knob} is {value!r}. {did_you_mean(str(value), choices)}Give one of {', '.join(choices)}."
                )
        for knob in ("depth", "n_ctx"):
            value = getattr(self, knob)
            if not isinstance(value, int) or value < 1:
                raise KnobError(f"{knob} is {value!r}: give a whole number of at least 1.")
        if not isinstance(self.coupling_rank, int) or self.coupling_rank < 0:
            raise KnobError(
                f"coupling_rank is {self.coupling_rank!r}: give 0 for a full matrix, or a rank of at least 1."
            )
        if self.coupling == "t2v" and self.sides != "both":
            raise KnobError(
                f"coupling='t2v' makes vision prompts from text prompts, but sides={self.sides!r} has not both: give "
                "sides='both', or coupling='none'."
            )
        if self.coupling == "none" and self.coupling_rank:
            raise KnobError(f"coupling_rank={self.coupling_rank} is of coupling='t2v', which is off: leave it out.")
        if self.prompt_mode == "residual" and self.init == "normal":
            raise KnobError("prompt_mode='residual' starts at zero, so init='normal' means nothing: leave it out.")
        self._check_pieces()
        self._check_placeholders()
        layers = "|".join(str(layer) for layer in range(self.depth))
        towers = "|".join(f"{side}_model" for side in ("text", "vision") if self.sides in (side, "both"))
        targets = rf".*({towers})\.encoder\.layers\.({layers})"
        if self.headed:
            targets += r"|.*(visual|text)_projection"
        if self.target_modules not in (None, targets):
            raise KnobError(
                f"target_modules is {self.target_modules!r}, but it follows from sides={self.sides!r} and "
                f"depth={self.depth}: leave it out."
            )
        self.target_modules = targets

    def _check_pieces(self) -> None:
        from lvlm_guard.adapters.prompts.heads import check
        from lvlm_guard.adapters.prompts.producers import PRODUCERS

        check(self.head)
        if self.producer != "tables" and self.producer not in PRODUCERS:
            raise KnobError(
                f"producer is {self.producer!r}. {did_you_mean(self.producer, PRODUCERS)}Give 'tables' or one of "
                f"{', '.join(PRODUCERS)}."
            )
        needed = NEEDED.get(self.producer, ())
        if self.sides not in (*needed, *(("text", "vision", "both") if not needed else ())):
            raise KnobError(
                f"producer={self.producer!r} needs sides={' or '.join(needed)}, but sides={self.sides!r}: give those."
            )
        if self.producer in ("joint", "mutual") and self.coupling != "none":
            raise KnobError(f"producer={self.producer!r} couples the sides itself: give coupling='none'.")
        if self.experts < 1 or (self.experts > 1 and self.producer not in ("clusters", *EACH)):
            raise KnobError(f"experts is {self.experts!r} with producer={self.producer!r}: it needs one that has some.")
        if self.boosted < 0 or (self.boosted > 0) != (self.producer == "cascade"):
            raise KnobError(f"boosted is {self.boosted!r} with producer={self.producer!r}: 'cascade' needs 1 or more.")
        if "top" in self.head and self.experts == 1:
            raise KnobError("head top chooses among experts, of which there is one: leave it out.")
        if self.head.get("classes") and (not self.vision_slots or self.producer in EACH):
            raise KnobError("head classes scores the outputs of vision prompts: give sides='vision' and no experts.")
        off = self.attention == "full"
        whole = self.attention in ("approximate", "coordinated")
        if self.eta < 0 or off != (self.eta == 0) or (whole and self.eta % 1):
            raise KnobError(
                f"attention={self.attention!r} with eta={self.eta!r}: eta is 0 for full attention, else above it; "
                "approximate attention has a rank, coordinated attention a number of sets."
            )
        if self.attention == "coordinated" and self.n_ctx % self.eta:
            raise KnobError(f"n_ctx is {self.n_ctx} and can't be parted into eta={self.eta!r} equal sets of prompts.")
        if self.attention in ("decoupled", "coordinated") and self.sides == "text":
            raise KnobError(f"attention={self.attention!r} is of the vision encoder: give sides='vision' or 'both'.")
        if self.attention == "approximate" and (self.coupling != "none" or self.producer != "tables"):
            raise KnobError("attention='approximate' has no prompt tokens: give coupling='none' and no producer.")

    @property
    def headed(self) -> bool:
        """Whether features are changed behind the towers."""
        return bool(self.head) or self.ensemble > 1

    @property
    def ensemble(self) -> int:
        """Features of a side that are put one behind the other."""
        return self.experts if self.producer in EACH else 1

    def _check_placeholders(self) -> None:
        if self.attention == "approximate":
            if self.placeholder_ids:
                raise KnobError("attention='approximate' has no slots: leave placeholder_ids out.")
            return
        if self.sides == "vision":
            if self.placeholder_ids:
                raise KnobError("placeholder_ids are the slots of text prompts, but sides='vision': leave them out.")
        elif len(self.placeholder_ids) - len(set(self.fixed) & set(range(len(self.placeholder_ids)))) != self.slots:
            raise KnobError(
                f"placeholder_ids has {len(self.placeholder_ids)} ids for n_ctx={self.slots} prompts: each needs one "
                "token that it overwrites, or it would overwrite words of the caption. "
                "lvlm_guard.adapters.prompts.placeholders(tokenizer, n_ctx) gives them."
            )

    @property
    def slots(self) -> int:
        """How many prompts a layer has, those of an earlier stage among them."""
        return self.n_ctx + self.boosted

    @property
    def vision_slots(self) -> int:
        """How many tokens stand after an image's patches; every consumer of patch tokens drops them."""
        return 0 if self.sides == "text" or self.attention == "approximate" else self.slots


ATTRIBUTES = ("color", "shape", "size", "material", "texture", "red", "two")

WORDS = "a photo of a"  # CoOp's, MaPLe's and CLIP's own hand-written prompt


def placeholders(tokenizer: PreTrainedTokenizerBase, n_ctx: int, words: str = WORDS) -> list[int]:
    """Return the n_ctx token ids that captions carry after BOS; the words are repeated where they are too few.

    Raises:
        KnobError: the tokenizer does not know the words, or makes nothing of them.
    """
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    # CLIP's own tokenizer spells any text in pieces and uses its end token as the unknown one
    if not ids or (unknown is not None and unknown in ids):
        raise KnobError(
            f"This tokenizer does not know all of the words {words!r}, so the prompts would start from its unknown "
            "token. Give words=... that it knows."
        )
    return [int(ids[i % len(ids)]) for i in range(n_ctx)]


def coop(tokenizer: PreTrainedTokenizerBase, *, n_ctx: int = 4, words: str = WORDS, **options: Any) -> DualPromptConfig:
    """CoOp (Zhou et al., IJCV 2022, arXiv:2109.01134): text prompts before the first layer, no more."""
    return DualPromptConfig(
        **{
            "sides": "text",
            "depth": 1,
            "n_ctx": n_ctx,
            "coupling": "none",
            "placeholder_ids": placeholders(tokenizer, n_ctx + options.get("boosted", 0), words),
            **options,
        }
    )


def vpt(
    tokenizer: PreTrainedTokenizerBase | None = None, *, n_ctx: int = 4, depth: int = 9, **options: Any
) -> DualPromptConfig:
    """VPT (Jia et al., ECCV 2022, arXiv:2203.12119): vision prompts; depth=1 is VPT-shallow. Needs no tokenizer."""
    return DualPromptConfig(**{"sides": "vision", "depth": depth, "n_ctx": n_ctx, "coupling": "none", **options})


def maple(
    tokenizer: PreTrainedTokenizerBase, *, n_ctx: int = 2, depth: int = 9, words: str = WORDS, **options: Any
) -> DualPromptConfig:
    """MaPLe (Khattak et al., CVPR 2023, arXiv:2210.03117): deep text prompts, and vision prompts made of them."""
    return DualPromptConfig(
        **{
            "sides": "both",
            "depth": depth,
            "n_ctx": n_ctx,
            "coupling": "t2v",
            "placeholder_ids": placeholders(tokenizer, n_ctx + options.get("boosted", 0), words),
            **options,
        }
    )


def independent(
    tokenizer: PreTrainedTokenizerBase, *, n_ctx: int = 4, depth: int = 9, words: str = WORDS, **options: Any
) -> DualPromptConfig:
    """PromptSRC's prompts (Khattak et al., ICCV 2023, arXiv:2307.06948): deep ones on both sides, uncoupled."""
    return maple(tokenizer, n_ctx=n_ctx, depth=depth, words=words, **{"coupling": "none", **options})


def dual_prompt(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_ctx: int = 4,
    depth: int = 9,
    coupling_rank: int = 16,
    words: str = WORDS,
    **options: Any,
) -> DualPromptConfig:
    """DCAR's dual prompts (arXiv:2508.04028): as MaPLe, with four prompts and a coupling of low rank.

    The paper's code was not published; depth, number and rank are ours. coupling_rank=0 gives the full matrix, which
    has 3.5 M parameters on ViT-B instead of 0.19 M.
    """
    return maple(tokenizer, n_ctx=n_ctx, depth=depth, words=words, coupling_rank=coupling_rank, **options)


def attributes(
    tokenizer: PreTrainedTokenizerBase, *, words: str = WORDS, names: Sequence[str] = ATTRIBUTES, **options: Any
) -> DualPromptConfig:
    """ATPrompt (arXiv:2412.09442): two prompts, an attribute's name, two, another's, two, then the caption.

    Args:
        tokenizer: of the CLIP.
        words: that prompts start from.
        names: of attributes; the first two that the tokenizer knows are taken.

    Raises:
        KnobError: the tokenizer does not know two of them.
    """
    found = []
    for name in names:
        with suppress(KnobError):
            found.append(placeholders(tokenizer, len(tokenizer(name, add_special_tokens=False)["input_ids"]), name))
    if len(found) < 2:
        raise KnobError(f"This tokenizer does not know two of the attributes {', '.join(names)}: give names it knows.")
    four = placeholders(tokenizer, 4, words)
    ids = [*four[:2], *found[0], *four[2:], *found[1], *four[:2]]
    fixed = [*range(2, 2 + len(found[0])), *range(4 + len(found[0]), 4 + len(found[0]) + len(found[1]))]
    return coop(tokenizer, **{"n_ctx": 6, "placeholder_ids": ids, "fixed": fixed, **options})


def approximate(
    tokenizer: PreTrainedTokenizerBase | None = None, *, n_ctx: int = 4, depth: int = 9, **options: Any
) -> DualPromptConfig:
    """APT (arXiv:2306.15706): what attention would gather from prompts, without any in the sequence. No tokenizer."""
    given = {"sides": "both", "coupling": "none", "attention": "approximate", "eta": 4}
    return DualPromptConfig(**{"n_ctx": n_ctx, "depth": depth, **given, **options})


SHALLOW = ("coop", "attributes")
"""Configurations of one layer."""

CONFIGURATIONS: Mapping[str, Callable[..., DualPromptConfig]] = {
    "coop": coop,
    "attributes": attributes,
    "approximate": approximate,
    "vpt": vpt,
    "maple": maple,
    "independent": independent,
    "dual-prompt": dual_prompt,
}


def configuration(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> DualPromptConfig:
    """Return a named configuration for a model's tokenizer; `options` are those of `DualPromptConfig`, and `words`.

    Raises:
        UnknownNameError: none has this name.
    """
    if name not in CONFIGURATIONS:
        raise UnknownNameError(
            f"No prompt configuration is called {name!r}. {did_you_mean(name, CONFIGURATIONS)}Known: "
            f"{', '.join(CONFIGURATIONS)}; or build a DualPromptConfig."
        )
    return CONFIGURATIONS[name](tokenizer, **options)
