"""The one dynamic import: a method, family, metric, attack, evaluator or way of asking by its catalogue name,
which is its module's name."""

from importlib import import_module
from types import ModuleType


def method(name: str) -> ModuleType:
    return import_module(f"worker.methods.{name}")


def family(name: str) -> ModuleType:
    return import_module(f"worker.families.{name}")


def metric(name: str) -> ModuleType:
    return import_module(f"worker.metrics.{name}")


def answers(name: str) -> ModuleType:
    return import_module(f"worker.answers.{name}")


def evaluator(name: str) -> ModuleType:
    return import_module(f"worker.evaluators.{name}")


def attack(name: str) -> ModuleType:
    return import_module(f"worker.attacks.{name}")
