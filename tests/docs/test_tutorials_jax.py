"""The tutorials are executed, on a small setting, and on JAX alone: see the pages."""

import pathlib
import re
import runpy

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.py"))
EXPECTED = {
    "make_it_colourful": ("mirror agreement", "colorfulness.png"),
    "reward_tuning_from_scratch": ("equal", None),
    "why_did_my_reward_fall": ("rank correlation", "samples/samples.jsonl"),
}


def test_all_tutorials_are_listed():
    assert {path.stem for path in TUTORIALS} == set(EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_REWARD_SMALL", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="tutorial")
    line, file = EXPECTED[path.stem]
    assert line in capsys.readouterr().out
    assert file is None or (tmp_path / file).exists()


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_a_notebook_of_ten_minutes(path):
    text = path.read_text()
    assert "format_name: percent" in text.split("# ---")[1]
    cells = text.split("\n# %%")[1:]
    prose = [cell for cell in cells if cell.startswith(" [markdown]")]
    assert 5 <= len(prose) < len(cells)
    assert len(re.findall(r"\w+", text)) < 2200  # at a reader's 220 words a minute
    for target in re.findall(r"\]\((\.[^)#]+)\)", text):
        assert (path.parent / target).exists(), target


def test_the_method_takes_60_lines():
    text = (FOLDER / "reward_tuning_from_scratch.py").read_text()
    before = text.split("# ## The same with the library")[0]
    lines = [line for line in before.splitlines() if line and line[0] != "#"]
    assert len(lines) <= 60
