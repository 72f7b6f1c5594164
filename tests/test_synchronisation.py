"""No library function waits for a GPU inside a loop: none copies a tensor to the host there, but in the places listed here."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "monai_diffeo"
ROOMS = [
    "augmentation",
    "canonicalize",
    "energies",
    "engines",
    "families",
    "flow",
    "inferers",
    "metrics",
    "networks",
    "training",
    "trust",
]
METHODS = {"item", "tolist", "cpu", "numpy", "nonzero", "is_nonzero", "unique", "masked_select"}
FUNCTIONS = {"bool", "float", "int"}  # of a tensor; of a number they wait for nothing
LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
ALLOWED = {  # the reason, and where
    "a number, or a tensor that is on the CPU already": {
        "augmentation/faults.py (faulty & (kind == number)).nonzero()",
        "canonicalize/acceptance.py int(row.abs().argmax())",
        "canonicalize/canonicalizer.py int(n)",
        "energies/combine.py float((weights or {}).get(name, 1.0))",
        "families/cpab/basis.py (tessellation.cells < before).all(1).nonzero()",
        "families/cpab/basis.py int(near.sum())",
        "families/cpab/basis.py tessellation.cells[c].tolist()",
        "families/cpab/tessellation.py int(n)",
        "families/cpab/tessellation.py self.cells[n].tolist()",
        "flow/deformation.py int(new)",
        "flow/grid.py int(n)",
        "networks/template/prior.py int(n)",
        "networks/template/transformer.py int(n)",
        "trust/fallback.py float(values[i])",
        "trust/judge.py value[i].item()",
        "trust/model.py bool(array.isfinite().all())",
        "trust/model.py float(signs.get(name, math.nan))",
        "trust/model.py t.flatten().tolist()",
        "trust/shapes.py int(np.diff(inside, axis=axis).sum())",
    },
    "the loop ends, or goes on with fewer rows, where the values say so": {
        "augmentation/opacities.py (k < count).nonzero()",
        "canonicalize/canonicalizer.py bool((folded > 0).any())",
        "canonicalize/search.py bool(active.any())",
        "canonicalize/search.py bool(looking.all())",
        "canonicalize/search.py bool(looking.any())",
        "canonicalize/search.py looking.nonzero()",
        "families/cpab/flow.py (left > 0).nonzero()",
        "flow/compose.py bool((residual.abs() < 0.0001).all())",
    },
    "only for images that do not surely stand upright, one by one": {
        "canonicalize/canonicalizer.py self.energy(self._predicted(view)).item()",
    },
    "once a file, a picture, a film or an error: the result is for the host": {
        "canonicalize/drawing.py _plane(picture[0]).float().cpu()",
        "canonicalize/drawing.py part.cpu()",
        "canonicalize/folder.py median.item()",
        "canonicalize/limits.py float(values.median())",
        "canonicalize/limits.py float(values.quantile(_QUANTILE))",
        "canonicalize/folder.py spread.item()",
        "networks/template/transformer.py p.flatten().tolist()",
        "networks/weights.py (value.half() if half and value.is_floating_point() else value).cpu()",
        "training/iteration.py float(value.detach())",
        "trust/shapes.py one.cpu()",
        "trust/shapes.py one.cpu().numpy()",
    },
    "one copy a column of a result, not a row": {
        "inferers/record.py column.tolist()",
        "inferers/record.py value.tolist()",
        "canonicalize/canonicalizer.py column.tolist()",
        "trust/signs.py value.detach().cpu()",
    },
}


def repeated(loop):
    """The parts of a loop that run in every round: not what it iterates over."""
    if isinstance(loop, ast.For):
        return loop.body
    if isinstance(loop, ast.While):
        return [loop.test, *loop.body]
    values = [loop.key, loop.value] if isinstance(loop, ast.DictComp) else [loop.elt]
    first, *others = loop.generators
    return [*values, *first.ifs, *(part for other in others for part in (other.iter, *other.ifs))]


def waits(call):
    """Whether a call copies to the host, if its argument is a tensor on a GPU."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in METHODS and not (isinstance(call.func.value, ast.Name) and call.func.value.id == "np")
    return isinstance(call.func, ast.Name) and call.func.id in FUNCTIONS and not isinstance(call.args[0], ast.Constant)


def found_in(source):
    """``(function, call)`` of each call inside a loop that may wait."""
    found = set()
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.Lambda))):
        for loop in (n for n in ast.walk(function) if isinstance(n, LOOPS)):
            for part in repeated(loop):
                calls = (n for n in ast.walk(part) if isinstance(n, ast.Call) and waits(n))
                found |= {(getattr(function, "name", "lambda"), ast.unparse(call)) for call in calls}
    return found


def found_in_the_package():
    files = (file for room in ROOMS for file in sorted((PACKAGE / room).rglob("*.py")))
    return {f"{file.relative_to(PACKAGE).as_posix()} {call}" for file in files for _, call in found_in(file.read_text())}


def test_nothing_waits_in_a_loop_but_what_is_listed():
    listed = set().union(*ALLOWED.values())
    assert sorted(found_in_the_package() - listed) == [], "take it out of the loop, or list it with its reason"
    assert sorted(listed - found_in_the_package()) == [], "it is gone: take it from the list"


def test_what_waits_is_seen():
    waiting = {
        "for x in xs:\n        y = x.mean().item()": "x.mean().item()",
        "return [float(x.sum()) for x in xs]": "float(x.sum())",
        "while bool((x > 0).any()):\n        x = x - 1": "bool((x > 0).any())",
        "return {k: x.cpu() for k, x in xs.items()}": "x.cpu()",
        "return [1 for x in xs if x.nonzero().numel()]": "x.nonzero()",
        "return [y for x in xs for y in x.tolist()]": "x.tolist()",
    }
    for body, call in waiting.items():
        assert found_in(f"def f(xs):\n    {body}") == {("f", call)}
    for body in ("for x in xs.tolist():\n        y = x", "return [x for x in xs.tolist()]", "return xs.sum().item()"):
        assert found_in(f"def f(xs):\n    {body}") == set()
