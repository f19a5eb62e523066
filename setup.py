# Maps the room folders into the package; every other setting lives in pyproject.toml.
from setuptools import find_namespace_packages, setup

ROOMS = ("adapters", "evals", "play", "serve")


def packages(top: str) -> list[str]:
    """Return `top` and every folder below it, data folders included."""
    return find_namespace_packages(include=[top, f"{top}.*"], exclude=["*.__pycache__*"])


links = tuple(f"lvlm_guard.{room}" for room in ROOMS)
core = [name for name in packages("lvlm_guard") if not name.startswith(links)]
rooms = [f"lvlm_guard.{name}" for room in ROOMS for name in packages(room)]
setup(packages=core + rooms, package_dir={f"lvlm_guard.{room}": room for room in ROOMS})
