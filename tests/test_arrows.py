"""The rooms and which way the arrows go: imports may only point right (docs/architecture.md)."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import module_of

ROOT = Path(__file__).resolve().parents[1]

# conf > pipelines > trainers > selection > models > tables, and pipelines > sandbox > models > tables.
MAY_IMPORT = {
    "tables": set(),
    "models": {"tables"},
    "selection": {"models", "tables"},
    "sandbox": {"models", "tables"},
    "trainers": {"selection", "models", "tables"},
    "pipelines": {"trainers", "selection", "sandbox", "models", "tables"},
    "conf": set(),  # YAML only; it names pipelines and is named by them, both as strings
}
RIM_ONLY = {"ray", "hydra", "omegaconf", "mlflow"}
CENTRE = ("tables", "models", "selection")

# The step loops: importable where Ray, Hydra and MLflow do not exist.
RAY_FREE = (
    "trainers.engine", "trainers.data", "trainers.evaluate", "trainers.steps", "trainers.stepper", "trainers.masks",
    "trainers.mask_task",
)  # fmt: skip


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line: at module level, in functions and under `if TYPE_CHECKING` alike."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level) + (node.module or ""), node.lineno
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            first = node.args[0]
            if called.endswith(("import_module", "__import__")) and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_right(room: str) -> None:
    assert sources(room), f"{room} has no modules"
    wrong = []
    for path in sources(room):
        for module, line in imports(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.split(".")[0]
            where = f"{path.relative_to(ROOT)}:{line} imports {module}"
            if module.startswith("."):
                wrong.append(f"{where}: rooms import by full name")
            elif top in MAY_IMPORT and top != room and top not in MAY_IMPORT[room]:
                wrong.append(f"{where}: the arrow points left")
            elif room in CENTRE and top in RIM_ONLY:
                wrong.append(f"{where}: {top} lives at the rim")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", [*MAY_IMPORT, "tests"])
def test_files_hold_one_idea(room: str) -> None:
    long = {str(p.relative_to(ROOT)): n for p in sources(room) if (n := len(p.read_text("utf-8").splitlines())) > 450}
    assert not long


def modules(room: str) -> list[str]:
    names = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sources(room))
    return [n.removesuffix(".__init__") for n in names]


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by the test)", name=name)

sys.meta_path.insert(0, Absent())
import importlib
for name in {names!r}:
    importlib.import_module(name)
"""


def test_the_science_runs_without_ray_hydra_and_mlflow() -> None:
    names = [m for room in CENTRE for m in modules(room)] + [m for m in RAY_FREE if importlib.util.find_spec(m)]
    if not importlib.util.find_spec("triton"):  # comes with torch where CUDA is
        names = [n for n in names if not n.endswith(("_kernel", "_kernels"))]
    # What a GPU box without the rim has: numpy, torch, pyarrow, cv2. The rest of our dependencies is absent.
    blocked = sorted(RIM_ONLY | {"aiohttp", "matplotlib", "rich", "trimesh", "uvloop", "PIL"})
    code = BLOCKED.format(blocked=blocked, names=names)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_entry_point_imports_nothing_heavy() -> None:
    """`--help` and `--cfg job` answer at once: torch, Ray and MLflow are imported inside the commands."""
    entry = [m for room in ("pipelines", "trainers") for m in modules(room) if _is_entry_point(m)]
    assert entry
    code = (
        "import importlib, sys\n"
        f"for name in {entry!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [m for m in ('ray', 'torch', 'mlflow', 'matplotlib', 'cv2', 'aiohttp') if m in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy} at module level'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def _is_entry_point(module: str) -> bool:
    # By the console script's own rule: `evaluate` is pipelines.evaluate, and trainers.evaluate a library.
    return module in {module_of(path.stem) for path in (ROOT / "conf").glob("*.yaml")}
