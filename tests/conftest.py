"""How tests run: quick to compile, small in memory, and from the same seeds."""

import concurrent.futures
import ctypes
import gc
import multiprocessing
import os
import pathlib
import resource
import sys

# Most of the time goes into compiling what then runs once. So XLA does not optimise,
# and JAX keeps what it compiled for other tests and for the next run. As many processes
# run as there are cores: more threads would only wait for each other. All of this is
# set before a backend is imported, and only where nobody has set it.
XLA_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
]
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
SETTINGS = {
    "XLA_FLAGS": " ".join(XLA_FLAGS),
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

import chance
import keras
import pytest
from backends import CAN_TRAIN

BACKEND = keras.config.backend()


class NoTensorFlow:
    """Hides TensorFlow from other backends, which do without.

    Keras imports it to load a model, if it is there: 5 seconds and 400 MB.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "tensorflow":
            raise ModuleNotFoundError("hidden by tests/conftest.py", name=name)


if BACKEND != "tensorflow":
    sys.meta_path.insert(0, NoTensorFlow)
STATM = pathlib.Path("/proc/self/statm")
kept_memory = 500  # MB; at the start, what is imported

# Tests of one backend are collected on that backend alone, and where Keras does not
# train, the tests of what is left.
LEFT = (
    *("backend", "codecs", "evaluation", "forms", "rewards"),
    *("test_advantages.py", "test_floatx.py"),
)
collect_ignore_glob = [
    f"*_{name}.py"
    for name in ("jax", "tensorflow", "torch", "numpy")
    if name != BACKEND
]
if not CAN_TRAIN:
    here = pathlib.Path(__file__).parent
    collect_ignore_glob += [p.name for p in here.iterdir() if p.name not in LEFT]
chance.shift_seeds()


def pytest_collectstart(collector):
    chance.seed_everything()


def pytest_collection_finish():
    """Python looks for garbage less often, and not in what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    chance.seed_everything()


def resident_memory():
    """MB that this process has in memory; 0 where Linux does not say."""
    pages = STATM.read_text().split()[1] if STATM.exists() else 0
    return int(pages) * resource.getpagesize() // 2**20


def forget_graphs():
    """TensorFlow registers gradients of a graph's own, and with them keeps the graph.

    `tensorflow.RegisterGradient` has no counterpart that takes a gradient back.
    """
    from tensorflow.python.framework.ops import gradient_registry

    for name in [n for n in gradient_registry.list() if n.startswith("CustomGradient")]:
        del gradient_registry._registry[name]


@pytest.fixture(autouse=True)
def memory_is_given_back():
    """Every 700 MB: compiled functions, and what the allocator keeps."""
    global kept_memory
    yield
    if resident_memory() > kept_memory + 700:
        if BACKEND == "jax":
            import jax

            jax.clear_caches()
        if BACKEND == "tensorflow":
            forget_graphs()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        kept_memory = resident_memory()


@pytest.fixture(scope="session")
def hub():
    """Runs a function of a test file in a process that may import KerasHub or KerasCV.

    They bring TensorFlow into the process whatever the backend.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=spawn, initializer=chance.shift_seeds
    ) as pool:
        yield lambda *call: pool.submit(chance.seeded_call, *call).result()


def pytest_sessionfinish(session):
    """With TEST_MEMORY set: the most memory that this process has had."""
    if "TEST_MEMORY" in os.environ:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with open(os.environ["TEST_MEMORY"], "a") as file:
            print(f"{worker}: {peak:.0f} MB at most", file=file)
