// Sends what the form says to /v2/rerank and shows the answer. What is computed comes first and knows no page; what
// touches the page comes after it. Text reaches the page as text alone, never as markup.

const SHOWN_RESULTS = 300;
const SHOWN_CHARACTERS = 600;
const PARTS = ["cache", "tokenize", "queue", "inference"];
const KEY_VARIABLE = "RERANK_API_KEY";

const SNIPPETS = {
  curl: curlSnippet,
  "Python (cohere)": cohereSnippet,
  "Python (requests)": requestsSnippet,
  JavaScript: fetchSnippet,
};

function documentsIn(text, separator) {
  const parts = text.split(separator === "blank" ? /\r?\n[^\S\n]*\r?\n/ : /\r?\n/);
  return parts.map((part) => part.trim()).filter(Boolean);
}

// "cache;dur=0.10, total;dur=12.3" -> {cache: 0.1, total: 12.3}
function millisecondsOf(serverTiming) {
  const entries = (serverTiming ?? "").split(",").map((entry) => entry.trim().match(/^(\w+);dur=([\d.]+)$/));
  return Object.fromEntries(entries.filter(Boolean).map(([, name, duration]) => [name, Number(duration)]));
}

// Relevance mostly lies within 0 and 1; where a model's does not, bars span what there is.
function barWidths(scores) {
  const least = Math.min(0, ...scores);
  const most = Math.max(1, ...scores);
  return scores.map((score) => (100 * (score - least)) / (most - least));
}

function indented(json, spaces) {
  return json.replaceAll("\n", "\n" + " ".repeat(spaces));
}

// Strings, and lists and objects of them, are written alike in JSON, Python and JavaScript.
function literal(value, spaces = 0) {
  return indented(JSON.stringify(value, null, 2), spaces);
}

function curlSnippet(url, body, keyed) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = keyed ? ` \\\n  -H "Authorization: Bearer $${KEY_VARIABLE}"` : "";
  return `curl -s '${url}v2/rerank' \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
}

function cohereSnippet(url, body, keyed) {
  const key = keyed ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return `${keyed ? "import os\n\n" : ""}import cohere

documents = ${literal(body.documents)}
client = cohere.ClientV2(api_key=${key}, base_url="${url.slice(0, -1)}")
answer = client.rerank(
    model=${literal(body.model ?? "")},
    query=${literal(body.query)},
    documents=documents,
)
for result in answer.results:
    print(f"{result.relevance_score:.3f}", documents[result.index])`;
}

function requestsSnippet(url, body, keyed) {
  const key = keyed ? `\n    headers={"Authorization": f"Bearer {os.environ['${KEY_VARIABLE}']}"},` : "";
  return `${keyed ? "import os\n\n" : ""}import requests

request = ${literal(body)}
answer = requests.post(
    "${url}v2/rerank",
    json=request,${key}
    timeout=60,
)
answer.raise_for_status()
for result in answer.json()["results"]:
    print(f"{result['relevance_score']:.3f}", request["documents"][result["index"]])`;
}

function fetchSnippet(url, body, keyed) {
  const key = keyed ? `\n    "Authorization": \`Bearer \${process.env.${KEY_VARIABLE}}\`,` : "";
  return `const request = ${literal(body)};
const answer = await fetch("${url}v2/rerank", {
  method: "POST",
  headers: {
    "Content-Type": "application/json",${key}
  },
  body: JSON.stringify(request),
});
if (!answer.ok) throw new Error((await answer.json()).message);
for (const { index, relevance_score } of (await answer.json()).results) {
  console.log(relevance_score.toFixed(3), request.documents[index]);
}`;
}

// A header holds bytes: other letters of a key go as UTF-8, which fetch does not see to.
function headerBytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function movement(from, to) {
  if (from === to) return { symbol: "=", kind: "same", said: `still at ${to}` };
  const [symbol, kind] = from > to ? ["▲", "up"] : ["▼", "down"];
  return { symbol, kind, said: `${kind} by ${Math.abs(from - to)}, was ${from}` };
}

