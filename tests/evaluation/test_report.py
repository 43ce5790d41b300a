"""The report: what it says, that it is one file, and that a browser shows it."""

import base64
import html.parser
import io
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from keras_reward.evaluation import RewardDistribution, findings, report
from keras_reward.evaluation.intervals import difference, interval

EVIL = "<script>document.title = 'taken over'</script> & \"it's\""
BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    *("chrome", "microsoft-edge"),
)
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
generator = np.random.default_rng(0)
EARLY = generator.normal(1.0, 0.5, 200)
LATE = EARLY + generator.normal(0.3, 0.1, 200)


def distributions():
    rewards = generator.random((5, 40))
    before = RewardDistribution(rewards, np.log(rewards), np.full(5, 0.5))
    after = RewardDistribution(rewards + 0.7, np.log(rewards), np.full(5, 1.2))
    return before, after


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    picture = np.zeros((6, 6, 3), "float32")
    picture[:3] = [1.0, 0.0, 1.0]
    return report(
        tmp_path_factory.mktemp("report") / "report.html",
        title=EVIL,
        settings={"rate": 1e-4, "optimizer": {EVIL: EVIL}},
        before={EVIL: EARLY, "PQ": 43.1},
        after={EVIL: LATE, "PQ": 46.1},
        history={"reward": [0.1, 0.2], "val_reward": [0.2, 0.3], "$x": [1.0, 2.0]},
        distributions=distributions(),
        pairs=[{"input": picture, "before": EVIL, "after": EVIL, "after_reward": 0.25}],
    )


class Reader(html.parser.HTMLParser):
    """Collects tags with attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_all_text_is_escaped_and_nothing_is_loaded(page):
    text = page.read_text()
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.texts.count(EVIL) == 6  # title, heading, setting, score, two outputs
    assert f"optimizer: {EVIL}" in reader.texts
    for tag, attributes in reader.tags:
        assert not {"href", "srcset", "onload", "onerror"} & set(attributes), tag
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/png;base64,")
    assert "http://" not in text and "https://" not in text
    policy = dict(reader.tags)["meta"] or {}
    policies = [a.get("content", "") for tag, a in reader.tags if tag == "meta"]
    assert any("default-src 'none'" in policy for policy in policies), policy


def test_pictures_are_embedded_as_they_are(page):
    tags = [a for tag, a in Reader(page.read_text()).tags if tag == "img"]
    assert [a["alt"] for a in tags] == [
        "Curves of reward, $x",
        "Rewards of samples before and after",
        "input",
    ]
    data = base64.b64decode(tags[-1]["src"].split(",")[1])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels[0, 0], [255, 0, 255])
    np.testing.assert_array_equal(pixels[5, 5], [0, 0, 0])


def test_scores_and_findings_are_those_of_the_data(page, tmp_path):
    text = " ".join(Reader(page.read_text()).texts)
    for values in (EARLY, LATE, LATE - EARLY):
        found = interval(values)
        assert f"{found.mean:.4g}  [{found.low:.4g}, {found.high:.4g}]" in text
    assert "43.1" in text and "46.1" in text and "reward 0.25" in text
    pair = distributions()
    text = " ".join(
        Reader(report(tmp_path / "a.html", distributions=pair).read_text()).texts
    )
    assert f"is reached by {findings(*pair)['share_above']:.1%} after" in text
    assert "no N" in text and "stays below" in text
    assert "Settings" not in text and "Side by side" not in text


@pytest.mark.chance
def test_bootstrap_intervals_are_near_those_of_a_normal_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = interval(values)
    error = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(found.mean - error, abs=0.02)
    assert found.high == pytest.approx(found.mean + error, abs=0.02)
    paired = difference(EARLY, LATE)
    assert paired.high - paired.low < 0.05  # the examples differ far more than that
    assert interval([1.0, np.nan, 3.0]).count == 2


def test_seeds_and_single_values():
    assert interval([1.29, 1.33, 1.31], "seeds")[1:] == (1.29, 1.33, 3)
    assert np.isnan(interval(43.1).low) and interval(43.1).mean == 43.1
    assert difference([1.0, 2.0], [1.0]) is None
    with pytest.raises(ValueError, match="kind='t'"):
        interval([1.0], "t")


def test_arguments_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="same names"):
        report(tmp_path / "a.html", before={"a": 1.0}, after={"b": 1.0})
    with pytest.raises(ValueError, match="intervals='t'"):
        report(tmp_path / "a.html", intervals="t")


@pytest.mark.skipif(BROWSER is None, reason="no browser of the Chromium family")
def test_a_browser_shows_it(page, tmp_path):
    def browse(*arguments):
        command = [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu"),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
            f"--user-data-dir={tmp_path / 'profile'}",
            *arguments,
            page.as_uri(),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=True
        )

    reader = Reader(browse("--dump-dom").stdout)
    assert reader.texts.count(EVIL) == 6  # nothing ran
    assert len([tag for tag, _ in reader.tags if tag == "img"]) == 3
    shot = tmp_path / "shot.png"
    browse(f"--screenshot={shot}", "--window-size=1000,2600")
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    for color in ([31, 119, 180], [255, 127, 14], [255, 0, 255]):  # curves, the picture
        assert (np.abs(pixels.astype(int) - color).max(1) < 12).sum() > 50, color
