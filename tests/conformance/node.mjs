// Runs the JavaScript clients through the cases of cases.py. The targets come as JSON on standard input; one JSON line
// for each client and case goes to standard output.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages lie in the environment's folder, not beside this file.
const require = createRequire(`${process.argv[2]}/package.json`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const version = (name) => JSON.parse(readFileSync(`${process.argv[2]}/node_modules/${name}/package.json`)).version;

const cohereAi = await load("cohere-ai");
const { rerank } = await load("ai");
const { createCohere } = await load("@ai-sdk/cohere");
const input = JSON.parse(readFileSync(0, "utf8"));
const shared = input.cases;
const RIGHT = shared.right;

const clients = [
  {
    name: "cohere-ai (npm) CohereClientV2",
    version: version("cohere-ai"),
    without: { "documents returned": "its method has no such parameter", objects: "its types have texts only" },
    async rank([environment, token, model], query, documents, topN) {
      const client = new (cohereAi.CohereClientV2 ?? cohereAi.default.CohereClientV2)({ token, environment });
      const answer = await client.rerank({ model, query, documents, topN }, { maxRetries: 0 });
      return answer.results.map(({ index, relevanceScore }) => ({ index, score: relevanceScore }));
    },
  },
  {
    name: "AI SDK (npm) rerank",
    version: version("ai"),
    without: {},
    async rank([url, apiKey, model], query, documents, topN) {
      const provider = createCohere({ apiKey, baseURL: `${url}/v2` });
      const answer = await rerank({ model: provider.reranking(model), query, documents, topN, maxRetries: 0 });
      return answer.ranking.map(({ originalIndex, score, document }) => ({
        index: originalIndex,
        score,
        text: document.text ?? document,
      }));
    },
  },
];

function ranked(results, count) {
  assert.deepEqual(results.map(({ index }) => index).sort((a, b) => a - b), [...Array(count).keys()]);
  const scores = results.map(({ score }) => score);
  assert.ok(scores.every(Number.isFinite));
  assert.deepEqual(scores, scores.toSorted((a, b) => b - a));
}

async function refused(client, target, message) {
  let results;
  try {
    results = await client.rank(target, shared.query, shared.documents);
  } catch (error) {
    assert.notEqual(error.constructor, Error, `not an error of its own: ${error}`);
    assert.ok(`${error.message} ${error.responseBody ?? ""}`.includes(message), `unreadable: ${error}`);
    return;
  }
  throw Object.assign(new Error(`answered: ${JSON.stringify(results)}`), { notRefused: true });
}

const cases = {
  async "right document first"(client, target) {
    const results = await client.rank(target, shared.query, shared.documents);
    assert.equal(results[0].index, RIGHT);
    ranked(results, shared.documents.length);
  },
  async top_n(client, target) {
    const results = await client.rank(target, shared.query, shared.documents, 1);
    assert.deepEqual(results.map(({ index }) => index), [RIGHT]);
    ranked(await client.rank(target, shared.query, shared.documents, 50), shared.documents.length);
  },
  async "documents returned"(client, target) {
    const results = await client.rank(target, shared.query, shared.documents);
    for (const { index, text } of results) assert.equal(text, shared.documents[index]);
  },
  async unicode(client, target) {
    ranked(await client.rank(target, "東京 🎻", shared.strange), shared.strange.length);
  },
  async objects(client, target) {
    const documents = shared.documents.map((text, index) => ({ text, id: `doc-${index}` }));
    const results = await client.rank(target, shared.query, documents);
    assert.equal(results[0].index, RIGHT);
  },
  async "blank document"(client, target) {
    const results = await client.rank(target, shared.query, [shared.documents[0], " ", shared.documents[RIGHT]]);
    assert.deepEqual(results.map(({ index }) => index), [2, 0, 1]);
  },
  async "wrong key"(client, [url, , model]) {
    await refused(client, [url, "wrong-key", model], "API key is not valid");
  },
  async "no documents"(client, target) {
    try {
      assert.deepEqual(await client.rank(target, shared.query, []), []);
    } catch (error) {
      assert.match(`${error.message} ${error.responseBody ?? ""}`, /no documents/);
    }
  },
  async "unknown model"(client, [url, key]) {
    await refused(client, [url, key, "no-such-model"], "no-such-model'; known: ");
  },
  async overload(client, target) {
    await refused(client, target, "tokens wait already");
  },
};

async function outcome(client, name, target) {
  if (name in client.without) return ["n/a", client.without[name]];
  for (let attempt = 0; ; attempt++) {
    try {
      await cases[name](client, target);
      return ["ok", ""];
    } catch (error) {
      if (!(error.notRefused && name === "overload" && attempt < 50)) return ["failed", `${error.stack}`.slice(0, 1500)];
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

for (const client of clients) {
  for (const name of Object.keys(cases)) {
    if (!input.wanted.includes(name)) continue;
    const started = performance.now();
    const [result, detail] = await outcome(client, name, input.target);
    const seconds = Math.round(performance.now() - started) / 1000;
    const line = { client: client.name, version: client.version, case: name, outcome: result, detail, seconds };
    console.log(JSON.stringify(line));
  }
}
