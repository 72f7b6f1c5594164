"""Names of version 0.1. For one version, an old name raises an error that holds the new one; then this file goes."""

from __future__ import annotations

import functools
import importlib.abc
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from monai_diffeo.errors import DiffeoError

__all__ = ["RENAMED_MODULES", "RENAMED_SETTINGS", "RenamedError", "renamed_arguments", "renamed_attributes", "renamed_names"]

RENAMED_SETTINGS = {
    "passes": "iterations",
    "views": "tta_samples",
    "gate": "skip_below",
    "max_rise": "max_energy_increase",
    "doubt_above": "ood_threshold",
    "sure": "min_confidence",
    "shrinkings": "max_halvings",
}
"""Settings of a canonicaliser, old name to new."""

RENAMED_MODULES = {
    "data": "radiograph, or monai_diffeo.augmentation",
    "engines.films": "engines.evaluators",
    "experiments": "docs/experiments, beside the pages they write",
    "families.coarse": "families.coarse_sampling",
    "families.cpa": "families.cpab",
    "families.time_dependent": "families.piecewise_stationary",
    "families.whitened": "families.cpab",
    "flow.bracket": "flow.bch",
    "flow.chain": "flow.sequence",
    "flow.simplices": "flow.jacobian",
    "inferers.answers": "inferers.aggregation",
    "networks.localizers": "networks.stn.localizers",
    "networks.shape_prior": "networks.template.prior",
    "networks.template_backbone": "networks.template.backbone",
    "networks.template_guard": "networks.template.guard",
    "networks.template_transformer": "networks.template.transformer",
    "networks.transformers": "networks.stn.layers",
    "report.genus": "scripts.reporter of bundles/mnist_genus",
    "report.lungs": "report.cxr.lungs",
    "report.template_figure": "report.cxr.template_figure",
    "report.templates": "report.cxr.template_reporter",
}
"""Modules of monai_diffeo that moved."""

Callee = TypeVar("Callee", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


class RenamedError(DiffeoError):
    """A name of version 0.1 was used; ``old`` and ``new`` say which and what it is now."""

    def __init__(self, where: str, old: str, new: str) -> None:
        self.old, self.new = old, new
        super().__init__(f"{where}: '{old}' is now '{new}'. Use the new name; CHANGELOG.md lists all of them.")


class _MovedModules(importlib.abc.MetaPathFinder):
    """Asked last, for modules that nobody else finds."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        new = RENAMED_MODULES.get(fullname.removeprefix("monai_diffeo.")) if fullname.startswith("monai_diffeo.") else None
        if new is not None:
            raise RenamedError("import", fullname, new if new.startswith(("docs", "scripts")) else f"monai_diffeo.{new}")


sys.meta_path.append(_MovedModules())


def renamed_names(module: str, **names: str) -> Callable[[str], NoReturn]:
    """The ``__getattr__`` of a module whose old names are keys and whose new names are values."""

    def getattr_(name: str) -> NoReturn:
        if name in names:
            raise RenamedError(module, name, names[name])
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return getattr_


def renamed_arguments(**names: str) -> Callable[[Callee], Callee]:
    """Decorator of a function whose keyword arguments had other names."""

    def decorate(function: Callee) -> Callee:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                raise RenamedError(f"{function.__qualname__.removesuffix('.__init__')}()", old, names[old])
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate


def renamed_attributes(**names: str) -> Callable[[Class], Class]:
    """Decorator of a class whose attributes and methods had other names."""

    def decorate(cls: Class) -> Class:
        for old, new in names.items():

            def read(self: object, old: str = old, new: str = new) -> NoReturn:
                raise RenamedError(type(self).__name__, old, new)

            setattr(cls, old, property(read))
        return cls

    return decorate
