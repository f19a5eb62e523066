"""The one list of a package's late names: the lines that type checkers read."""

from pathlib import Path

import pytest

from lvlm_guard import matching, methods, verify
from lvlm_guard.registry import stated


@pytest.mark.parametrize("package", [matching, methods, verify])
def test_every_name_that_type_checkers_are_told_is_there(package):
    names = stated(package.__name__)
    assert names
    for name, module in names.items():
        assert getattr(package, name).__module__.startswith(module.rpartition(".")[0])
        assert name in dir(package)
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_a_method_is_one_module_and_one_line():
    folder = Path(methods.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    where = {name: methods.REGISTRY.where(name) for name in methods.REGISTRY.names()}
    assert modules == {name for name in where if where[name].startswith("lvlm_guard.methods.")}
    assert all(len((folder / f"{module}.py").read_text().splitlines()) <= 120 for module in modules)
    lines = (folder / "__init__.py").read_text().splitlines()
    assert all(sum(f"methods.{module} " in line for line in lines) == 1 for module in modules)
