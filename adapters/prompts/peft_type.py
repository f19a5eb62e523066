"""A member of PEFT's closed list of methods, added at import.

PEFT finds a method by a member of the enum `PeftType` and has no way to register one from outside. Python's enums
are closed too, so the member is entered into the same tables that the enum itself fills. Tried on Python 3.11 and 3.13.
"""

from __future__ import annotations

from typing import Any


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
