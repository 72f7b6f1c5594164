"""Imports point downwards only, between rooms and between the modules of a room."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "monai_diffeo"
ROOMS = [  # from the ground up: a room imports only from rooms that stand before it
    "errors", "files", "bundles", "command_line", "flow", "families", "augmentation", "metrics", "radiograph",
    "dicom_output", "networks", "energies", "canonicalize", "training", "transforms", "inferers", "trust", "engines", "report",
    "report.cxr", "watch", "export", "fit", "bulk", "cli", "__main__",
]  # fmt: skip
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def room_of(name):
    parts = name.split(".")[1:]
    return ".".join(parts[:2]) if ".".join(parts[:2]) in ROOMS else parts[0] if parts else ""


def imports_of(source, typing=False):
    """Modules of ours that a source imports, at its top or inside functions; those for type checkers count too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("monai_diffeo"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("monai_diffeo")}
    return found


def upward(name, source):
    here = ROOMS.index(room_of(name))
    return {other for other in imports_of(source) if room_of(other) and ROOMS.index(room_of(other)) > here}


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=name_of)
def test_a_module_imports_from_its_own_room_and_from_rooms_below(path):
    assert room_of(name_of(path)) in ROOMS, "name the new room in ROOMS, where it stands"
    assert upward(name_of(path), path.read_text()) == set()


def test_an_arrow_upwards_is_seen():
    assert upward("monai_diffeo.flow.warp", "from monai_diffeo.report import film_record") == {"monai_diffeo.report"}
    assert upward("monai_diffeo.flow.warp", "def f():\n    import monai_diffeo.energies.base") == {"monai_diffeo.energies.base"}


def test_no_circles():
    graph = {name_of(path): imports_of(path.read_text()) - {name_of(path), "monai_diffeo"} for path in MODULES}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_every_module_has_a_room_in_the_architecture_page():
    page = (PACKAGE.parent / "docs" / "concepts" / "architecture.md").read_text()
    assert [room for room in ROOMS if f"`{room.replace('.', '/')}`" not in page] == []
