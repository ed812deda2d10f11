"""The arrows: who may import whom. A folder's law is kept by reading every import, at any depth of a file."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("dear_core", "ray_jobs", "sweeps")
FILES = sorted(path for name in OURS for path in (ROOT / name).rglob("*.py"))
ENTRY_POINTS = {
    "dear_core/run.py",
    "dear_core/eval.py",
    "dear_core/predict.py",
    "dear_core/restore.py",  # what eval and predict share
    "dear_core/data/__main__.py",
    "dear_core/models/__main__.py",
}

# What a place may import of the project; the longest matching place counts.
ALLOWED = {
    "dear_core/errors.py": (),
    "dear_core/config.py": ("dear_core.errors", "dear_core.config_parts"),
    "dear_core/config_parts.py": (),
    "dear_core/places.py": ("dear_core.config",),
    "dear_core/jsonl.py": (),
    "dear_core/presets.py": ("dear_core.config", "dear_core.errors"),
    "dear_core/distributed.py": (),
    "dear_core/runs.py": ("dear_core.config", "dear_core.errors", "dear_core.jsonl"),
    "dear_core/tracking.py": ("dear_core.config", "dear_core.runs", "dear_core.errors"),
    "dear_core/data": (
        "dear_core.config",
        "dear_core.errors",
        "dear_core.jsonl",
        "dear_core.data",
        "dear_core.depth.store",
    ),
    "dear_core/data/__main__.py": ("dear_core",),
    "dear_core/depth": ("dear_core.config", "dear_core.errors", "dear_core.depth"),
    "dear_core/models": ("dear_core.models",),
    "dear_core/models/__main__.py": ("dear_core",),
    "dear_core/training": (
        "dear_core.config",
        "dear_core.errors",
        "dear_core.distributed",
        "dear_core.runs",
        "dear_core.training",
    ),
    "dear_core": ("dear_core",),
    "sweeps": ("dear_core.config", "dear_core.presets"),
    "ray_jobs": ("dear_core", "sweeps", "ray_jobs"),
}
# Libraries with one home.
HOMES = {
    "ray": "ray_jobs/",
    "optuna": "ray_jobs/",
    "mlflow": "dear_core/tracking.py",
    "decord": "dear_core/data/decode.py",
    "mamba_ssm": "dear_core/models/selective_scan",
    "open_clip": "dear_core/models/clip",
    "transformers": "dear_core/depth/estimator.py",
}


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, relative imports refused."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    place = path.relative_to(ROOT).as_posix()
    law = max((key for key in ALLOWED if place == key or place.startswith(key + "/")), key=len)
    for name in imports(path):
        if within(name, OURS):
            assert within(name, ALLOWED[law]), f"{place} imports {name}, which {law} may not"
        library = name.split(".")[0]
        if library in HOMES:
            assert place.startswith(HOMES[library]), f"{place} imports {library}; only {HOMES[library]} may"


def test_only_entry_points_import_build():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if within("dear_core.build", tuple(imports(path))) or "dear_core.build" in imports(path)
    }
    allowed = ENTRY_POINTS | {p.relative_to(ROOT).as_posix() for p in FILES if p.parts[-2] == "ray_jobs"}
    assert users and users <= allowed, users - allowed


def test_the_check_itself_sees_a_wrong_arrow(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from ray_jobs import sweep\n    import ray.tune\n")
    assert imports(bad) == {"ray_jobs.sweep", "ray.tune"}
    assert not within("ray_jobs.sweep", ALLOWED["dear_core/models"])


def test_files_stay_readable():
    """No file over 500 lines, the median at most 200, no function over 60."""
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES if path.name != "__init__.py")
    assert lengths[-1] <= 500 and lengths[len(lengths) // 2] <= 200, lengths
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_every_module_says_what_it_is():
    silent = [
        str(p) for p in FILES if p.name != "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert not silent


def test_no_data_is_committed():
    """What git tracks stays small: no frame cache, checkpoint or video slips in (parity files have 6 MB)."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in files if path.is_file()}
    assert sizes and {name: size for name, size in sizes.items() if size > 8e6} == {}
    assert not [name for name in sizes if name.endswith((".bin", ".pt", ".webm", ".db"))]
