"""Every example in a docstring of the package runs, and every public function has one."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil

import pytest

import stabilitykit

MODULES = [m.name for m in pkgutil.iter_modules(stabilitykit.__path__) if m.name != "__main__"]


def lacks_example(thing: object) -> bool:
    """Whether a user calls this and its docstring has no example; results are not called."""
    result = inspect.isclass(thing) and (
        dataclasses.is_dataclass(thing) or issubclass(thing, tuple)
    )
    return callable(thing) and not result and ">>> " not in (inspect.getdoc(thing) or "")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"stabilitykit.{name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", stabilitykit.__all__)
def test_public_names_have_an_example(name):
    assert not lacks_example(getattr(stabilitykit, name))


def test_a_function_without_example_is_found():
    def silent():
        """Do nothing."""

    assert lacks_example(silent)
    assert not lacks_example(stabilitykit.History)
