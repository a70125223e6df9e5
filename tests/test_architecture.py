"""Who may import whom, how long a module may be, and what `import stabilitykit` brings along."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stabilitykit

PACKAGE = Path(stabilitykit.__file__).parent
MODULES = sorted(PACKAGE.glob("*.py"))
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENGINE = sorted((PACKAGE.parent / "scripts" / "pages").glob("*.py"))
LONGEST = 300
HEAVY = ("matplotlib", "sklearn", "pandas")

# Where an import and what brings it differ in name, and what only an extra brings.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "torch.utils.tensorboard": "tensorboard"}
OPTIONAL = {"pandas": "dev", "tensorboard": "dev"}

# The public modules that each public module may import. Modules with a leading underscore serve
# all, and import none of these.
ARROWS: dict[str, set[str]] = {
    "gains": set(),
    "meanfield": {"gains"},
    "prediction": {"gains", "meanfield"},
    "probe": set(),
    "diagnosis": {"prediction", "probe"},
    "report": {"diagnosis", "plots"},
    "initialization": {"gains"},
    "descent": set(),
    "curvature": set(),
    "roots": set(),
    "networks": set(),
    "signals": {"networks"},
    "datasets": set(),
    "tracking": set(),
    "training": set(),
    "plots": {"descent"},
}
ARROWS |= {"__init__": set(ARROWS), "__main__": set(ARROWS)}


def imported(source: str) -> set[str]:
    """Every module that the source imports anywhere, and every a.b of `from a import b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "stabilitykit" if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def faults(module: str, source: str) -> list[str]:
    """What a module of the package does against its design."""
    found = []
    if module not in ARROWS and not module.startswith("_"):
        found.append(f"{module} has no place in ARROWS")
    lines = len(source.splitlines())
    if lines > LONGEST:
        found.append(f"{module} has {lines} lines, more than {LONGEST}")
    allowed = ARROWS.get(module, set())
    for name in sorted(imported(source)):
        root, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if root == "scripts":
            found.append(f"{module} imports {name}")
        if root == "matplotlib" and module != "plots":
            found.append(f"{module} imports {name}, which only plots may")
        known = other in ARROWS and other not in ("__init__", "__main__")
        if root == "stabilitykit" and known and other not in allowed:
            found.append(f"{module} imports {name}")
        if name == "stabilitykit" and module != "__main__" and not _submodules_only(source):
            found.append(f"{module} imports the whole package")
    return found


def _submodules_only(source: str) -> bool:
    """Whether `from stabilitykit import …` brings modules, never names of the package."""
    return not any(
        (isinstance(node, ast.Import) and any(a.name == "stabilitykit" for a in node.names))
        or (
            isinstance(node, ast.ImportFrom)
            and (node.module == "stabilitykit" or (node.level and not node.module))
            and any(not (PACKAGE / f"{alias.name}.py").exists() for alias in node.names)
        )
        for node in ast.walk(ast.parse(source))
    )


def engine_faults(source: str) -> list[str]:
    """What a module of the page engine imports that would tie it to one site generator."""
    return [name for name in sorted(imported(source)) if name.split(".")[0].startswith("mkdocs")]


def undeclared(source: str, project: dict) -> list[str]:
    """Which distributions the source needs that neither the dependencies nor OPTIONAL name."""
    extras = project["optional-dependencies"]
    declared = {_name(line) for line in project["dependencies"]}
    declared |= {
        name for name, extra in OPTIONAL.items() if name in map(_name, extras.get(extra, []))
    }
    needed = set()
    for name in imported(source):
        root = name.partition(".")[0]
        needed |= {DISTRIBUTIONS[name]} if name in DISTRIBUTIONS else set()
        if root not in sys.stdlib_module_names and root != "stabilitykit":
            needed.add(DISTRIBUTIONS.get(root, root))
    return sorted(needed - declared)


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_module_imports_what_is_declared(path):
    assert undeclared(path.read_text(encoding="utf-8"), PROJECT) == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import tqdm", ["tqdm"]),
        ("def f():\n    from packaging.version import Version", ["packaging"]),
        ("from torch.utils.tensorboard import SummaryWriter", ["tensorboard", "torch"]),
        ("import torch, sklearn.datasets, os, stabilitykit._checks", ["scikit-learn", "torch"]),
        ("from . import _checks\nfrom .gains import gain", []),
        ("import pandas", ["pandas"]),
    ],
)
def test_what_is_not_declared_is_found(source, missing):
    bare = {"dependencies": [], "optional-dependencies": {"dev": []}}
    assert undeclared(source, bare) == missing


def test_every_dependency_is_imported():
    names = {name for path in MODULES for name in imported(path.read_text(encoding="utf-8"))}
    names |= {name.partition(".")[0] for name in names}
    used = {DISTRIBUTIONS.get(name, name) for name in names}
    assert {_name(line) for line in PROJECT["dependencies"]} | set(OPTIONAL) <= used


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_module_keeps_its_place(path):
    assert faults(path.stem, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.stem)
def test_the_page_engine_knows_nothing_of_mkdocs(path):
    assert engine_faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "text"),
    [
        ("gains", "from scripts import pages", "gains imports scripts"),
        ("gains", "def f():\n    import scripts.pages.run", "gains imports scripts.pages.run"),
        ("gains", "import matplotlib.pyplot as plt", "which only plots may"),
        ("datasets", "def f():\n    from matplotlib import cm", "which only plots may"),
        (
            "gains",
            "from stabilitykit.meanfield import MeanField",
            "gains imports stabilitykit.mean",
        ),
        ("gains", "from . import meanfield", "gains imports stabilitykit.meanfield"),
        ("gains", "from .meanfield import MeanField", "gains imports stabilitykit.meanfield"),
        ("_checks", "import stabilitykit.gains", "_checks imports stabilitykit.gains"),
        ("meanfield", "import stabilitykit", "meanfield imports the whole package"),
        ("meanfield", "from stabilitykit import gain", "meanfield imports the whole package"),
        ("novelty", "", "novelty has no place in ARROWS"),
        ("gains", "\n" * 301, "gains has 301 lines, more than 300"),
    ],
)
def test_each_kind_of_fault_is_found(module, source, text):
    assert any(text in fault for fault in faults(module, source))


def test_what_is_allowed_is_not_a_fault():
    assert faults("meanfield", "from stabilitykit import _checks\nimport stabilitykit.gains") == []
    assert faults("plots", "import matplotlib\nfrom stabilitykit.descent import Path") == []
    assert engine_faults("from mkdocs.plugins import event") == [
        "mkdocs.plugins",
        "mkdocs.plugins.event",
    ]
    assert ENGINE


def test_the_package_imports_nothing_heavy_until_it_is_needed():
    program = "import sys"
    for statement in ("import stabilitykit", "stabilitykit.digits()", "stabilitykit.plots"):
        program += f"\n{statement}\nprint([n for n in {HEAVY} if n in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imports, digits, plots = map(ast.literal_eval, answer.stdout.splitlines())
    assert imports == []
    assert "matplotlib" not in digits  # scikit-learn brings pandas along where that is installed
    assert "sklearn" in digits
    assert plots[:2] == ["matplotlib", "sklearn"]


def test_exported_names_exist_and_are_listed_once_in_order():
    names = stabilitykit.__all__
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(stabilitykit, name) is not None
    public = {
        name
        for name, value in vars(stabilitykit).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("stabilitykit")
    }
    assert public <= set(names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'stabilitykit' has no attribute 'gian'"):
        _ = stabilitykit.gian
