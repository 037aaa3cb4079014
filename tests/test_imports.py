"""The order of the house, read from the source: who may import whom, how long a file may be, and what is never used.

Imports inside functions and under TYPE_CHECKING count like all others.
"""

import ast
import importlib
import importlib.util
import pkgutil
from functools import lru_cache
from pathlib import Path

import pytest

import dither

ROOT = Path(dither.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST = 350

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "_version": set(),
    "spec": {"errors"},
    "native": set(),
    "numerics": {"native", "spec", "errors"},
    "gpu": {"native", "errors"},
    "kernels": {"gpu", "native", "numerics", "spec", "errors"},
    "packed": {"errors"},
    "clock": {"errors"},
    "nn": {"kernels", "numerics", "spec", "packed", "clock", "errors"},
    "checkpoint": {"nn", "packed", "kernels", "numerics", "spec", "errors"},
    "models": {"errors"},
    "probes": {"errors"},
    "memory": set(),
    "calibrate": {"models", "probes", "errors"},
    "integrations": {"checkpoint", "nn", "clock", "packed", "models", "numerics", "spec", "errors"},
    "stages": {"nn", "clock", "calibrate", "probes", "memory", "models", "kernels", "numerics", "spec", "errors"},
    "recipes": {"stages", "spec", "errors"},
    "evaluation": {"errors"},
    "extractors": {"evaluation", "zoo", "errors"},
    "scale": {"errors"},
    "report": {"errors"},
    "zoo": {"errors"},
    "weightfile": {"errors"},
    "store": {"errors"},
    "recorded": {"calibrate", "models", "evaluation", "weightfile", "errors"},
}
"""Room -> the rooms that it may know. What is not listed stands above all of these, and only ``cli`` above that."""
RUNNING = (
    "spec",
    "native",
    "gpu",
    "numerics",
    "kernels",
    "packed",
    "clock",
    "nn",
    "models",
    "checkpoint",
    "integrations",
)
TRITON = "dither.gpu.jit"
HAS_TRITON = importlib.util.find_spec("triton") is not None
METHODS = ("stages", "recipes", "calibrate", "quantization")


def module_name(path: Path) -> str:
    parts = ("dither", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "dither"


@lru_cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports; ``from dither import x`` is ``dither.x``."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            assert node.module is not None
            found |= {f"dither.{a.name}" for a in node.names} if node.module == "dither" else {node.module}
    return found


def rooms_known(name: str) -> set[str]:
    """Rooms that a room's files import, itself left out."""
    files = [f for f in FILES if room(module_name(f)) == name]
    assert files, f"there is no room '{name}'"
    return {room(i) for f in files for i in imports(f) if i.split(".")[0] == "dither"} - {name}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_rooms_import_only_what_is_below_them(name):
    assert rooms_known(name) <= MAY_IMPORT[name]


def test_the_order_has_no_circles():
    done: set[str] = set()
    while len(done) < len(MAY_IMPORT):
        ready = {name for name, below in MAY_IMPORT.items() if below <= done} - done
        assert ready
        done |= ready


def test_all_rooms_together_have_no_circles_either():
    known = {name: rooms_known(name) for name in {room(module_name(f)) for f in FILES}}
    done: set[str] = set()
    while len(done) < len(known):
        ready = {name for name, below in known.items() if below <= done} - done
        assert ready, f"a circle among {sorted(set(known) - done)}"
        done |= ready


@pytest.mark.parametrize("name", RUNNING)
def test_loading_and_running_never_import_a_method(name):
    reached, todo = set(), [name]
    while todo:
        for other in rooms_known(todo.pop()) - reached:
            reached.add(other)
            todo.append(other)
    assert not reached & set(METHODS)


def test_nothing_imports_the_command_line():
    rooms = {room(module_name(f)) for f in FILES} - {"cli"}
    assert not [name for name in rooms if "cli" in rooms_known(name)]


def test_the_report_never_sees_torch():
    for path in FILES:
        if room(module_name(path)) == "report":
            assert not {i.split(".")[0] for i in imports(path)} & {"torch", "diffusers", "transformers"}


def test_spec_has_no_torch_in_it():
    for path in sorted((ROOT / "spec").glob("*.py")):
        assert not {i.split(".")[0] for i in imports(path)} & {"torch", "numpy"}


FORBIDDEN = ("torchvision", "dill", "cloudpickle", "joblib", "marshal", "shelve")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_is_short_and_says_what_it_is(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert ast.get_docstring(tree(path))


def called(node: ast.Call) -> str:
    """Dotted name of what is called."""
    parts: list[str] = []
    head = node.func
    while isinstance(head, ast.Attribute):
        parts.append(head.attr)
        head = head.value
    return ".".join([head.id if isinstance(head, ast.Name) else "?", *reversed(parts)])


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_that_could_run_foreign_code(path):
    assert not {i.split(".")[0] for i in imports(path)} & set(FORBIDDEN)
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        assert name not in ("eval", "exec", "compile", "__import__", "numpy.load", "os.system")
        assert not name.startswith("pickle.")  # the name of its error may be caught
        if name == "torch.load":
            flags = {k.arg: k.value for k in node.keywords}
            assert isinstance(flags.get("weights_only"), ast.Constant)
            assert flags["weights_only"].value is True
        if name in ("np.load", "numpy.load"):
            assert all(not (k.arg == "allow_pickle" and getattr(k.value, "value", None)) for k in node.keywords)
        if name.startswith("subprocess."):
            assert not any(k.arg == "shell" for k in node.keywords)
        assert not any(k.arg == "trust_remote_code" for k in node.keywords)


def test_every_exported_name_exists():
    for info in pkgutil.walk_packages([str(ROOT)], "dither."):
        if info.name.endswith("__main__") or (info.name.startswith(TRITON + ".") and not HAS_TRITON):
            continue
        module = importlib.import_module(info.name)
        names = getattr(module, "__all__", [])
        assert len(names) == len(set(names)), info.name
        assert not [n for n in names if not hasattr(module, n)], info.name


OPTIONAL = {
    "triton",
    "matplotlib",
    "sklearn",
    "skimage",
    "peft",
    "ray",
    "torch_fidelity",
    "lpips",
    "ImageReward",
    "playwright",
}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_what_is_optional_is_imported_where_it_is_used(path):
    """Inside a function, so that ``import dither`` works without it; what is written in Triton is imported there as well."""
    if module_name(path).startswith(TRITON + "."):
        return
    for node in tree(path).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {n.split(".")[0] for n in names} & OPTIONAL


def test_triton_is_imported_where_kernels_start():
    for path in FILES:
        if module_name(path).startswith(TRITON):
            continue
        known = {i for node in tree(path).body if isinstance(node, ast.ImportFrom) for i in [node.module or ""]}
        assert not any(name.startswith(TRITON) for name in known), path
