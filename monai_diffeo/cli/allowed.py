"""Which configurations of others may run: what they build, import and compute must be on a list."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.inferers import Inferer
from monai.transforms import Transform
from monai.utils import ensure_tuple

from monai_diffeo.canonicalize.folder import hidden_keys, public_module
from monai_diffeo.errors import ConfigError

__all__ = ["allow", "entries"]

_ROOMS = {  # every class of these kinds; public modules of networks are allowed too, as in a canonicaliser's folder
    "monai.inferers": Inferer,
    "monai.transforms": Transform,
    "monai_diffeo.inferers": Inferer,
    "monai_diffeo.transforms": Transform,
}
_RUNS_FUNCTIONS = re.compile("Lambda|TorchVision|TorchIO|CuCIM")  # transforms that call what a configuration names
_COMPONENTS = {
    "monai.data.CacheDataset", "monai.data.DataLoader", "monai.data.Dataset", "monai.data.ThreadDataLoader",
    "monai.engines.EnsembleEvaluator", "monai.engines.SupervisedEvaluator",
    "monai.handlers.CheckpointLoader", "monai.handlers.StatsHandler",
    "monai_diffeo.bundles.bundle_root", "monai_diffeo.canonicalize.load_canonicalizer", "monai_diffeo.networks.load_weights",
    "monai_diffeo.engines.DiffeoEvaluator", "monai_diffeo.engines.FilmEvaluator", "monai_diffeo.inferers.PartsInPlace",
    "monai_diffeo.inferers.overlaid_inferer", "monai_diffeo.networks.ShapePrior",
    "monai_diffeo.radiograph.failsafe.FailSafeDataset",
    "monai_diffeo.report.FilmReporter", "monai_diffeo.report.VolumeReporter", "monai_diffeo.report.cxr.LungReporter",
    "monai_diffeo.report.cxr.TemplateReporter", "monai_diffeo.trust.load_film_judge",
    "torch.utils.data.DataLoader",
}  # fmt: skip
_NAMES = {  # what an expression may name or call, by its true name
    "bool", "bytes.fromhex", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range", "round", "sorted",
    "str", "sum", "tuple", "zip", "glob.glob", "os.path.basename", "os.path.dirname", "os.path.exists", "os.path.join",
    "sys.exit", "monai.utils.set_determinism", "torch.bool", "torch.cuda.is_available", "torch.device", "torch.manual_seed",
    "monai_diffeo.command_line.check_options", "monai_diffeo.command_line.end_plainly", "monai_diffeo.command_line.end_with",
    "monai_diffeo.command_line.option_choice", "monai_diffeo.command_line.option_text",
    "monai_diffeo.command_line.parse_share", "monai_diffeo.command_line.parse_switch",
    "monai_diffeo.command_line.typed_configuration",
    "monai_diffeo.files.sha256_below", "monai_diffeo.files.sha256_of", "monai_diffeo.inferers.parse_switch",
    "monai_diffeo.networks.load_weights", "monai_diffeo.radiograph.datalist.film_datalist",
    "monai_diffeo.radiograph.failsafe.collate_one", "monai_diffeo.radiograph.pseudonyms.pseudonyms",
}  # fmt: skip
_NAME_PATTERN = re.compile(r"torch\.nn\.[A-Z]\w*|(torch|numpy)\.(u?int|float)(8|16|32|64)")
_ATTRIBUTES = {"begin", "decode", "end", "eval", "items", "keys", "missing", "paths", "root", "run", "to", "values"}
_ATTRIBUTES |= {"set_random_state"}
_GRAMMAR = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Subscript, ast.Slice, ast.expr_context, ast.BinOp,
    ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Call, ast.keyword,
    ast.ListComp, ast.GeneratorExp, ast.comprehension,
)  # fmt: skip
_FIXED = {  # arguments whose text MONAI would take for the name of any function or class: the texts that are allowed
    "reader": {"ITKReader", "NibabelReader", "NrrdReader", "PILReader", "PydicomReader"},
    "writer": {"ITKWriter", "NibabelWriter", "PILWriter"},
    "merger_cls": {"AvgMerger"},
    "_mode_": {"default"},
}
_REFUSED = {"allow_pickle", "trusted", "weights_only"}
_SPECIAL = ("_target_", "_desc_", "_disabled_", "_mode_", "_requires_")


class _EveryId(dict):
    """References to all ids, to see an expression as MONAI will evaluate it."""

    def __contains__(self, id: object) -> bool:
        return True


def allow(parser: ConfigParser) -> None:
    """Check a configuration before anything of it is built, imported or computed, and put classes in place of their names.

    * A ``_target_`` must be a transform, an inferer, a public network module, or one of a list.
    * An import must be of something on the list of names. An expression may use these names, references (``@``), constants,
      some attributes, arithmetic, comparisons, subscripts, conditions and comprehensions.
    * Arguments that make MONAI look up a function by its text, load pickles or fetch weights are refused.

    It keeps code of others from running. It does not keep a configuration from writing its results where it likes.

    Args:
        parser: with the configuration and all changes of it; macros (``%``) are resolved here.

    Raises:
        ConfigError: for the first entry that is not allowed, by its id.
    """
    parser.resolve_macro_and_relative_ids()
    once = deepcopy(parser[""])
    parser.resolve_macro_and_relative_ids()  # as MONAI will do again
    if parser[""] != once:
        raise _refusal("a macro", "must not lead to another macro", "one that does")
    names = {alias: module.__name__ for alias, module in parser.globals.items()}
    modules = ""  # ids of imports
    for id, entry in entries(parser[""]):
        for alias, meaning in _imported(id, entry):
            modules += f"{id}::\n"
            if names.setdefault(alias, meaning) != meaning or alias.startswith("_"):
                raise _refusal(id, f"must not give another meaning to the name {alias!r}", entry)
    for id, entry in entries(parser[""]):
        if isinstance(entry, dict):
            _check_keys(id, entry)
            if "_target_" in entry:
                entry["_target_"] = _component(id, entry["_target_"], parser)
        elif isinstance(entry, str):
            for reference in ReferenceResolver.match_refs_pattern(entry):
                if re.search(rf"^{re.escape(reference)}::", modules, re.M) or not reference:
                    raise _refusal(id, "must not refer to an import", entry)
            if entry.startswith("$") and not _imported(id, entry):
                _check_expression(id, entry, names)


def entries(config: Any, id: str = "") -> Iterator[tuple[str, Any]]:
    """Every part of a configuration with its id, the outer before the inner ones."""
    yield id, config
    if isinstance(config, (dict, list)):
        for _, inner_id, inner in ReferenceResolver.iter_subconfigs(id, config):
            yield from entries(inner, inner_id)


def _imported(id: str, entry: Any) -> list[tuple[str, str]]:
    """The name that an import gives, and what it means; nothing for other entries."""
    if not (isinstance(entry, str) and entry.startswith("$") and "import" in entry):
        return []
    first, *others = _parsed(id, entry, "exec").body or [None]
    if not isinstance(first, (ast.Import, ast.ImportFrom)):
        return []
    alias, *more = first.names
    meaning = alias.name if isinstance(first, ast.Import) else f"{first.module}.{alias.name}"
    listed = any(f"{name}.".startswith(f"{meaning}.") for name in (*_NAMES, "numpy", "torch.nn"))
    if others or more or not listed:  # MONAI takes "from .os" for "from os"
        raise _refusal(id, "must import one thing that is on the list", entry)
    return [(alias.asname or alias.name, meaning)]


def _check_keys(id: str, entry: Mapping[str, Any]) -> None:
    hidden = hidden_keys(entry, _SPECIAL if "_target_" in entry else tuple(entry))
    for key in [*hidden, *(key for key in entry if key in _REFUSED and entry[key])]:
        raise _refusal(f"{id}::{key}", "must not be set", entry[key])
    for key in _FIXED.keys() & entry.keys():
        if entry[key] is not None and not (isinstance(entry[key], str) and entry[key] in _FIXED[key]):
            raise _refusal(f"{id}::{key}", f"must be one of {sorted(_FIXED[key])}", entry[key])


def _component(id: str, target: Any, parser: ConfigParser) -> Any:
    """The class (or function of ours) that a name means, looked up as MONAI does."""
    if callable(target):  # put here for its name: YAML lets an entry stand in two places
        return target
    modules = ensure_tuple(parser.locator.get_component_module_name(str(target)) or ())
    *path, name = (f"{modules[0]}.{target}" if modules else str(target)).split(".")
    for room in [".".join(path[:n]) for n in range(len(path), 0, -1)]:
        if f"{room}.{name}" in _COMPONENTS:
            return getattr(importlib.import_module(room), name)
        found = getattr(importlib.import_module(room), name, None) if room in _ROOMS else None
        if inspect.isclass(found) and issubclass(found, _ROOMS[room]) and not _RUNS_FUNCTIONS.search(found.__name__):
            return found
        if found := public_module(f"{room}.{name}"):
            return found
    raise _refusal(f"{id}::_target_", "must be a transform, inferer, network or other class that is on the list", target)


def _check_expression(id: str, entry: str, names: Mapping[str, str]) -> None:
    tree = _parsed(id, ReferenceResolver.update_refs_pattern(entry, _EveryId()), "eval")
    local = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if local & {*names, *(name.partition(".")[0] for name in _NAMES)}:
        raise _refusal(id, "must not give another meaning to a name of the list", entry)
    if fault := _fault(tree, names, local):
        raise _refusal(id, f"must consist of what is on the list, which {ast.unparse(fault)!r} is not", entry)


def _parsed(id: str, text: str, mode: str) -> Any:
    try:
        return ast.parse(text[1:], mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refusal(id, "must be an expression of Python after its $", text) from None


def _fault(node: ast.AST, names: Mapping[str, str], local: set[str]) -> ast.AST | None:
    """The part of an expression that is not allowed, None if all of it is."""
    if isinstance(getattr(node, "ctx", None), ast.Store) and not isinstance(node, (ast.Name, ast.Tuple)):
        return node
    if isinstance(node, (ast.Name, ast.Attribute)):
        root, _, rest = ast.unparse(node).partition(".")
        if root.isidentifier() and root not in local and re.fullmatch(r"[\w.]*", rest):
            meaning = ".".join(filter(None, (names.get(root, root), rest)))
            return None if meaning in _NAMES or _NAME_PATTERN.fullmatch(meaning) else node
        if isinstance(node, ast.Attribute) and node.attr not in _ATTRIBUTES:
            return node
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == ReferenceResolver._vars:
        return None if isinstance(node.slice, ast.Constant) else node
    elif not isinstance(node, _GRAMMAR) or isinstance(node, ast.Pow):
        return node
    elif isinstance(node, ast.keyword) and (node.arg is None or node.arg in {*_REFUSED, *_FIXED}):
        return node
    faults = (_fault(part, names, local) for part in ast.iter_child_nodes(node))
    return next((fault for fault in faults if fault is not None), None)


def _refusal(id: str, rule: str, got: Any) -> ConfigError:
    remedy = "If you trust the makers of the bundle, add --trust_bundle: its code then runs with your rights."
    return ConfigError(f"segment: {id!r} in the bundle's configuration {rule}, got {got!r}. {remedy}")
