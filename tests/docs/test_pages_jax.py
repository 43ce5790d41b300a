"""README and the pages of the documentation are executed.

On JAX alone: what they call is tested on every backend, and compiling it takes long.
"""

import pytest
from test_docs import PAGES, code_blocks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(page.read_text())
    assert blocks or page.name in ("how_it_works.md", "language_models.md")
    names = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
