"""Markdown in answers, and that nothing else in them has an effect."""

from __future__ import annotations

import pytest

from adafuse_core import Ensemble, ScriptedMember
from tests.integrations.page.test_page import answer, ask

TEXT = """# A heading

Some **bold words**, *italic* and `a * b`, and [a link](https://example.org/a_b?c=1).
snake_case_name, 2 * 3 * 4, \\*no italics\\*, a**b, [not](javascript:alert(1)), ![image](https://example.org/x.png)

1. first
2. second
   - inner **bold**
   - other

```html
<b>code</b>

**not bold**
```
The end <i>of it</i> & more."""


@pytest.fixture
def shown(page, server):
    """Shows an answer with this text, and returns its element."""

    def show(text):
        server.ensembles["adafuse"] = Ensemble(members=[ScriptedMember("left", text)])
        page.get_by_label("Longest answer").fill("9999")
        ask(page, "go")
        return answer(page).locator(".text").first

    return show


def test_markdown_is_rendered(shown):
    text = shown(TEXT)
    assert text.locator("h3").inner_text() == "A heading"
    assert text.locator("strong").all_inner_texts() == ["bold words", "bold"]
    assert text.locator("em").all_inner_texts() == ["italic"]
    assert text.locator(":not(pre) > code").all_inner_texts() == ["a * b"]
    assert text.locator("pre code").inner_text() == "<b>code</b>\n\n**not bold**"
    assert text.locator("ol > li").count() == 2
    assert text.locator("ol > li > ul > li").all_inner_texts() == ["inner bold", "other"]
    links = text.locator("a")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://example.org/a_b?c=1",
        "https://example.org/x.png",
    ]
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer nofollow"}
    plain = text.inner_text()
    for kept in (
        "snake_case_name",
        "2 * 3 * 4",
        "*no italics*",
        "a**b",
        "[not](javascript:alert(1))",
        "<i>of it</i> & more.",
    ):
        assert kept in plain
    assert text.locator("img, b, i").count() == 0


def test_the_time_of_rendering_grows_with_the_length(page):
    hostile = ["[", "*", "_a ", "`", "[a](https://", "\\n- *a", "#", "**a ", "> "]
    seconds = page.evaluate(
        """texts => Math.max(...texts.map(text => {
          const start = performance.now(), whole = text.repeat(20000);
          markdown(document.createElement("div"), whole, (parent, a, b) => parent.append(whole.slice(a, b)));
          return (performance.now() - start) / 1000;
        }))""",
        [text.replace("\\n", "\n") for text in hostile],
    )
    assert seconds < 20  # about 0.1; quadratic time would be minutes


def test_words_in_markdown_keep_their_rounds(shown, page):
    text = shown(TEXT)
    word = text.locator("pre .w").first
    word.focus()
    assert word.inner_text().split()[0] in page.locator("#card").inner_text()
    assert text.locator("strong .w").count() > 0


@pytest.mark.parametrize(
    "text",
    [
        "```\nan open fence",
        "**open bold and `open code and [open link](https://",
        "- \n- \n\n\n1. ",
        "* " * 500,
        "[" * 3000,
        "_*" * 1500,
        "#",
        "\t\t- deep\n- shallow\n            - deeper",
        "\u202eright to left\u202c, combined ñ, 🙂‍↔️ and \x00 zero",
        "`" * 999 + "x",
    ],
)
def test_odd_texts_stay_readable(shown, text):
    letters = [char for char in text if char.isalpha()]
    assert [char for char in shown(text).inner_text().removesuffix("end") if char.isalpha()] == letters
