"""Which package may import which, checked by parsing the imports of every file."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE = 350  # lines

# A file may import from lower layers and its own package, and from its own layer only between FRIENDS; never upward.
LAYERS = (
    {"errors"},
    {"files"},
    {"batch"},
    {"config"},
    {"parallel"},
    {"models", "objectives", "data", "checkpoints"},
    {"costs", "decoding"},
    {"evaluation", "reporting"},
    {"tasks"},
    {"training", "runs"},
    {"huggingface"},
    {
        "train",
        "eval",
        "generate",
        "predict",
        "compare",
        "aot",
        "merge_lora",
        "hf",
        "chat",
        "harness",
        "ngram",
        "vectors",
        "data.show",
    },
)
# Packages of one layer that may import each other, though no files do so in a circle.
FRIENDS = ({"evaluation", "reporting"}, {"training", "runs"})
COMMANDS = LAYERS[-1]

FRAMEWORKS = {"tensorflow", "torch"}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
NETWORK = {"requests", "urllib.request", "urllib3", "http", "httpx", "aiohttp", "ftplib", "huggingface_hub"}
DOWNLOADS = {"lm.huggingface.hub": {"huggingface_hub"}}  # only when the user names a model of the hub


def python_files() -> dict[str, Path]:
    """Module name -> file, for lm/, train.py and eval.py."""
    files = {}
    for path in [*sorted((ROOT / "lm").rglob("*.py")), ROOT / "train.py", ROOT / "eval.py"]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(tree: ast.AST, module: str, *, nested: bool = True) -> set[str]:
    """Imported dotted names, "a.b.c" for `from a.b import c`; without `nested`, those in functions are skipped."""
    found: set[str] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif nested or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            stack += ast.iter_child_nodes(node)
    return found


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports. `from lm.data import order` counts as lm.data.order."""
    edges: dict[str, set[str]] = {}
    for module, source in sources.items():
        edges[module] = set()
        for name in imports(ast.parse(source), module):
            edges[module].add(max((m for m in sources if f"{name}.".startswith(f"{m}.")), default="", key=len))
        edges[module] -= {"", "lm", module}
    return edges


def package(module: str) -> str:
    """The entry of LAYERS that a module belongs to: its package, or itself."""
    name = module.removeprefix("lm.")
    return name if name in COMMANDS else name.split(".")[0]


def layer(module: str) -> int:
    levels = [level for level, packages in enumerate(LAYERS) if package(module) in packages]
    assert levels, f"{module} is in no layer: add it to LAYERS of tests/test_imports.py"
    return levels[0]


def forbidden(edges: dict[str, set[str]]) -> list[str]:
    return sorted(
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in others
        if package(module) != package(other) and layer(module) <= layer(other)
        if not any({package(module), package(other)} <= each for each in FRIENDS)
    )


def circle(edges: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def matches(names: set[str], unwanted: set[str]) -> set[str]:
    return {name for name in names if any(f"{name}.".startswith(f"{each}.") for each in unwanted)}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {module: path.read_text(encoding="utf-8") for module, path in python_files().items()}


def test_no_import_goes_upward_or_sideways(sources):
    assert forbidden(graph({module: text for module, text in sources.items() if module != "lm"})) == []


def test_no_import_goes_in_a_circle(sources):
    assert circle(graph(sources)) == []


def test_lm_never_imports_a_pickle_a_network_library_or_another_framework(sources):
    found = {
        module: matches(imports(ast.parse(text), module), FRAMEWORKS | PICKLES | NETWORK) - DOWNLOADS.get(module, set())
        for module, text in sources.items()
    }
    assert {module: names for module, names in found.items() if names} == {}


def test_no_array_is_loaded_with_pickles(sources):
    for module, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            allowed = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
            assert not allowed or ast.unparse(node.value) == "False", f"{module}, line {node.value.lineno}"


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "configs"])
def test_no_file_needs_another_framework_to_be_imported(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        names = imports(ast.parse(path.read_text(encoding="utf-8")), path.stem, nested=False)
        assert not matches(names, FRAMEWORKS), path


def test_files_are_short(sources):
    lengths = {module: text.count("\n") for module, text in sources.items()}
    assert {module: lines for module, lines in lengths.items() if lines >= LONGEST_FILE} == {}


@pytest.mark.parametrize(
    ("module", "source", "verdict"),
    [
        ("lm.models.block", "from lm.config import Config\nimport lm.models.transformer.cache", []),
        ("lm.models.block", "from lm.data.packing import rows", ["lm.models.block imports lm.data.packing.rows"]),
        ("lm.models.block", "def f():\n    import lm.training.step", ["lm.models.block imports lm.training.step"]),
        (
            "lm.models.block",
            "from ..data.packing.rows import Windows",
            ["lm.models.block imports lm.data.packing.rows"],
        ),
        ("lm.data.show", "import lm.training.step", []),
        ("lm.data.packing.loader", "from lm.data.show import main", ["lm.data.packing.loader imports lm.data.show"]),
    ],
)
def test_layer_rules_find_violations(module, source, verdict):
    known = dict.fromkeys(
        ["lm.config", "lm.models.transformer.cache", "lm.data.packing.rows", "lm.data.show", "lm.training.step"], ""
    )
    assert forbidden(graph({**known, module: source})) == verdict


def test_circle_within_one_package_is_found():
    sources = {"lm.data.a": "import lm.data.b", "lm.data.b": "from lm.data.c import x", "lm.data.c": "from . import a"}
    edges = graph(sources)
    assert set(circle(edges)) == {"lm.data.a", "lm.data.b", "lm.data.c"}


def test_imports_within_functions_are_distinguished():
    tree = ast.parse("try:\n    import torch\nexcept ImportError:\n    pass\ndef f():\n    import pickle")
    assert imports(tree, "m", nested=False) == {"torch"}
    assert imports(tree, "m") == {"torch", "pickle"}
