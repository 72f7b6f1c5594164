"""Modules without content, in the place of packages that a consumer imports and does not use here."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class _Empty(types.ModuleType):
    """A module whose every name is a class of its own without content."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, made := type(name, (), {"__init__": lambda self, *args, **kwargs: None}))
        return made


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds everything below certain names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        wanted = any(fullname == name or fullname.startswith(f"{name}.") for name in self.names)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stub_missing(*names: str) -> list[str]:
    """Let modules without content stand for those packages that cannot be imported; gives their names."""
    missing = []
    for name in names:
        top = name.partition(".")[0]
        try:
            importlib.import_module(name)
        except Exception:
            missing.append(top)
            for module in [module for module in sys.modules if module == top or module.startswith(f"{top}.")]:
                del sys.modules[module]
    sys.meta_path.insert(0, _Stubs(*missing))
    return missing
