"""The walk's notebooks, opened and run in a real browser on smoke."""

import pytest

from kdkit.study import notebooks

*WALK, GLOSSARY = notebooks.notebooks()  # the glossary has no cell to run


@pytest.mark.parametrize("path", WALK, ids=[path.stem for path in WALK])
def test_runs_in_the_browser(path, open_notebook, trained):
    trained()
    nb = open_notebook(f"notebooks/{path.name}")
    nb.run_all()
    pictures = nb.panel.locator(".jp-OutputArea-output img")
    assert pictures.count() or path.stem.endswith("store")
    for k in range(pictures.count()):
        assert pictures.nth(k).get_attribute("alt").strip()
        assert pictures.nth(k).evaluate("i => i.complete && i.naturalWidth > 50")
    prompts = nb.panel.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
    assert prompts and all(text.strip("[]: ").isdigit() for text in prompts)
    nb.shoot(path.stem)
