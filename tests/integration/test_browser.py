"""The playground in a real Chromium, against a real server with the shipped model."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from rerankd.config.settings import SHIPPED_REGISTRY
from tests.requirements import require_program
from tests.servers import Server, rerankd_server, wait_until_ready

pytestmark = pytest.mark.slow

_KEY = "key-of-the-test's-own"
_QUERY = "Who wrote the play 'Hamlet'?"
_HAMLET = 'Shakespeare\'s "Hamlet" is a tragedy that he wrote around 1600; $HOME \\n `x` <b>ü 🙂</b>.'
_DOCUMENTS = ["Copenhagen is the capital of Denmark.", "A hamlet is a small village.", _HAMLET]
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1000",
)
# WCAG 2's contrast of every text that is shown with what lies behind it; all our backgrounds are opaque colours.
_POOR_CONTRASTS = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = (color) => channels(color).slice(0, 3)
  .map((value) => value / 255)
  .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const background = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const color = getComputedStyle(one).backgroundColor;
    if (channels(color)[3] !== 0) return color;
  }
  throw new Error("no background");
};
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!(own || element.matches("input, textarea")) || !element.checkVisibility()) continue;
  const [darker, lighter] = [getComputedStyle(element).color, background(element)].map(luminance).sort((a, b) => a - b);
  const contrast = (lighter + 0.05) / (darker + 0.05);
  if (contrast < 4.5) found.push(`${element.outerHTML.slice(0, 80)} ${contrast.toFixed(2)}`);
}
return found;
"""


