"""Pytree structures of different classes."""

from itertools import combinations

import jax
import pytest

from stylesr_jax.degradations.base import Degradation
from stylesr_jax.methods.base import Method, Stage
from stylesr_jax.runtime.pytrees import PyTreeNode
from stylesr_jax.search.schedules import Schedule


class Sum(PyTreeNode):
    x: float = 0.0

    def __call__(self, y):
        return self.x + y


class Product(PyTreeNode):
    x: float = 0.0

    def __call__(self, y):
        return self.x * y


def _classes_of(parent):
    return {parent}.union(*map(_classes_of, parent.__subclasses__()))


def test_equal_fields_of_two_classes_make_two_structures():
    assert jax.tree.structure(Sum()) != jax.tree.structure(Product())
    assert jax.tree.structure(Sum()) == jax.tree.structure(Sum(2.0))
    assert Sum() != Product() and Sum() == Sum()
    assert repr(Sum(1.0)) == "Sum(x=1.0)"


def test_a_copy_with_another_number_has_the_same_structure():
    assert jax.tree.structure(Sum().replace(x=3.0)) == jax.tree.structure(Sum())


@pytest.mark.parametrize("parent", [Degradation, Method, Schedule, Stage])
def test_no_two_classes_of_a_family_share_a_structure(parent):
    names = [cls.pytree_class for cls in _classes_of(parent)]
    assert len(names) > 2
    assert all(one != other for one, other in combinations(names, 2))
