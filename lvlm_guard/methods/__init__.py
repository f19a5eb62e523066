"""Decoding methods, one file each: a frozen dataclass of knobs, its branches, its assembly.

A new method is one module here, called as the method is, one test module, and one line below, which type checkers
and `REGISTRY` both read; a method of another package is an entry point in the group `lvlm_guard.methods` and touches
nothing here. Methods never import each other. `methods.AGLA`, `methods.Vote`, ... are the classes; `REGISTRY` lists
the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm_guard.registry import Registry, stated

if TYPE_CHECKING:
    from lvlm_guard.methods.adaiat import AdaIAT as AdaIAT
    from lvlm_guard.methods.agla import AGLA as AGLA
    from lvlm_guard.methods.apc import APC as APC
    from lvlm_guard.methods.deco import DeCo as DeCo
    from lvlm_guard.methods.dlc import DLC as DLC
    from lvlm_guard.methods.dola import DoLa as DoLa
    from lvlm_guard.methods.flb import FLB as FLB
    from lvlm_guard.methods.focus import Focus as Focus
    from lvlm_guard.methods.iat import IAT as IAT
    from lvlm_guard.methods.icd import ICD as ICD
    from lvlm_guard.methods.m3id import M3ID as M3ID
    from lvlm_guard.methods.marine import MARINE as MARINE
    from lvlm_guard.methods.pai import PAI as PAI
    from lvlm_guard.methods.revis import REVIS as REVIS
    from lvlm_guard.methods.revisit import ReVisiT as ReVisiT
    from lvlm_guard.methods.ritual import RITUAL as RITUAL
    from lvlm_guard.methods.rudder import RUDDER as RUDDER
    from lvlm_guard.methods.vcd import VCD as VCD
    from lvlm_guard.methods.vga import VGA as VGA
    from lvlm_guard.methods.vista import VISTA as VISTA
    from lvlm_guard.methods.vote import Vote as Vote
    from lvlm_guard.methods.vti import VTI as VTI

REGISTRY = Registry(
    "method",
    "lvlm_guard.methods",
    {module.rpartition(".")[2]: f"{module}:{kind}" for kind, module in stated(__name__).items()},
    {
        "opera": "its retrospection takes tokens back that beam search has chosen, for which it would need a decoding "
        "loop of its own, and its penalty alone would be another method. Answers of OPERA's own code are scored by "
        "`lvlm-guard eval score`.",
        "resdec": "its paper (arXiv:2602.01047) leaves open what decides its figures, and no code was published.",
        "kvsmooth": "its paper (arXiv:2602.04268) leaves open what decides its figures, and no code was published.",
    },
)

DEFAULT = "vote"
"""The method of a guard that names none: the first of those that answer questions better and name fewer absent objects
at no loss of recall, by the table of docs/which_method.md."""


def __getattr__(attribute: str) -> Any:
    for name in REGISTRY.names():
        if REGISTRY.where(name).partition(":")[2] == attribute:
            return REGISTRY.get(name)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def __dir__() -> list[str]:
    return ["DEFAULT", "REGISTRY", *(REGISTRY.where(name).partition(":")[2] for name in REGISTRY.names())]