class Page:
    """The playground in a browser, as somebody who looks at it sees it."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def __getitem__(self, identity: str) -> WebElement:
        return self.browser.find_element("id", identity)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements("css selector", selector)

    def fill(self, query: str, documents: str) -> None:
        for identity, text in (("query", query), ("documents", documents)):
            self[identity].clear()
            # typed by script, because chromedriver's keys end at the basic multilingual plane
            self.browser.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
                self[identity],
                text,
            )

    def until(self, true: Callable[[], object]) -> None:
        WebDriverWait(self.browser, 20).until(lambda _: true())

    def rerank(self) -> list[str]:
        """Press the button; the documents' texts in their new order."""
        self["submit"].click()
        self.until(lambda: "ranked" in self["status"].text)
        return [text.text for text in self.all("#results .text")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = require_program("chromium")
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # a browser keeps some files of its own beside its profile, in the user's folders
    own = tmp_path_factory.mktemp("home")
    homes = {"HOME": str(own), "XDG_CONFIG_HOME": str(own / "config"), "XDG_CACHE_HOME": str(own / "cache")}
    browser = Chrome(options=options, service=Service(require_program("chromedriver"), env=os.environ | homes))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rerankd_server(tmp_path_factory.mktemp("open"), SHIPPED_REGISTRY) as server:
        wait_until_ready(server)
        yield server


@pytest.fixture
def page(browser: Chrome, server: Server) -> Page:
    browser.get(server.url)
    page = Page(browser)
    page.until(lambda: page.all("#model option"))
    return page


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rerankd_server(tmp_path_factory.mktemp("keyed"), SHIPPED_REGISTRY, RERANKD_API_KEYS=_KEY) as server:
        wait_until_ready(server)
        yield server


@pytest.fixture
def keyed_page(browser: Chrome, keyed_server: Server) -> Page:
    browser.get(keyed_server.url)
    page = Page(browser)
    page.until(page["key"].is_displayed)
    return page


def test_the_right_document_comes_first_with_its_move_its_score_and_the_time_it_took(page: Page) -> None:
    page.fill(_QUERY, "\n".join(_DOCUMENTS))
    assert page["count"].text == "3 documents"
    assert page.rerank()[0] == _HAMLET, "as text, not as markup"
    first = page.all("#results li")[0]
    assert first.find_element("css selector", ".move").text.startswith("▲ from 3")
    scores = [float(score.text.split()[-1]) for score in page.all("#results .score")]
    assert scores == sorted(scores, reverse=True)
    widths = [bar.rect["width"] for bar in page.all("#results .bar")]
    page.until(lambda: [bar.rect["width"] for bar in page.all("#results .bar")] == sorted(widths, reverse=True))
    parts = [row.text.split("\n")[0] for row in page.all("#timing-parts dt")]
    assert parts == ["cache", "tokenize", "queue", "inference", "other", "in the server", "with the network"]
    total = float(page.all("#timing-parts dd")[5].text.removesuffix(" ms"))
    assert total > 0
    assert not page["error"].is_displayed()


def test_nothing_is_refused_by_the_pages_own_policy(page: Page) -> None:
    page.rerank()
    assert page.browser.get_log("browser") == []


def test_documents_of_several_lines_are_separated_by_blank_ones(page: Page) -> None:
    page.fill("Who wrote Hamlet?", "A village\nof ten houses\n \nShakespeare wrote\nHamlet\n\n\n")
    assert page["count"].text == "4 documents"
    page.all("input[value=blank]")[0].click()
    assert page["count"].text == "2 documents"
    assert page.rerank() == ["Shakespeare wrote Hamlet", "A village of ten houses"], "white space is collapsed"


def _snippet(page: Page, language: str) -> str:
    (tab,) = (tab for tab in page.all("[role=tab]") if tab.text == language)
    tab.click()
    text: str = page.browser.execute_script("return arguments[0].textContent", page["snippet"])
    return text


def _run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=folder, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("keyed", [False, True])
def test_snippets_do_what_the_page_did(request: pytest.FixtureRequest, tmp_path: Path, keyed: bool) -> None:
    page: Page = request.getfixturevalue("keyed_page" if keyed else "page")
    if keyed:
        page["key"].send_keys(_KEY, Keys.TAB)
        page.until(lambda: page.all("#model option"))
    page.fill(_QUERY, "\n".join(_DOCUMENTS))
    shell, python, node = _snippet(page, "curl"), _snippet(page, "Python (requests)"), _snippet(page, "JavaScript")
    assert _KEY not in shell + python + node
    environment = {"RERANK_API_KEY": _KEY} if keyed else {}
    answer = json.loads(_run(["bash", "-c", shell], tmp_path, **environment))
    assert answer["results"][0]["index"] == 2
    (tmp_path / "snippet.py").write_text(python, encoding="utf-8")
    printed = _run([sys.executable, "snippet.py"], tmp_path, PYTHONUTF8="1", **environment)
    score, text = printed.split("\n")[0].split(" ", 1)
    assert text == _HAMLET
    assert float(score) == pytest.approx(answer["results"][0]["relevance_score"], abs=0.001)
    assert _printed_in_the_browser(page, node, environment) == printed


def _printed_in_the_browser(page: Page, script: str, environment: dict[str, str]) -> str:
    """What a script of Node.js's prints; the browser has all that ours use of it but the environment."""
    lines: list[str] = page.browser.execute_async_script(
        f"""
        const [environment, done] = arguments;
        const process = {{ env: environment }};
        const lines = [];
        const console = {{ log: (...words) => lines.push(words.join(" ")) }};
        (async () => {{ {script} }})().then(() => done(lines), (error) => done([String(error)]));
        """,
        environment,
    )
    return "".join(f"{line}\n" for line in lines)


def test_the_snippet_of_coheres_client_is_python(page: Page) -> None:
    page.fill(_QUERY, "\n".join(_DOCUMENTS))
    snippet = _snippet(page, "Python (cohere)")
    compile(snippet, "snippet", "exec")
    assert f'base_url="{page.browser.current_url.rstrip("/")}"' in snippet


def test_a_snippet_is_copied_or_at_least_selected(page: Page) -> None:
    grant: dict[str, Any] = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", grant)
    snippet = _snippet(page, "curl")
    page["copy"].click()
    page.until(lambda: page["copied"].text == "Copied.")
    assert page.browser.execute_script("return navigator.clipboard.readText()") == snippet
    page.browser.execute_script("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))")
    page["copy"].click()
    page.until(lambda: "keyboard" in page["copied"].text)
    assert page.browser.execute_script("return getSelection().toString()") == snippet


@pytest.mark.parametrize(
    ("key", "message"), [("", "no API key"), ("wrong", "this API key is not valid"), ("ключ", "not valid")]
)
def test_a_missing_or_wrong_key_is_said_and_asked_for_again(keyed_page: Page, key: str, message: str) -> None:
    keyed_page["key"].send_keys(key)
    keyed_page["submit"].click()
    keyed_page.until(lambda: message in keyed_page["error"].text)
    assert keyed_page["error"].text.startswith("401: ")
    assert keyed_page.browser.switch_to.active_element.get_attribute("id") == "key"
    assert not keyed_page["results"].is_displayed()


def test_the_right_key_is_taken_and_kept_nowhere(keyed_page: Page, keyed_server: Server) -> None:
    keyed_page["key"].send_keys("wrong")
    keyed_page["submit"].click()
    keyed_page.until(keyed_page["error"].is_displayed)
    keyed_page["key"].clear()
    keyed_page["key"].send_keys(_KEY)
    assert keyed_page.rerank()
    assert [option.text for option in keyed_page.all("#model option")] == ["minilm-qa"]
    kept = keyed_page.browser.execute_script(
        "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    )
    assert kept == '[{},{},""]'
    assert _KEY not in keyed_server.log.read_text()


def test_what_the_server_refuses_is_readable(page: Page) -> None:
    page.fill("x" * 40_000, "a")
    page["submit"].click()
    page.until(page["error"].is_displayed)
    assert page["error"].text.startswith("413: ")
    assert "\nRequest " in page["error"].text


def test_a_server_that_went_away_is_said(browser: Chrome, tmp_path: Path) -> None:
    with rerankd_server(tmp_path, SHIPPED_REGISTRY) as server:
        browser.get(server.url)
        page = Page(browser)
        page.until(lambda: page.all("#model option"))
    page["submit"].click()
    page.until(lambda: "cannot be reached" in page["error"].text)
    browser.get_log("browser")


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    def press(*keys: str) -> str:
        """What has the focus afterwards."""
        for key in keys:
            page.browser.switch_to.active_element.send_keys(key)
        focused = page.browser.switch_to.active_element
        return focused.get_attribute("id") or focused.text

    page.browser.execute_script("document.querySelector('.skip').focus()")
    visited = [press(Keys.TAB) for _ in range(10)]
    separator = page.all("input[name=separator]")[0].get_attribute("id") or ""
    assert visited == [
        *("API", "Metrics", "query", "documents", separator, "model", "submit", "language-0", "copy", "snippet")
    ]
    page["query"].send_keys(Keys.CONTROL + "a")
    page["query"].send_keys("Who wrote Hamlet?")
    page["query"].send_keys(Keys.CONTROL + Keys.ENTER)
    page.until(lambda: "ranked" in page["status"].text)
    page["language-0"].send_keys(Keys.ARROW_LEFT)
    assert page.browser.switch_to.active_element.text == "JavaScript"
    assert press(Keys.ARROW_RIGHT) == "language-0"
    assert press(Keys.END, Keys.HOME) == "language-0"


def test_every_control_has_a_name_and_every_region_a_role(keyed_page: Page) -> None:
    page = keyed_page
    page["key"].send_keys(_KEY)
    page.rerank()
    controls = page.all("a, button, input, select, textarea, [role=tab], [role=tabpanel], [tabindex]")
    for control in controls:
        assert control.accessible_name, control.get_attribute("outerHTML")
    assert page["key"].get_attribute("type") == "password"
    assert (page["status"].aria_role, page["error"].get_attribute("role")) == ("status", "alert")
    described = [identity for one in page.all("[aria-describedby]") for identity in _identities(one)]
    assert all(page[identity] for identity in described)
    assert [heading.tag_name for heading in page.all("h1, h2, h3")] == ["h1", "h2", "h3", "h2"]
    spoken = page.browser.execute_script("return document.querySelector('#results li').textContent")
    assert "up by 3, was 4" in spoken


def _identities(element: WebElement) -> list[str]:
    return (element.get_attribute("aria-describedby") or "").split()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("failing", [False, True])
def test_text_stands_out_from_what_is_behind_it(page: Page, scheme: str, failing: bool) -> None:
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    page.rerank()
    if failing:
        page.fill("x" * 40_000, "a")
        page["submit"].click()
        page.until(page["error"].is_displayed)
    assert page.browser.execute_script(_POOR_CONTRASTS) == []
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_sticks_out_of_a_narrow_screen(page: Page, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.fill("q", "short\n" + "averylongword" * 60)
    page.rerank()
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_documentation_of_the_api_is_shown_without_a_network(browser: Chrome, server: Server) -> None:
    browser.get_log("browser")
    browser.get(f"{server.url}/docs")
    page = Page(browser)
    page.until(lambda: page.all(".opblock"))
    assert "/v2/rerank" in [element.text for element in page.all(".opblock-summary-path")]
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {url.removeprefix(server.url) for url in loaded if not url.startswith("data:")} == {
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/docs/start.js",
        "/openapi.json",
    }
    assert browser.get_log("browser") == []


class _StrippingProxy(BaseHTTPRequestHandler):
    """Takes /search/rerank off the paths, and knows no others."""

    backend = ""

    def do_GET(self) -> None:
        if not self.path.startswith("/search/rerank/"):
            self.send_error(404)
            return
        length = int(self.headers.get("Content-Length", 0))
        headers = {"Content-Type": self.headers.get("Content-Type", "")}
        url = self.backend + self.path.removeprefix("/search/rerank")
        answer = httpx.request(self.command, url, content=self.rfile.read(length), headers=headers, timeout=30)
        self.send_response(answer.status_code)
        for name in ("content-type", "content-security-policy"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def prefixed_url(server: Server) -> Iterator[str]:
    handler = type("Handler", (_StrippingProxy,), {"backend": server.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}/search/rerank"
        proxy.shutdown()


def test_both_pages_work_behind_a_proxy_that_takes_a_prefix_off(browser: Chrome, prefixed_url: str) -> None:
    browser.get(f"{prefixed_url}/")
    page = Page(browser)
    page.until(lambda: page.all("#model option"))
    page.fill(_QUERY, "\n".join(_DOCUMENTS[:2]))
    assert len(page.rerank()) == 2

    browser.get(f"{prefixed_url}/docs")
    page.until(lambda: any("/v2/rerank" in one.text for one in page.all(".opblock-post")))
    operation = next(one for one in page.all(".opblock-post") if "/v2/rerank" in one.text)
    operation.find_element("css selector", "button").click()
    page.until(lambda: operation.find_elements("css selector", ".try-out__btn"))
    operation.find_element("css selector", ".try-out__btn").click()
    page.until(lambda: operation.find_elements("css selector", ".execute"))
    browser.execute_script("arguments[0].click()", operation.find_element("css selector", ".execute"))
    page.until(lambda: operation.find_elements("css selector", ".live-responses-table"))
    assert "relevance_score" in operation.find_element("css selector", ".live-responses-table").text
    assert f"{prefixed_url}/v2/rerank" in operation.find_element("css selector", ".request-url").text
