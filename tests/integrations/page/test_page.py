"""The page in a browser: streaming, words and their rounds, comparison, conversations, keys, errors."""

from __future__ import annotations

import re

import pytest

from adafuse_core import Ensemble, Grammar, ScriptedMember
from adafuse_core.trace.reasons import probability, reason, scored_after
from tests.integrations.page.stub import PAGE, PATIENCE

QUESTION = "Who wrote The Jungle Book and what is the capital of Sudan?"
ANSWER = "The Jungle Book was written by Rudyard Kipling and the capital of Sudan is Khartoum."
EVIL = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def ask(page, text=QUESTION):
    """Send a message and wait for the end of the answer."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    settle(page)


def settle(page):
    page.locator("#stop").wait_for(state="hidden")


def answer(page):
    """The last answer."""
    return page.locator("article.answer").last


def text_of(page):
    return answer(page).locator(".text").first.inner_text().removesuffix("end").strip()


def scripted(*replies, **options):
    members = [ScriptedMember(name, reply, **options) for name, reply in zip(("left", "right"), replies, strict=False)]
    return Ensemble(members=members, strategy="adafuse", max_words=1)


def scripted_by_default(reply):
    return Ensemble(members=[ScriptedMember("left", reply)])


@pytest.fixture(scope="module")
def rounds():
    """The rounds of the answer to the question."""
    return Ensemble().generate([{"role": "user", "content": QUESTION}]).trace.rounds


def test_the_page_is_one_file_that_parses_no_html():
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:,|#)|url\(|@import|https?://(?![^\s]*\\)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    assert len(text) < 64_000


def test_an_answer_streams(page, server):
    server.ensembles["adafuse"] = scripted("one two three")
    server.go.clear()
    page.get_by_label("Message", exact=True).fill("go")
    page.get_by_role("button", name="Send").click()
    page.locator("article.answer[aria-busy]").wait_for()
    assert page.get_by_role("button", name="Stop").is_visible()
    assert text_of(page) == ""
    server.go.set()
    settle(page)
    assert text_of(page) == "one two three"
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["adafuse"] == {"rounds": True}
    assert page.locator("#status").inner_text() == "one two three"  # screen readers hear the whole answer


def test_stop_ends_the_answer_and_the_connection(page, server):
    server.ensembles["adafuse"] = scripted("again and ", ends_answer=False, delay=0.02)
    page.get_by_label("Longest answer").fill("100000")
    page.get_by_label("Message", exact=True).fill("go")
    page.keyboard.press("Enter")
    page.locator(".w").nth(3).wait_for()
    page.get_by_role("button", name="Stop").click()
    settle(page)
    assert server.gone.wait(PATIENCE)
    assert text_of(page).startswith("again and again and")
    assert "stopped" in answer(page).inner_text()
    assert page.locator("#prompt").evaluate("field => field === document.activeElement")


def test_words_have_the_colour_of_their_member_and_shared_words_are_neutral(page, rounds):
    ask(page)
    assert text_of(page) == ANSWER
    kinds = [word.get_attribute("class").split()[1] for word in page.locator(".w").all()]
    expected = {("aspen",): "m0", ("birch",): "m1", ("aspen", "birch"): "several"}
    assert kinds == [expected[tuple(played["proposers"])] for played in rounds]
    assert {"m0", "m1", "several"} <= set(kinds)
    assert [each.split()[0] for each in page.locator("#legend li").all_inner_texts()] == [
        "aspen",
        "birch",
        "several",
        "none",
    ]


@pytest.mark.parametrize("how", ["focus", "hover"])
def test_a_word_shows_its_round(page, rounds, how):
    ask(page)
    (place,) = [place for place, played in enumerate(rounds) if played["text"] == " Rudyard"]
    word, card = page.locator(".w").nth(place), page.locator("#card")
    assert card.is_hidden()
    word.focus() if how == "focus" else word.hover()
    card.wait_for()
    assert reason(rounds[place]) in card.inner_text()
    (margin,) = rounds[place]["margins"]["aspen"]
    assert margin < 0.7
    assert f"Margins of aspen: {margin:.2f} (below τ = 0.7)" in card.inner_text()
    shown = [row.locator("th, td").all_inner_texts() for row in card.locator("tbody tr").all()]
    for candidate, cells in zip(rounds[place]["candidates"], shown, strict=True):
        likely = [f"{probability(candidate, name):.3f}" for name in ("aspen", "birch")]
        assert cells[0].replace("✓", "").split() == f"{candidate['text']} …{scored_after(candidate)}".split()
        assert [cell.strip() for cell in cells[1:]] == [
            "".join(candidate["proposers"]),
            f"{candidate['score']:.3f}",
            *likely,
        ]
    assert card.locator("tr.won").inner_text().startswith("✓")
    page.keyboard.press("Escape")
    assert card.is_hidden()


def test_the_reasons_are_those_of_traces(page, rounds):
    left = {**dict.fromkeys("abcdef", (-3.1,)), **dict.fromkeys("123456", (-4.3,))}
    right = {**dict.fromkeys("abcdef", (-6.3,)), **dict.fromkeys("123456", (-0.3,))}
    members = [
        ScriptedMember("left", "a b c d e f", margin=0.0, logprobs=left),
        ScriptedMember("right", "1 2 3 4 5 6", margin=0.0, logprobs=right),
    ]
    sampled = Ensemble(members=members, strategy="adafuse", max_words=1).generate("go", temperature=50.0, seed=3)
    cut = Ensemble(members=[ScriptedMember("left", "one two three")], strategy="adafuse", max_words=3).generate(
        "go", max_new_tokens=2
    )
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    forced = Ensemble().generate("Hello", grammar=Grammar.json_schema(schema), max_new_tokens=14)
    all_rounds = [*rounds, *sampled.trace.rounds, *cut.trace.rounds, *forced.trace.rounds]
    told = page.evaluate("rounds => rounds.map(reason)", all_rounds)
    assert told == [reason(played) for played in all_rounds]
    assert len({text.split(",")[0].split(" 0.")[0] for text in told}) >= 5


def test_each_member_answers_alone_beside_the_ensemble(page, server):
    ask(page)
    answer(page).get_by_role("button", name="Compare").click()
    answer(page).locator("section").nth(2).wait_for()
    settle(page)
    shown = {
        name: page.get_by_label(name, exact=True).inner_text() for name in ("Together", "aspen alone", "birch alone")
    }
    assert "Rudyard Kipling and the capital of Sudan is Khartoum" in shown["Together"]
    messages = [{"role": "user", "content": QUESTION}]
    for name in ("aspen", "birch"):
        assert server.find(f"adafuse:{name}").generate(messages).text in shown[f"{name} alone"]
    assert sorted(body["model"] for body in server.bodies) == ["adafuse", "adafuse:aspen", "adafuse:birch"]
    assert all(body["messages"] == messages for body in server.bodies)


def test_the_compared_answers_stop_together(page, server):
    server.ensembles["adafuse"] = scripted("one two", "one three")
    page.reload()
    ask(page, "go")
    server.go.clear()
    answer(page).get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Stop").click()
    settle(page)
    assert page.get_by_label("left alone", exact=True).inner_text().endswith("stopped")
    server.go.set()


def test_everything_works_with_the_keyboard_alone(page):
    press = page.keyboard.press
    page.keyboard.type("Hello!")  # the message field has the focus
    press("Shift+Enter")
    press("Backspace")
    press("Enter")
    settle(page)
    for _ in range(40):
        press("Shift+Tab")
        if page.evaluate("document.activeElement.className").startswith("w "):
            break
    first = page.evaluate("document.activeElement.textContent")
    assert page.locator("#card").is_visible()
    press("Home")
    press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == page.locator(".w").nth(1).inner_text() != first
    assert page.evaluate("document.activeElement.textContent") in page.locator("#card").inner_text()
    assert page.locator(".w[tabindex='0']").count() == 1  # Tab leaves the answer, arrow keys move inside
    press("Escape")
    assert page.locator("#card").is_hidden()
    press("Tab")
    press("Tab")
    press("Enter")
    answer(page).locator("section").nth(2).wait_for()
    settle(page)
    assert page.evaluate("document.activeElement.textContent") == "Compare with each member alone"
    press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "Repeat"
    press("Enter")
    settle(page)
    assert page.locator("article.answer").count() == 1
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_a_message_can_be_edited_and_an_answer_repeated(page, server):
    server.ensembles["adafuse"] = scripted("one two")
    ask(page, "first")
    ask(page, "second")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edited message").fill("changed")
    page.get_by_role("button", name="Send").first.click()
    settle(page)
    assert page.locator("article.mine .text").all_inner_texts() == ["changed"]
    page.get_by_role("button", name="Repeat").click()
    settle(page)
    sent = [[message["content"] for message in body["messages"]] for body in server.bodies]
    assert sent == [["first"], ["first", "one two", "second"], ["changed"], ["changed"]]


def test_conversations_are_kept_in_the_browser(page):
    ask(page)
    page.reload()
    page.get_by_role("button", name="New conversation").first.wait_for()
    assert page.locator("article").count() == 0
    page.locator("#list .open", has_text="Who wrote").click()
    assert text_of(page) == ANSWER
    page.locator(".w.m1").first.focus()
    assert "the lowest score" in page.locator("#card").inner_text()
    page.get_by_role("button", name="Delete Who wrote").click()
    page.reload()
    page.locator("#list .open").wait_for()
    assert page.locator("#list .open").all_inner_texts() == ["New conversation"]


def test_damaged_storage_is_no_obstacle(page):
    page.evaluate("localStorage.setItem('adafuse.chats', '{')")
    page.evaluate("localStorage.setItem('adafuse.settings', '7')")
    page.reload()
    ask(page, "Hello!")
    assert "Hello!" in text_of(page)


def test_a_full_storage_costs_rounds_and_no_text(page):
    ask(page)
    kept = "JSON.parse(localStorage['adafuse.chats'])[0].messages[1]"
    assert page.evaluate(f"{kept}.rounds.length") > 0
    page.evaluate("""for (let size = 2 ** 22; size >= 1; size /= 2) {
      try { localStorage.junk = (localStorage.junk ?? "") + "x".repeat(size); } catch {}
    }""")
    ask(page, "Hello!")
    assert page.evaluate(f"{kept}.rounds.length") == 0
    assert page.evaluate(f"{kept}.pieces.map(piece => piece.text).join('')") == ANSWER


def test_the_panel_has_the_strategy_and_settings_are_sent(page, server):
    facts = " ".join(page.locator("#facts").inner_text().split())
    assert facts == (
        "strategy beam continuations kept 3 branches B 3 words until a commit 8 confidence threshold τ 0.7"
    )
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Longest answer").fill("3")
    page.get_by_label("Temperature").fill("0")
    ask(page, "Hello!")
    body = server.bodies[0]
    assert (body["messages"][0], body["max_tokens"], body["temperature"]) == (
        {"role": "system", "content": "Be brief."},
        3,
        0,
    )
    assert "the token budget" in answer(page).inner_text()
    page.get_by_label("Temperature").fill("warm")
    ask(page, "Hello!")
    assert "temperature" in answer(page).locator(".error").inner_text()
    assert len(server.bodies) == 1


def test_the_panel_has_the_options_of_the_default_strategy(page, server):
    server.ensembles = {"default": scripted_by_default("one two")}
    page.reload()
    page.locator("#facts", has_text="strategy").wait_for()
    facts = " ".join(page.locator("#facts").inner_text().split())
    for fact in ("strategy beam", "continuations kept 3", "words until a commit 8", "confidence threshold τ 0.7"):
        assert fact in facts


def test_html_is_text_everywhere(page, server):
    members = [ScriptedMember("<b>a&", f"{EVIL} [x](javascript:alert(1)) [y](data:text/html,z) `{EVIL}`", margin=0.0)]
    server.ensembles = {
        "adafuse": Ensemble(
            members=[*members, ScriptedMember("<i>", EVIL, margin=0.0)], strategy="adafuse", max_words=1
        )
    }
    page.reload()
    ask(page, EVIL)
    assert EVIL in text_of(page)
    page.locator(".w").first.focus()
    assert "<b>a&" in page.locator("#card").inner_text()
    server.failure = (400, EVIL)
    ask(page, "again")
    assert EVIL in answer(page).locator(".error").inner_text()
    assert page.locator("img, #log script, #log iframe, #log a, #log b, #log i").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_key_is_asked_for_and_kept_for_the_session(open_page, server, browser):
    server.key = "secret"
    context = browser.new_context()
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    page.goto(server.url)
    for key in ("wrong", "secret"):
        page.get_by_role("textbox", name="API key").fill(key)
        page.get_by_role("button", name="Use this key").click()
        if key == "wrong":
            page.locator("#key-error", has_text="the API key is wrong").wait_for()
    page.locator("#model option").first.wait_for(state="attached")
    ask(page, "Hello!")
    assert "Hello!" in text_of(page)
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")
    assert page.evaluate("JSON.stringify(localStorage)").find("secret") < 0
    context.close()


def test_errors_are_shown_and_the_question_can_be_repeated(page, server):
    server.failure = (429, "the queue is full")
    ask(page, "Hello!")
    assert answer(page).locator(".error").inner_text() == "the queue is full\nTry again in 7 seconds."
    server.failure = None
    page.get_by_role("button", name="Repeat").click()
    settle(page)
    assert "Hello!" in text_of(page)


def test_a_failure_in_the_middle_keeps_the_text(page, server):
    server.ensembles["adafuse"] = scripted("one two three four", fail_after=2)
    ask(page, "go")
    assert text_of(page).startswith("one two")
    assert "scripted failure" in answer(page).locator(".error").inner_text()


def test_thoughts_and_tool_calls_are_folded(page, server):
    import json

    def reply(prompt):
        call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        return "It rains." if prompt[-1].role == "tool" else f"<think>hm, the weather</think>{call}"

    server.ensembles["adafuse"] = Ensemble(members=[ScriptedMember("left", reply)])
    page.get_by_label("Tools").fill(json.dumps([TOOL]))
    ask(page, "How is the weather?")
    folded = answer(page).locator("details")
    assert folded.locator("summary").all_inner_texts() == ["Thought", "Tool call: weather"]
    assert not answer(page).get_by_text("hm, the weather").is_visible()
    folded.nth(0).locator("summary").click()
    assert answer(page).get_by_text("hm, the weather").is_visible()
    folded.nth(1).locator("summary").click()
    assert json.loads(folded.nth(1).locator("pre").inner_text()) == {"city": "Oslo"}
    page.get_by_label("Result of weather").fill("rain")
    page.get_by_role("button", name="Give this result").click()
    settle(page)
    assert text_of(page) == "It rains."
    *_, call, result = server.bodies[-1]["messages"]
    assert call["tool_calls"][0]["function"]["name"] == "weather"
    assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "rain"}


def test_a_narrow_window_scrolls_in_one_direction_only(open_page):
    page = open_page(viewport={"width": 360, "height": 640})
    ask(page)
    page.locator(".w.m1").first.focus()
    width = page.evaluate("document.documentElement.scrollWidth")
    box = page.locator("#card").bounding_box()
    assert width <= 360
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    toggle = page.get_by_role("button", name="Settings")
    assert page.get_by_label("Temperature").is_hidden()
    toggle.click()
    assert page.get_by_label("Temperature").is_visible()
    assert toggle.get_attribute("aria-expanded") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(color_scheme=scheme)
    assert axe.Axe().run(page).response["violations"] == []
    ask(page)
    answer(page).get_by_role("button", name="Compare").click()
    answer(page).locator("section").nth(2).wait_for()
    settle(page)
    page.locator(".w.m1").first.focus()
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
