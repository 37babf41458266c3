"""What `from nanogpt_jax import ...` offers is there, is seen by type checkers, and is documented."""

import ast
import importlib
import inspect
import re

import pytest

import nanogpt_jax
from tests.helpers.commands import ROOT


def test_type_checkers_see_every_name_where_it_is():
    tree = ast.parse((ROOT / "nanogpt_jax" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = [(alias.asname, alias.name, node.module) for node in block.body for alias in node.names]
    assert all(asname == name for asname, name, _ in seen)  # `x as x`: meant to be imported from here
    homes = {name: module.removeprefix("nanogpt_jax.") for _, name, module in seen}
    assert homes == nanogpt_jax._HOMES


@pytest.mark.parametrize("name", nanogpt_jax.__all__)
def test_every_name_is_there_and_has_a_docstring_of_its_own(name):
    value = getattr(nanogpt_jax, name)
    home = importlib.import_module(f"nanogpt_jax.{nanogpt_jax._HOMES[name]}")
    assert value is getattr(home, name) and value.__module__ == home.__name__
    assert len(inspect.getdoc(value) or "") > 40


def test_completion_offers_every_name():
    assert set(nanogpt_jax.__all__) < set(dir(nanogpt_jax))


def test_the_reference_has_every_name_once():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: nanogpt_jax\.([\w.]+)\.(\w+)$", text, re.M)
    assert sorted((name, home) for home, name in documented) == sorted(nanogpt_jax._HOMES.items())