async function problemOf(answer) {
  const identity = answer.headers.get("X-Request-ID");
  const wait = answer.headers.get("Retry-After");
  const said = await answer.json().then((body) => body.message).catch(() => answer.statusText);
  return [
    `${answer.status}: ${said}`,
    wait && `Try again in ${wait} s.`,
    identity && `Request ${identity}`,
  ].filter(Boolean).join("\n");
}

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const base = new URL(".", location.href).href;
let keyed = false;
let language = "curl";

function element(name, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function wanted() {
  const separator = page.request.elements.separator.value;
  const documents = documentsIn(page.documents.value, separator);
  const model = page.model.value;
  return { ...(model && { model }), query: page.query.value.trim(), documents };
}

function headers() {
  const key = page.key.value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${headerBytes(key)}` }) };
}

function showRequest() {
  const body = wanted();
  const count = body.documents.length;
  page.count.textContent = count === 1 ? "1 document" : `${count} documents`;
  page.snippet.firstElementChild.textContent = SNIPPETS[language](base, body, keyed);
  page.copied.textContent = "";
}

function showError(message) {
  page.status.textContent = "";
  page.error.textContent = message;
  page.error.hidden = false;
  page.results.hidden = page.timing.hidden = true;
}

function resultItem(result, place, documents, width) {
  const { symbol, kind, said } = movement(result.index + 1, place);
  const text = documents[result.index];
  const shown = text.length > SHOWN_CHARACTERS ? text.slice(0, SHOWN_CHARACTERS) + "…" : text;
  const bar = element("div", { class: "bar" });
  bar.style.width = `${width}%`;
  return element("li", {},
    element("span", { class: "place", text: place }),
    element("span", { class: `move ${kind}` },
      element("span", { "aria-hidden": "true", text: kind === "same" ? "=" : `${symbol} from ${result.index + 1}` }),
      element("span", { class: "unseen", text: `${said}:` })),
    element("span", { class: "text", text: shown }),
    element("span", { class: "score" },
      element("span", { class: "unseen", text: "relevance " }),
      element("span", { text: result.relevance_score.toFixed(3) })),
    element("div", { class: "track", "aria-hidden": "true" }, bar));
}

function showResults({ results, meta }, documents, roundTrip) {
  const widths = barWidths(results.map((result) => result.relevance_score));
  const items = results.slice(0, SHOWN_RESULTS).map((result, rank) => {
    return resultItem(result, rank + 1, documents, widths[rank]);
  });
  page.results.replaceChildren(...items);
  page.results.hidden = false;
  page.error.hidden = true;
  const more = results.length > SHOWN_RESULTS ? ` The first ${SHOWN_RESULTS} are shown.` : "";
  const warnings = (meta.warnings ?? []).map((warning) => ` ${warning}.`).join("");
  const count = results.length === 1 ? "1 document" : `${results.length} documents`;
  page.status.textContent =
    `${count} ranked in ${roundTrip.toFixed(0)} ms; the model read ${meta.tokens.input_tokens} tokens.${more}${warnings}`;
}

function showTiming(serverTiming, roundTrip) {
  const milliseconds = millisecondsOf(serverTiming);
  const total = milliseconds.total ?? 0;
  const known = PARTS.reduce((sum, part) => sum + (milliseconds[part] ?? 0), 0);
  const rows = [...PARTS.map((part) => [part, milliseconds[part] ?? 0]), ["other", Math.max(0, total - known)]];
  const segments = rows.map(([part, duration]) => {
    const segment = element("div", { class: part });
    segment.style.width = `${total ? (100 * duration) / Math.max(total, known) : 0}%`;
    return segment;
  });
  page["timing-bar"].replaceChildren(...segments);
  const listed = rows.map(([part, duration]) => timingRow(part, duration, element("span", { class: `swatch ${part}` })));
  listed.push(timingRow("in the server", total), timingRow("with the network", roundTrip));
  page["timing-parts"].replaceChildren(...listed);
  page.timing.hidden = false;
}

function timingRow(name, milliseconds, ...before) {
  const value = element("dd", { text: `${milliseconds.toFixed(1)} ms` });
  return element("div", {}, ...before, element("dt", { text: name }), value);
}

async function rerank() {
  const body = wanted();
  const started = performance.now();
  const answer = await fetch(`${base}v2/rerank`, { method: "POST", headers: headers(), body: JSON.stringify(body) });
  const roundTrip = performance.now() - started;
  if (!answer.ok) {
    showError(await problemOf(answer));
    if (answer.status === 401) page.key.focus();
    return;
  }
  showResults(await answer.json(), body.documents, roundTrip);
  showTiming(answer.headers.get("Server-Timing"), roundTrip);
}

async function submit(event) {
  event.preventDefault();
  if (page.submit.getAttribute("aria-busy") === "true" || !page.request.reportValidity()) return;
  page.submit.setAttribute("aria-busy", "true");
  page.status.textContent = "Ranking…";
  page.error.hidden = true;
  try {
    // A key that was typed after the page was opened brings the names of the models.
    if (!page.model.options.length) await listModels();
    await rerank();
  } catch (error) {
    showError(`The server cannot be reached (${error.message}).`);
  } finally {
    page.submit.removeAttribute("aria-busy");
  }
}

async function listModels() {
  const answer = await fetch(`${base}v1/models`, { headers: headers() });
  if (!answer.ok) return;
  const chosen = page.model.value;
  const models = (await answer.json()).data;
  page.model.replaceChildren(...models.map(({ id, status }) => {
    return element("option", { value: id, text: status === "ready" ? id : `${id} (${status})` });
  }));
  if (models.some(({ id }) => id === chosen)) page.model.value = chosen;
  showRequest();
}

async function askWhatIsServed() {
  keyed = (await (await fetch(`${base}v1/cluster/auth`)).json()).auth;
  page["key-row"].hidden = page["snippet-note"].hidden = !keyed;
  if (!keyed) await listModels();
  showRequest();
}

function choose(name, { focus = false } = {}) {
  language = name;
  for (const tab of page.languages.children) {
    const selected = tab.textContent === name;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    if (selected) page.snippet.setAttribute("aria-labelledby", tab.id);
    if (selected && focus) tab.focus();
  }
  showRequest();
}

function moveAmongTabs(event) {
  const names = Object.keys(SNIPPETS);
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -names.indexOf(language), End: -1 - names.indexOf(language) };
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose(names.at((names.indexOf(language) + steps[event.key]) % names.length), { focus: true });
}

async function copy() {
  const text = page.snippet.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain HTTP from another machine browsers give no clipboard; the text is selected then, for the keyboard.
    getSelection().selectAllChildren(page.snippet);
    page.copied.textContent = "Selected: copy it with the keyboard.";
    return;
  }
  page.copied.textContent = "Copied.";
}

function makeTabs() {
  const tabs = Object.keys(SNIPPETS).map((name, number) => {
    const tab = element("button", { type: "button", role: "tab", id: `language-${number}`, "aria-controls": "snippet", text: name });
    tab.addEventListener("click", () => choose(name));
    return tab;
  });
  page.languages.replaceChildren(...tabs);
  page.languages.addEventListener("keydown", moveAmongTabs);
}

makeTabs();
choose(language);
page.request.addEventListener("input", showRequest);
page.request.addEventListener("submit", submit);
page.key.addEventListener("change", () => listModels().catch(() => {}));
page.request.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.ctrlKey) submit(event);
});
page.copy.addEventListener("click", copy);
askWhatIsServed().catch((error) => showError(`The server cannot be reached (${error.message}).`));
