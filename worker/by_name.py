"""The one dynamic import: a method, family or metric by its catalogue name, which is its module's name."""

from importlib import import_module
from types import ModuleType


def method(name: str) -> ModuleType:
    return import_module(f"worker.methods.{name}")


def family(name: str) -> ModuleType:
    return import_module(f"worker.families.{name}")


def metric(name: str) -> ModuleType:
    return import_module(f"worker.metrics.{name}")
