"""The house rules: one direction of imports, documented public names, nothing heavy on start-up."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tailora

SOURCE = Path(tailora.__file__).parent
# A module may import from its own layer and the layers before it.
LAYERS = [
    (
        "_version",
        "errors",
        "registry",
        "artifacts",
        "validation",
        "yaml_files",
        "progress",
        "locking",
        "stopping",
        "surroundings",
        "peak_memory",
    ),
    ("targets",),
    ("placement", "budget", "adapter_kinds", "packed", "offloaded", "fingerprints", "architecture"),
    ("statistics",),
    ("bottleneck", "unipelt"),
    ("geometry",),
    ("signals",),
    ("profiles",),
    ("profile_merging",),
    ("allocation", "initialisation"),
    ("recipes",),
    ("planning", "sources", "plans", "adapter_configs", "adapters"),
    ("emit",),
    ("masks", "pilots"),
    ("methods",),
    (
        "config_files",
        "config_training",
        "harness_files",
        "config_harness",
        "config",
        "requirements",
        "failures",
        "environment",
    ),
    ("data", "evaluation"),
    ("processes",),
    ("checkpoints", "early_stopping", "schedules", "takeover", "training"),
    ("tasks", "harness"),
    ("run_folders", "adapter_folders", "run_masks", "run_pilots", "runs"),
    ("studies",),
    ("report",),
    ("lab",),
    ("demo",),
    ("cli",),
    ("__main__",),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules():
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def top(path):
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imported(path):
    """Yield (line, first part below tailora) of every import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tailora"):
            names = [node.module]
            if node.module == "tailora":
                names = [f"tailora.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("tailora")]
        for name in names:
            parts = name.split(".")
            if len(parts) > 1:
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    assert top(path) in LEVEL, f"{top(path)} has no place in the layers; add it where it belongs"
    for line, name in imported(path):
        assert name in LEVEL, f"{path.name}:{line} imports tailora.{name}, which has no place in the layers"
        assert LEVEL[name] <= LEVEL[top(path)], f"{path.name}:{line} imports tailora.{name} from a later layer"


def public_members():
    for path in modules():
        name = "tailora." + str(path.relative_to(SOURCE).with_suffix("")).replace(os.sep, ".")
        if path.name == "__main__.py":
            continue
        name = name.removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        yield name, "module", ast.get_docstring(tree), None
        for node in tree.body:
            yield from described(name, node)


def described(prefix, node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
        yield f"{prefix}.{node.name}", type(node).__name__, ast.get_docstring(node), node
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                yield from described(f"{prefix}.{node.name}", child)


def test_everything_public_is_documented():
    missing = [name for name, _, text, _ in public_members() if not text]
    assert not missing, f"no docstring: {missing}"


def test_public_functions_describe_arguments_and_results():
    """The names in DESIGN's public surface say what goes in, what comes out and what can go wrong."""
    for name in tailora.__all__:
        value = getattr(tailora, name)
        if inspect.isfunction(value):
            text = inspect.getdoc(value) or ""
            for parameter in inspect.signature(value).parameters:
                assert re.search(rf"^\s*\*{{0,2}}{parameter}:", text, re.M), f"{name}: {parameter} is not described"
            assert "Returns:" in text, name
            assert "Raises:" in text, name


def test_files_stay_small():
    long = {str(p.relative_to(SOURCE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"split by meaning: {long}"


def test_every_annotated_public_function():
    """Public functions have annotations on every argument and on the result."""
    for name, kind, _, node in public_members():
        if kind != "FunctionDef":
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        assert not bare, f"{name}: no type for {bare}"
        assert node.returns is not None, f"{name}: no result type"


@pytest.mark.parametrize("command", [["--help"], ["plan", "--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(command):
    code = (
        f"import sys; sys.argv=['tailora', *{command!r}]\n"
        "from tailora.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch','transformers','peft','trl','numpy','matplotlib','datasets','scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_tailora_does_not_import_torch():
    code = "import sys, tailora; assert 'torch' not in sys.modules; tailora.Budget; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_public_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        tailora.plann  # noqa: B018
    assert set(tailora.__all__) <= set(dir(tailora))
    assert set(tailora.__all__) == {"__version__", *tailora._HOMES}


def test_changelog_knows_this_version():
    changelog = (SOURCE.parents[1] / "CHANGELOG.md").read_text()
    assert f"## {tailora.__version__}" in changelog or "## Unreleased" in changelog
