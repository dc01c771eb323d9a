"""What holds for the shape of the program: layers, light imports, short files, self-describing options."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from atbench.config import registry

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "atbench"
# A part may import only from lines below its own: docs/architecture.md, with the configuration below the parts.
LAYERS = (
    {"__main__", "__init__"},
    {"api"},
    {"cli"},
    {"bench"},
    {"workflows"},
    {"training"},
    {"reporting"},
    {"evaluation"},
    {"methods"},
    {"attacks"},
    {"models", "data"},
    {"runs"},
    {"config"},
    {"errors", "interval"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times faster
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "conf" not in path.parts)
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
OPTIONS = sorted(path for group in registry.KINDS.values() for path in (registry.conf_dir() / group).rglob("*.yaml"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The parts of atbench that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            names = [f"atbench.{alias.name}" for alias in node.names] if module == "atbench" else [module]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "atbench" and rest and rest != "__version__":
                yield rest.partition(".")[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def modules(path: Path) -> Iterator[str]:
    """The modules of atbench that a file imports as it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("atbench"):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_down() -> None:
    for path in SOURCES:
        own = part_of(path)
        assert own in LEVEL, f"{own} has no place in LAYERS"
        for other in imported(path):
            assert other == own or LEVEL[other] > LEVEL[own], f"{path} imports {other}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Of the modules of one part as well; what a package's `__init__` offers counts as an import of that package."""
    names = {module_of(path): path for path in SOURCES}
    graph = {
        name: {other for other in modules(path) if other in names and other != name} for name, path in names.items()
    }
    order = graphlib.TopologicalSorter({name: needs - set(parents(name)) for name, needs in graph.items()})
    order.prepare()  # raises CycleError


# Where the name that is imported is not the package's.
PACKAGES = {"PIL": "pillow", "hydra": "hydra-core", "sklearn": "scikit-learn", "yaml": "pyyaml"}
EXTRAS = {"foolbox", "onnxruntime", "art", "mair", "pyautoattack", "torchattacks"}  # imported where they are used


def test_what_is_imported_is_a_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for root in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"atbench"} - EXTRAS:
                assert PACKAGES.get(root, root) in declared, f"{path} imports {root}"


def test_nothing_is_imported_relatively() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_files_are_short() -> None:
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in (*SOURCES, *TESTS)}
    assert {path: count for path, count in lines.items() if count > 300} == {}


def test_the_first_answer_needs_neither_torch_nor_hydra() -> None:
    code = """
import sys
import atbench
from atbench import errors
assert "robust_accuracy" in dir(atbench)
from atbench.cli import main as cli
from atbench.config import hydra_errors, overrides, registry
assert cli.main(["list", "methods"]) == 0 and cli.main(["--help"]) == 0
heavy = {"torch", "torchvision", "hydra", "omegaconf", "wandb", "numpy", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, heavy
from atbench.cli import bench, doctor
from atbench.config import argv, instantiate, schema, validate, values
from atbench.runs import sweep
heavy = {"torch", "torchvision", "wandb", "numpy", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, heavy
from atbench.reporting import report, comparison_report
assert "torch" not in sys.modules, "a report is read from files"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_option_says_what_it_is() -> None:
    for path in OPTIONS:
        group, *folders = path.relative_to(registry.conf_dir()).parent.parts
        about = registry.about(path, group)
        assert about.get("name") == "/".join([*folders, path.stem]), path
        assert about.get("summary") and about.get("family"), path
        assert set(about) <= set(registry.FIELDS), path


def test_no_option_has_a_key_twice() -> None:
    """YAML takes the last of two equal keys in silence."""

    def keys(node: yaml.Node) -> Iterator[list[str]]:
        if isinstance(node, yaml.MappingNode):
            yield [key.value for key, _ in node.value]
            for _, value in node.value:
                yield from keys(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                yield from keys(value)

    for path in OPTIONS:
        for names in keys(yaml.compose(path.read_text(encoding="utf-8"), Loader=LOADER)):
            assert len(names) == len(set(names)), path


def test_no_test_module_is_imported() -> None:
    """What tests share lies in tests/support, and it imports none of them."""
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, path
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert name.partition(".")[0] != "tests" or name.startswith("tests.support."), f"{path} imports {name}"
