"""What importing the package costs, and what it promises."""

import ast
import collections
import graphlib
import pathlib
import pkgutil
import subprocess
import sys

import keras
import pytest

import keras_reward

HEAVY = {"keras_hub", "keras_nlp", "keras_cv", "matplotlib", "pycocotools"}
BACKENDS = {"jax", "tensorflow", "torch"}
MODULES = [
    module.name
    for module in pkgutil.walk_packages(keras_reward.__path__, "keras_reward.")
    if module.name.split(".")[-1] not in BACKENDS
    or module.name.endswith(keras.config.backend())
]
# Imports each module, in a Python that has Keras, and prints what it brings that Keras
# has not. (Keras itself brings JAX and matplotlib.)
IMPORTS = """
import importlib, sys
import keras
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, *{m.split(".")[0] for m in set(sys.modules) - before})
"""


@pytest.mark.slow
def test_every_module_imports_lightly():
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS, "keras_reward", *MODULES],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, *_ in lines] == ["keras_reward", *MODULES]
    for name, *brought in lines:
        assert "keras_reward" in brought, name
        assert not set(brought) & (HEAVY | BACKENDS), name


def test_all_public_names_exist_and_have_examples():
    for name in keras_reward.__all__:
        assert hasattr(keras_reward, name)
        assert getattr(keras_reward, name).__doc__


def test_only_backend_modules_import_a_backend():
    root = pathlib.Path(keras_reward.__file__).parent
    for path in root.rglob("*.py"):
        if path.parent.name == "backend":
            continue
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in BACKENDS, f"{path}: {line}"


# From the floor up: each of these imports from those before it alone.
ORDER = (
    *("whole_files", "interrupts", "backend", "saved_objects", "ragged", "nests"),
    *("valid_inputs", "symbolic", "compiled", "batches", "categorical"),
    *("objective", "advantages", "forms", "sequences", "baselines", "rewards"),
    *("codecs", "policies", "models", "data", "terms", "evaluation", "callbacks"),
    "tuning",
)
# A reward's operators make combinations, which are rewards.
CIRCLES = {("rewards.reward", "rewards.combination")}


def imports():
    """Pairs of modules of the package, the first of which imports the second."""
    root = pathlib.Path(keras_reward.__file__).parent
    names = {name.removeprefix("keras_reward.") for name in MODULES}
    names |= {f"backend.{backend}" for backend in BACKENDS}
    for path in root.rglob("*.py"):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(
                "keras_reward"
            ):
                package = node.module.removeprefix("keras_reward").strip(".")
                for alias in node.names:
                    inner = f"{package}.{alias.name}".strip(".")
                    yield (
                        module.removesuffix(".__init__"),
                        (inner if inner in names else package),
                    )


def test_imports_run_downwards():
    for module, imported in imports():
        above, below = (name.split(".")[0] for name in (module, imported))
        if module != "__init__" and above != below:
            assert ORDER.index(below) < ORDER.index(above), f"{module} -> {imported}"


def test_no_modules_import_each_other():
    above = collections.defaultdict(set)
    for module, imported in imports():
        if (module, imported) not in CIRCLES:
            above[module].add(imported)
    graph = graphlib.TopologicalSorter(above)
    graph.prepare()  # raises a CycleError that names the circle
