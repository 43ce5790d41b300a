"""The examples of docstrings are executed, and links lead somewhere."""

import inspect
import pathlib
import re
import textwrap

import pytest

import keras_reward
from keras_reward import (
    advantages,
    callbacks,
    categorical,
    codecs,
    data,
    evaluation,
    models,
    objective,
)
from keras_reward.evaluation import sample_pools
from keras_reward.terms import kl

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
METRICS = ("Cider", "CocoDetection", "PanopticQuality")
DATA = ("CocoBoxes", "CocoCaptions", "CocoPanoptic", "Scenes", "Vocabulary")
DATA += ("coco_files",)
METRICS += ("cider", "coco_detection", "panoptic_quality")
ANALYSIS = ("reward_distribution", "findings", "plot")
ANALYSIS += ("progression", "plot_progression", "report")
CALLBACKS = ("OfficialMetrics", "RewardGuard", "SampleLogger")
MODULES = (advantages, objective, codecs, categorical, sample_pools, kl)
PUBLIC = {
    **{name: getattr(keras_reward, name) for name in keras_reward.__all__},
    **{name: getattr(evaluation, name) for name in METRICS + ANALYSIS},
    **{name: getattr(data, name) for name in DATA},
    **{name: getattr(callbacks, name) for name in CALLBACKS},
    **{name: getattr(models, name) for name in models.__all__},
    **{
        f"{module.__name__}.{name}": value
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isfunction(value)
    },
}


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", inspect.cleandoc(text or ""), re.DOTALL)


EXAMPLES = {
    name: block
    for name, value in PUBLIC.items()
    for block in code_blocks(value.__doc__)
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(textwrap.dedent(EXAMPLES[name]), name, "exec"), {"__name__": name})


def test_public_classes_have_examples():
    without = {"Policy", "ProductReward"}  # their subclasses and operators have
    assert set(keras_reward.__all__) - without <= set(EXAMPLES)
    assert {*METRICS, *ANALYSIS, *CALLBACKS, *DATA} <= set(EXAMPLES)
    assert set(models.__all__) <= set(EXAMPLES)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
