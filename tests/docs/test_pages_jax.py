"""README and the pages of the documentation are executed.

On JAX alone: what they call is tested on every backend, and compiling it takes long.
"""

import json

import pytest
from test_docs import PAGES, code_blocks

from keras_reward.data import Scenes, Vocabulary
from keras_reward.models import VisionEncoderDecoder, VisionTransformer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.name == "README.md":
        save_captioner(tmp_path / "outputs" / "image_captioning")
    blocks = code_blocks(page.read_text())
    assert blocks or page.name in ("how_it_works.md", "language_models.md")
    names = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def save_captioner(folder):
    """The files of a run of `image_captioning.py`, of an untrained, tiny model."""
    folder.mkdir(parents=True)
    texts = Scenes("train", 32, task="captions", size=64)[0][1]
    vocabulary = Vocabulary.from_captions(
        [text for captions in texts for text in captions], max_length=8
    )
    encoder = VisionTransformer((64, 64, 3), 32, width=16, num_layers=1, num_heads=2)
    sizes = len(vocabulary), vocabulary.max_length
    captioner = VisionEncoderDecoder(encoder, *sizes, num_layers=1, num_heads=2)
    captioner.save(folder / "mle.keras")
    (folder / "words.json").write_text(json.dumps(vocabulary.words))
