"""What a set of learnable prompts is made of: where they enter, how deep, how many, how they start; and published ones.

Sources of the pieces: CoOp (arXiv:2109.01134, shallow text), VPT (arXiv:2203.12119, vision), MaPLe
(arXiv:2210.03117, deep and coupled), DCAR (arXiv:2508.04028, dual prompts). A published way is a line in
`CONFIGURATIONS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import PeftConfig
from peft.utils.peft_types import PeftType

from lvlm_guard.adapters.errors import check
from lvlm_guard.adapters.prompts.heads import check_head
from lvlm_guard.adapters.prompts.producers import BOTH, PRODUCERS
from lvlm_guard.errors import KnobError, UnknownNameError, did_you_mean


def add_member(kind: Any, name: str) -> Any:
    """Return the member of an enum of strings, equal to their names as PEFT's; adds it where it is not there yet."""
    if name in kind.__members__:
        return kind[name]
    member: Any = str.__new__(kind, name)
    member._name_ = member._value_ = name
    member.__objclass__ = kind
    member._sort_order_ = len(kind._member_names_)
    type.__setattr__(kind, name, member)  # the enum's own __setattr__ refuses members
    kind._member_map_[name] = kind._value2member_map_[name] = member
    kind._member_names_.append(name)
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
            zero, so that the text side starts as the hand-written prompt bit for bit at any depth. In vision slots is
            nothing at layer 0: there a small normal start is appended in either mode.
        init: of the text prompts at layer 0 under "replace": "words" takes embedding + position of the placeholder
            words, so that depth 1 starts as the hand-written prompt; "normal" draws from N(0, 0.02), as all others do.
        placeholder_ids: the n_ctx token ids that stand right after BOS in every caption and are overwritten; empty
            for "vision". `placeholders(tokenizer, n_ctx)` gives those of "a photo of a".
        fixed: places among the placeholders whose words stay, the others are overwritten: an attribute's name between
            prompts (ATPrompt, arXiv:2412.09442).
        producer: what makes prompts of the layers' tables: one of `PRODUCERS`; "tables" takes them as they are.
        experts: sets of prompts of "clusters" and of producers by which a side has a feature by `each` expert.
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
        least = {"depth": 1, "n_ctx": 1, "coupling_rank": 0, "experts": 1, "boosted": 0}
        check(self, least, CHOICES | {"producer": tuple(PRODUCERS)})
        check_head(self.head)
        layers = "|".join(str(layer) for layer in range(self.depth))
        towers = "|".join(f"{side}_model" for side in ("text", "vision") if self.sides in (side, "both"))
        targets = rf".*({towers})\.encoder\.layers\.({layers})"
        if self.headed:
            targets += r"|.*(visual|text)_projection"
        for why in self._conflicts(targets):
            raise KnobError(why)
        self.target_modules = targets

    def _conflicts(self, targets: str) -> Iterator[str]:
        """Yield which options mean nothing together, and what to give instead."""
        made, ids = PRODUCERS[self.producer], self.placeholder_ids
        coupled, slotless, parted = (
            self.coupling == "t2v",
            self.attention == "approximate",
            self.attention == "coordinated",
        )
        named = f"with producer={self.producer!r}"
        if coupled and self.sides != "both":
            yield (
                f"coupling='t2v' makes vision prompts from text prompts, but sides={self.sides!r} has not both: give "
                "sides='both', or coupling='none'."
            )
        if self.coupling_rank and not coupled:
            yield f"coupling_rank={self.coupling_rank} is of coupling='t2v', which is off: leave it out."
        if self.prompt_mode == "residual" and self.init == "normal":
            yield "prompt_mode='residual' starts at zero, so init='normal' means nothing: leave it out."
        if self.sides not in made.sides:
            needed = f"producer={self.producer!r} needs sides={' or '.join(made.sides)}"
            yield f"{needed}, but sides={self.sides!r}: give those."
        if coupled and made.sides == BOTH:
            yield f"producer={self.producer!r} couples the sides itself: give coupling='none'."
        if self.experts > 1 and made.each is None and self.producer != "clusters":
            yield f"experts is {self.experts!r} {named}: it needs one that has some."
        if (self.boosted > 0) != (self.producer == "cascade"):
            yield f"boosted is {self.boosted!r} {named}: 'cascade' needs 1 or more."
        if "top" in self.head and self.experts == 1:
            yield "head top chooses among experts, of which there is one: leave it out."
        if self.head.get("classes") and (not self.vision_slots or made.each is not None):
            yield "head classes scores the outputs of vision prompts: give sides='vision' and no experts."
        whole = self.eta % 1 == 0 or not (slotless or parted)
        if self.eta < 0 or (self.attention == "full") != (self.eta == 0) or not whole:
            yield (
                f"attention={self.attention!r} with eta={self.eta!r}: eta is 0 for full attention, else above it; "
                "approximate attention has a rank, coordinated attention a number of sets."
            )
        if parted and self.n_ctx % self.eta:
            yield f"n_ctx is {self.n_ctx} and can't be parted into eta={self.eta!r} equal sets of prompts."
        if self.sides == "text" and (parted or self.attention == "decoupled"):
            yield f"attention={self.attention!r} is of the vision encoder: give sides='vision' or 'both'."
        if slotless and (coupled or self.producer != "tables"):
            yield "attention='approximate' has no prompt tokens: give coupling='none' and no producer."
        if slotless and ids:
            yield "attention='approximate' has no slots: leave placeholder_ids out."
        if self.sides == "vision" and ids:
            yield "placeholder_ids are the slots of text prompts, but sides='vision': leave them out."
        overwritten = len(ids) - len(set(self.fixed) & set(range(len(ids))))
        if self.sides != "vision" and not slotless and overwritten != self.slots:
            yield (
                f"placeholder_ids has {len(ids)} ids for n_ctx={self.slots} prompts: each needs one token that it "
                "overwrites, or it would overwrite words of the caption. "
                "lvlm_guard.adapters.prompts.placeholders(tokenizer, n_ctx) gives them."
            )
        if self.target_modules not in (None, targets):
            follows = f"it follows from sides={self.sides!r} and depth={self.depth}"
            yield f"target_modules is {self.target_modules!r}, but {follows}: leave it out."

    @property
    def headed(self) -> bool:
        """Whether features are changed behind the towers."""
        return bool(self.head) or self.ensemble > 1

    @property
    def ensemble(self) -> int:
        """Features of a side that are put one behind the other."""
        return self.experts if PRODUCERS[self.producer].each else 1

    @property
    def slots(self) -> int:
        """How many prompts a layer has, those of an earlier stage among them."""
        return self.n_ctx + self.boosted

    @property
    def vision_slots(self) -> int:
        """How many tokens stand after an image's patches; every consumer of patch tokens drops them."""
        return 0 if self.sides == "text" or self.attention == "approximate" else self.slots


CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    # CoOp (Zhou et al., IJCV 2022, arXiv:2109.01134): text prompts before the first layer, no more
    "coop": {"sides": "text", "depth": 1, "coupling": "none"},
    # ATPrompt (arXiv:2412.09442): two prompts, an attribute's name, two, another's, two, then the caption
    "attributes": {"sides": "text", "depth": 1, "coupling": "none", "n_ctx": 6},
    # APT (arXiv:2306.15706): what attention would gather from prompts, without any in the sequence
    "approximate": {"coupling": "none", "attention": "approximate", "eta": 4},
    # VPT (Jia et al., ECCV 2022, arXiv:2203.12119): vision prompts; depth=1 is VPT-shallow
    "vpt": {"sides": "vision", "coupling": "none"},
    # MaPLe (Khattak et al., CVPR 2023, arXiv:2210.03117): deep text prompts, and vision prompts made of them
    "maple": {"n_ctx": 2},
    # PromptSRC's prompts (Khattak et al., ICCV 2023, arXiv:2307.06948): deep ones on both sides, uncoupled
    "independent": {"coupling": "none"},
    # DCAR's dual prompts (arXiv:2508.04028): as MaPLe, with four prompts and a coupling of low rank. Its code was not
    # published; depth, number and rank are ours. coupling_rank=0 gives the full matrix, which has 3.5 M parameters on
    # ViT-B instead of 0.19 M
    "dual-prompt": {"coupling_rank": 16},
}
"""By name, what differs from the defaults of `DualPromptConfig`, but for `placeholder_ids`."""

SHALLOW = ("coop", "attributes")
"""Configurations of one layer."""

ATTRIBUTES = ("color", "shape", "size", "material", "texture", "red", "two")

WORDS = "a photo of a"  # CoOp's, MaPLe's and CLIP's own hand-written prompt


def configuration(
    name: str, tokenizer: Any = None, *, words: str = WORDS, names: Sequence[str] = ATTRIBUTES, **options: Any
) -> DualPromptConfig:
    """Return a configuration of `CONFIGURATIONS`, with further options of `DualPromptConfig`.

    Args:
        tokenizer: of the CLIP; where captions have slots.
        words: that prompts start from.
        names: of "attributes", of which the first two are taken that the tokenizer knows.

    Raises:
        UnknownNameError: none has this name.
        KnobError: the tokenizer does not know the words, or two of the names.
    """
    if name not in CONFIGURATIONS:
        raise UnknownNameError(
            f"No prompt configuration is called {name!r}. {did_you_mean(name, CONFIGURATIONS)}Known: "
            f"{', '.join(CONFIGURATIONS)}; or build a DualPromptConfig."
        )
    given = {**CONFIGURATIONS[name], **options}
    if name == "attributes":
        given = _between(tokenizer, words, names) | given
    elif given.get("sides") != "vision" and given.get("attention") != "approximate":
        slots = given.get("n_ctx", DualPromptConfig.n_ctx) + given.get("boosted", 0)
        given = {"placeholder_ids": placeholders(tokenizer, slots, words)} | given
    return DualPromptConfig(**given)


coop, vpt, maple, dual_prompt = (partial(configuration, name) for name in ("coop", "vpt", "maple", "dual-prompt"))


def placeholders(tokenizer: Any, n_ctx: int, words: str = WORDS) -> list[int]:
    """Return the n_ctx token ids that captions carry after BOS; the words are repeated where they are too few.

    Raises `KnobError` where the tokenizer does not know the words.
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


def _between(tokenizer: Any, words: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the slots of six prompts with the names of two attributes between them, which stay."""
    found = []
    for name in names:
        with suppress(KnobError):
            found.append(placeholders(tokenizer, len(tokenizer(name, add_special_tokens=False)["input_ids"]), name))
    if len(found) < 2:
        raise KnobError(f"This tokenizer does not know two of the attributes {', '.join(names)}: give names it knows.")
    one, other = found[:2]
    four = placeholders(tokenizer, 4, words)
    fixed = [*range(2, 2 + len(one)), *range(4 + len(one), 4 + len(one) + len(other))]
    return {"placeholder_ids": [*four[:2], *one, *four[2:], *other, *four[:2]], "fixed": fixed}
