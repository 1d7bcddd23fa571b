"""The explorer in a real browser: what it shows, by keyboard, in both themes, on a phone, under its policy."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from larql_duck.server.options import ServeOptions
from tests import chromium
from tests.conftest import Make
from tests.server.conftest import READER
from tests.server.running import Running, running
from tests.world import NASTY, write_vindex

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.extras

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
MODEL, WORLD = "/m/llama-probed", "/m/world"
PROMPT = "?prompt=The+capital+of+France+is"
# What a model may say; each would change the page if it were read as markup.
MARKUP = [
    "<img src=x onerror=document.title='broken'>",
    "</td><script>document.title='broken'</script>",
    "&amp;<b>bold</b>",
]
# (address below the server, what must be there before it is looked at)
PAGES = {
    "overview": (WORLD, "table"),
    "entity": (f"{WORLD}/entity/France", ".graph[data-drawn]"),
    "feature": (f"{WORLD}/feature/5/9", ".chart[data-drawn]"),
    "infer": (f"{MODEL}/infer{PROMPT}", ".chart[data-drawn]"),
    "console": (f"{WORLD}/console?q=FROM%20who('capital','Paris')", "article table"),
}
PHONE = {"width": 390, "height": 800}
Visit = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, the system's."""
    path = chromium.find()
    if path is None:
        pytest.skip("there is no chromium (make test-extras installs it where it may)")
    with playwright.sync_playwright() as play:
        with_rights = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = play.chromium.launch(executable_path=path, args=with_rights)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser, reader: Running) -> Iterator[Visit]:
    """A function (address, what to wait for) -> that page; nothing that a page did may have gone wrong."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def go(address: str, ready: str = "main[data-page]", url: str = reader.url, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(url + address)
        page.wait_for_selector(ready, timeout=30_000)
        return page

    yield go
    for context in contexts:
        context.close()
    # A refused key or name is an answer, and the browser's own remark on it.
    assert [text for text in wrong if "Failed to load resource" not in text] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_page_has_findings_of_axe_or_is_wider_than_a_phone(visit: Visit, name: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra [browser]")
    address, ready = PAGES[name]
    page = visit(address, ready, color_scheme=theme, viewport=PHONE)
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["impact"], [n["html"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    if directory := os.environ.get("LARQL_DUCK_SCREENSHOTS"):
        page.screenshot(path=Path(directory, f"explorer-{name}-{theme}-phone.png"))
        page.set_viewport_size({"width": 1100, "height": 800})
        page.screenshot(path=Path(directory, f"explorer-{name}-{theme}.png"))


def test_a_name_is_found_by_keyboard_and_its_features_are_a_step_away(visit: Visit) -> None:
    page = visit(WORLD)
    page.keyboard.press("/")
    page.keyboard.type("fran")
    page.wait_for_selector("#names [role=option]")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#search", "aria-activedescendant") == "name-0"
    page.keyboard.press("Enter")
    page.wait_for_url("**/m/world/entity/France")
    page.wait_for_selector("h1:text('France')")
    row = page.locator("tr", has=page.locator("th", has_text="capital")).first
    assert "Paris" in row.inner_text() and "77 %" in row.inner_text()
    button = row.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    page.get_by_role("link", name="5 · 9").first.click()
    page.wait_for_url("**/m/world/feature/5/9")
    page.wait_for_selector("h1:text('Layer 5 · feature 9')")
    assert page.locator("mark").first.text_content() == " France"
    page.go_back()
    page.wait_for_selector("h1:text('France')")
    assert "Eiffel Tower" in visit(f"{WORLD}/entity/Paris", ".graph[data-drawn]").inner_text("main")


def test_a_switch_beside_a_feature_shows_the_answer_change(visit: Visit, reader: Running) -> None:
    page = visit(*PAGES["infer"])
    slot = page.locator(".switches .slot").first.inner_text().split(" · ")
    before = page.locator(".said + .frame tbody").inner_text()
    switch = page.get_by_role("switch").first
    switch.focus()
    page.keyboard.press("Space")
    page.wait_for_selector("text=without 1 feature;")
    assert switch.get_attribute("aria-checked") == "false"
    assert f"off={'.'.join(slot)}" in page.url
    statement = f'INFER "The capital of France is" TOP 8 ABLATE ({", ".join(slot)})'
    answer = reader.lql(statement, "llama-probed").json()
    token = dict(zip(answer["columns"], answer["rows"][0], strict=True))["token"]
    assert page.locator(".said + .frame tbody th").first.inner_text() == token.replace(" ", "␣")
    # The address is permanent: it shows the same again.
    again = visit(page.url.removeprefix(reader.url), "text=without 1 feature;")
    assert again.locator(".said + .frame tbody th").first.inner_text() == token.replace(" ", "␣")
    switch.click()
    page.wait_for_function(
        "before => document.querySelector('.said + .frame tbody').innerText === before", arg=before
    )


def test_the_lens_has_a_row_for_every_layer_and_the_last_agrees_with_the_answer(visit: Visit) -> None:
    page = visit(*PAGES["infer"])
    page.get_by_text("The last position as a table").click()
    rows = page.locator("details tbody tr")
    assert rows.count() == 4 and rows.nth(0).locator("th").inner_text() == "embedding"
    assert rows.last.locator("code").inner_text() == page.locator(".said + .frame code").first.inner_text()


def test_the_console_completes_recalls_and_links(visit: Visit) -> None:
    page = visit(f"{WORLD}/console")
    field = page.locator("#statement")
    field.fill("")
    field.type('DESCRIBE "Fr')
    page.wait_for_selector("#completions [role=option]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    assert field.input_value() == 'DESCRIBE "France"'
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("article table")
    assert page.locator("article a", has_text="Paris").first.get_attribute("href") == "/m/world/entity/Paris"
    field.fill("DESCRIBE France")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("article .failure")
    page.keyboard.press("Alt+ArrowUp")
    page.keyboard.press("Alt+ArrowUp")
    assert field.input_value() == 'DESCRIBE "France"'
    page.select_option("#language", "sql")
    field.fill("""SELECT "object" FROM facts WHERE subject = 'Japan'""")
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector("article:has-text('Tokyo')")


def test_nothing_that_a_model_says_is_read_as_markup(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [(name, "capital", f"{name} too", 1, 0.5) for name in MARKUP]
    monkeypatch.setattr("tests.world.FACTS", [*facts, ("France", "capital", MARKUP[0], 1, 0.9)])
    hostile = write_vindex(tmp_path / "hostile.vindex")
    with running([hostile], ServeOptions()) as server:
        for address in (
            "",
            "/entity/France",
            "/feature/5/9",
            "/console?q=SELECT%20*%20FROM%20facts",
            f"/entity/{_encoded(MARKUP[1])}",
        ):
            page = visit(f"/m/hostile{address}", url=server.url)
            page.wait_for_load_state("networkidle")
            page.wait_for_function(
                "document.querySelector('main').innerText.includes('<img src=x') || document.querySelector('main').innerText.includes('</td>')"
            )
            assert page.locator("main img, main script, main b").count() == 0
            assert "broken" not in page.title().replace(MARKUP[1], "")


def test_a_browse_vindex_is_useful_and_says_what_it_lacks(visit: Visit) -> None:
    assert "no weights" in visit(WORLD).inner_text("main")
    page = visit(f"{WORLD}/infer{PROMPT}")
    assert "level inference" in page.inner_text("main") and page.locator("form.panel").count() == 0
    assert "No fact is known" in visit(f"{WORLD}/entity/Nobody").inner_text("main")


@pytest.mark.parametrize(
    "name",
    [*(name for name in NASTY if len(name) < 100), "a/b", "/", "..", ".", "%2F", "a?b#c&d=e+f", "\u200e<b>"],
)
def test_addresses_of_names_survive_a_reload(visit: Visit, name: str) -> None:
    page = visit(WORLD)
    page.evaluate(
        "name => import('/links.js').then(({ entityLink }) => document.querySelector('main').prepend(entityLink('world', name)))",
        name,
    )
    page.locator("main > a").click()
    shown = "name => document.querySelector('h1')?.textContent === name && document.querySelector('main').dataset.page === 'entity'"
    page.wait_for_function(shown, arg=name)
    url = page.url
    page.reload()
    page.wait_for_function(shown, arg=name)
    assert page.url == url and ("No fact is known" in page.inner_text("main")) == (name not in NASTY)


def test_other_addresses_survive_a_reload(visit: Visit, reader: Running) -> None:
    page = visit(f"{WORLD}/console")
    statement = "SELECT 'é/%2F' AS a,\n  '\"🦆\"' AS b"
    page.fill("#statement", statement)
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector("article:has-text('1 row')")
    for _ in range(2):
        assert page.input_value("#statement") == statement
        assert "🦆" in page.inner_text("article table")
        page.reload()
        page.wait_for_selector("article table")
    page = visit(f"{MODEL}/infer", "#prompt")
    page.fill("#prompt", 'A "quote", a 100 % & a 🦆')
    page.keyboard.press("Enter")
    page.wait_for_selector(".chart[data-drawn]")
    page.reload()
    page.wait_for_selector(".chart[data-drawn]")
    assert page.input_value("#prompt") == 'A "quote", a 100 % & a 🦆'


def test_a_server_that_runs_no_model_shows_what_is_stored(visit: Visit, probed_vindex: Make) -> None:
    with running([probed_vindex("llama")], ServeOptions(infer=False)) as server:
        assert "does not run the model" in visit(MODEL, url=server.url).inner_text("main")
        assert visit(f"{MODEL}/entity/France", "main table", server.url).locator("#asking").count() == 0
        assert visit(f"{MODEL}/infer{PROMPT}", url=server.url).locator("form.panel").count() == 0


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/m/other", "is served here"),
        (f"{WORLD}/feature/5/4000", "0 to 39"),
        (f"{WORLD}/feature/x/y", "layer and number"),
        ("/m/world/nowhere", "no such page"),
    ],
)
def test_a_wrong_address_is_told_so(visit: Visit, address: str, said: str) -> None:
    assert said in visit(address, ".failure").inner_text(".failure")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(visit: Visit, editor: Running) -> None:
    page = visit("/", "#key", url=editor.url)
    page.fill("#key", READER)
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-page=model]")
    assert page.evaluate("Object.values(localStorage).join()").find(READER) < 0
    assert READER not in page.url


def test_the_theme_can_be_chosen(visit: Visit) -> None:
    page = visit(WORLD, color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name=re.compile("Theme")).click()
    page.get_by_role("button", name="Theme: light").click()
    assert page.get_by_role("button", name="Theme: dark").is_visible() and page.evaluate(colour) != light
    page.reload()
    page.wait_for_selector("main[data-page]")
    assert page.evaluate(colour) != light


def _encoded(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
