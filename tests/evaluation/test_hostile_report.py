"""Reports of odd data, which are written whole or not at all."""

import os

import keras
import numpy as np
import pytest

from keras_reward.evaluation import report

ODD = "a\x00b\x1b[31m\x7f\x9b\ud800\uffff\n\tü🙂"
SHOWN = "a\ufffdb\ufffd[31m\ufffd\ufffd\ufffd\ufffd\n\tü🙂"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_what_no_page_can_hold_is_replaced(tmp_path):
    path = report(
        tmp_path / "a.html",
        title=ODD,
        settings={ODD: {ODD: ODD}},
        before={ODD: 1.0},
        after={ODD: 2.0},
        history={ODD: [1.0, 2.0]},
        pairs=[{"before": ODD}],
    )
    text = path.read_bytes().decode()
    assert text.count(SHOWN) == 8  # title, heading, 3 of a setting, metric, alt, output
    assert not set(text) & set("\x00\x1b\x7f\x9b\uffff")


def test_a_history_without_curves_has_no_section(tmp_path):
    empty = keras.callbacks.History()
    empty.history = {}
    for history in (empty, {}, {"epoch": [0, 1]}):
        text = report(tmp_path / "a.html", history=history).read_text()
        assert "Curves" not in text and "<img" not in text


def test_curves_without_or_with_one_value_are_drawn(tmp_path):
    history = {"reward": [], "val_loss": 1.0, "kl": [None, 2.0, float("nan")], 3: [1]}
    text = report(tmp_path / "a.html", history=history).read_text()
    assert 'alt="Curves of reward, loss, kl, 3"' in text


@pytest.mark.slow
def test_of_thousands_of_curves_the_first_are_drawn(tmp_path):
    history = {f"c{i}": [1.0] for i in range(1_000)}
    text = report(tmp_path / "a.html", history=history).read_text()
    assert "c149" in text and "c150" not in text and "850 more are not drawn" in text


def endless():
    settings = {}
    settings["inner"] = settings
    return settings


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"history": {"reward": ["high"]}}, ValueError, "Curve 'reward' .*numbers"),
        ({"history": {"reward": [[1, 2]]}}, ValueError, r"shape \(1, 2\)"),
        ({"history": {"reward": [10**400]}}, ValueError, "must be numbers"),
        ({"before": {"a": "x"}, "after": {"a": 1}}, ValueError, "Metric 'a' must be n"),
        ({"before": {"a": None}, "after": {"a": {}}}, ValueError, "Received: {}"),
        ({"settings": endless()}, ValueError, "nested at most 50 times"),
        ({"settings": ["a"]}, ValueError, "must be a dict"),
        ({"pairs": [{"before_reward": "x"}]}, ValueError, "`before_reward` must be n"),
        ({"pairs": [{"after_reward": [1, 2]}]}, ValueError, "must be one number"),
        ({"title": Unprintable()}, RuntimeError, "no text"),
    ],
)
def test_what_cannot_be_shown_is_an_error_and_the_old_file_stays(
    tmp_path, data, error, message
):
    path = report(tmp_path / "a.html", title="old")
    old = path.read_bytes()
    with pytest.raises(error, match=message):
        report(path, **data)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.html"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = report(tmp_path / "a.html", title="old")
    old = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        report(path, title="new")
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.html"]


def test_permissions_and_links_stay(tmp_path):
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "a.html"
    real.write_text("old")
    real.chmod(0o640)
    os.symlink(real, tmp_path / "link.html")
    assert report(tmp_path / "link.html", title="new") == tmp_path / "link.html"
    assert (tmp_path / "link.html").is_symlink() and "new" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    (tmp_path / "other").touch()
    ours = report(tmp_path / "b.html").stat().st_mode
    assert ours == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((0, 4, 3)),
        np.zeros((4, 4, 3), "complex64"),
        np.full((2, 2, 3), "x"),
        np.full((2, 2, 3), None),
        np.zeros((2, 2, 5)),
    ],
)
def test_arrays_that_are_no_pictures_are_text(tmp_path, picture):
    text = report(tmp_path / "a.html", pairs=[{"input": picture}]).read_text()
    assert "<img" not in text


def test_pictures_with_odd_numbers_are_shown(tmp_path):
    picture = np.full((2, 2, 3), np.nan, "float32")
    picture[0] = [np.inf, -np.inf, 3e38]
    text = report(tmp_path / "a.html", pairs=[{"input": picture}]).read_text()
    assert "<img" in text
