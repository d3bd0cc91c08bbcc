"""Signatures: `help`, completion and documentation show the arguments of a module."""

import inspect

import pytest
from flax import nnx

import taskcond
from taskcond import TaskConditioner

MODULES = [
    "StageConditioner",
    "StageHead",
    "TaskConditioner",
    "TaskLinear",
    "TaskLoRA",
    "TaskTokens",
]


@pytest.mark.parametrize("name", MODULES)
def test_a_class_has_the_signature_of_its_constructor(name):
    kind = getattr(taskcond, name)
    expected = list(inspect.signature(kind.__init__).parameters)[1:]
    assert list(inspect.signature(kind).parameters) == expected
    assert expected[-1] == "rngs"


def test_an_instance_has_the_signature_of_its_call():
    conditioner = TaskConditioner(2, 4, rngs=nnx.Rngs(0))
    assert list(inspect.signature(conditioner).parameters)[:2] == ["time_emb", "task_id"]


def test_a_subclass_has_its_own_signature():
    class Small(TaskConditioner):
        def __init__(self, rngs):
            super().__init__(2, 4, rngs=rngs)

    assert list(inspect.signature(Small).parameters) == ["rngs"]
    assert Small(nnx.Rngs(0)).num_tasks == 2


def test_every_module_is_here():
    found = [
        name
        for name in taskcond.__all__
        if isinstance(kind := getattr(taskcond, name), type) and issubclass(kind, nnx.Module)
    ]
    assert found == MODULES
