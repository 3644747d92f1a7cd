import { assert, assertEquals, assertRejects } from "@std/assert";
import { CheckpointError } from "../src/errors.ts";
import { Tokenizer } from "../src/text/tokenizer.ts";

const NANO = new URL("../models/nano/", import.meta.url);
const nanoText = await Deno.readTextFile(new URL("tokenizer.json", NANO));

type Json = Record<string, unknown>;

/** Opens a folder with these files; an object is written as JSON. */
async function open(
  files: Record<string, unknown>,
  vocabSize = 4096,
): Promise<Tokenizer | undefined> {
  const folder = await Deno.makeTempDir();
  try {
    for (const [name, value] of Object.entries(files)) {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      await Deno.writeTextFile(`${folder}/${name}`, text);
    }
    return await Tokenizer.open(folder, { vocabSize });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Nano's tokenizer.json, changed. */
function nano(change: (json: Json & { model: Json }) => void): Json {
  const json = JSON.parse(nanoText);
  change(json);
  return json;
}

async function refuses(
  files: Record<string, unknown>,
  text: string,
  size?: number,
) {
  await assertRejects(() => open(files, size), CheckpointError, text);
}

/** Refuses nano's tokenizer.json with this change. */
function refusesNano(
  change: (json: Json & { model: Json }) => void,
  text: string,
) {
  return refuses({ "tokenizer.json": nano(change) }, text);
}

Deno.test("Tokenizer.open() gives undefined without tokenizer.json", async () => {
  assertEquals(await open({}), undefined);
  assertEquals(await open({ "tokenizer_config.json": {} }), undefined);
});

Deno.test("Tokenizer.open() takes a path, and a URL with or without a slash", async () => {
  const path = decodeURIComponent(NANO.pathname);
  const bare = new URL(NANO.href.replace(/\/$/, ""));
  for (const folder of [NANO, bare, path, path.replace(/\/$/, "")]) {
    const tokenizer = await Tokenizer.open(folder, { vocabSize: 4096 });
    assertEquals(tokenizer!.encode("Hello, world!"), [
      0,
      41,
      1920,
      13,
      1040,
      2,
    ]);
  }
});

Deno.test("Tokenizer.open() refuses a damaged tokenizer.json", async () => {
  const cut = nanoText.slice(0, nanoText.length / 2);
  await refuses({ "tokenizer.json": cut }, "tokenizer.json is not valid JSON");
  await refuses({ "tokenizer.json": "[]" }, "tokenizer.json holds an array");
  await refuses({ "tokenizer.json": "" }, "tokenizer.json is not valid JSON");
  await refuses({ "tokenizer.json": {} }, "model is undefined");
  await refusesNano(
    (json) => json.model.type = "Unigram",
    'model.type is "Unigram"',
  );
  await refusesNano((json) => json.model.vocab = [], "model.vocab is an array");
  await refusesNano(
    (json) => json.model.merges = ["no such merge"],
    "the tokenizers library refuses it",
  );
  await refusesNano(
    (json) => json.pre_tokenizer = { type: "Nonsense" },
    "the tokenizers library refuses it",
  );
  await refusesNano(
    (json) => json.decoder = { type: "Metaspace" },
    "decoder.type",
  );
  await refusesNano(
    (json) => json.normalizer = { type: "Lowercase" },
    'normalizer is "Lowercase"',
  );
});

Deno.test("Tokenizer.open() refuses damaged added tokens", async () => {
  const added = (tokens: unknown, text: string) =>
    refusesNano((json) => json.added_tokens = tokens, text);
  await added({}, "added_tokens is an object");
  await added([3], "added_tokens[0] is 3");
  await added([{ id: 0 }], "added_tokens[0].content is undefined");
  await added([{ id: 0, content: "" }], "added_tokens[0].content");
  await added(
    [{ id: 0, content: "<｜begin▁of▁sentence｜>", special: "yes" }],
    "added_tokens[0].special",
  );
  await added([{ id: 5, content: "<x>" }], "gives id 5");
});

Deno.test("Tokenizer.open() refuses ids outside the model's vocabulary", async () => {
  await refuses(
    { "tokenizer.json": nanoText },
    "below the vocab_size 4095",
    4095,
  );
  const added = nano((json) => {
    json.added_tokens = [{ id: 4096, content: "<x>" }];
  });
  await refuses(
    { "tokenizer.json": added },
    "added_tokens[0].id is 4096, and must be below the vocab_size 4096",
  );
  assert(await open({ "tokenizer.json": added }, 4097));
  await refusesNano(
    (json) => (json.model.vocab as Json)["new"] = -1,
    'model.vocab["new"] is -1',
  );
  await refusesNano(
    (json) => (json.model.vocab as Json)["new"] = 7,
    "gives id 7",
  );
});

Deno.test("Tokenizer.open() refuses a damaged tokenizer_config.json", async () => {
  const config = (value: unknown, text: string) =>
    refuses(
      { "tokenizer.json": nanoText, "tokenizer_config.json": value },
      text,
    );
  await config("{", "tokenizer_config.json is not valid JSON");
  await config({ add_bos_token: "yes" }, 'add_bos_token is "yes"');
  await config({ add_bos_token: true }, "add_bos_token is true");
  await config({ bos_token: "<bos>" }, 'bos_token is "<bos>"');
  await config({ chat_template: 3 }, "chat_template is 3");
});

Deno.test("Tokenizer.open() reads the BOS rule", async () => {
  const bos = { bos_token: { content: "<｜begin▁of▁sentence｜>" } };
  const begins = async (json: unknown, config: unknown) => {
    const files = { "tokenizer.json": json, "tokenizer_config.json": config };
    return (await open(files))!.encode("a").slice(0, -1);
  };
  const bare = nano((json) => json.post_processor = null);
  const nested = nano((json) => {
    json.post_processor = {
      type: "Sequence",
      processors: [json.post_processor],
    };
  });
  assertEquals(await begins(nanoText, {}), [0]);
  assertEquals(await begins(nested, {}), [0]);
  assertEquals(await begins(nanoText, { add_bos_token: null }), [0]);
  assertEquals(await begins(nanoText, { ...bos, add_bos_token: false }), []);
  assertEquals(await begins(nanoText, { ...bos, add_bos_token: true }), [0]);
  assertEquals(await begins(bare, bos), []);
  assertEquals(await begins(bare, { ...bos, add_bos_token: true }), [0]);
});

Deno.test("Tokenizer.open() takes the model's own EOS ids first", async () => {
  const options = { vocabSize: 4096, eosTokenIds: [1, 7] };
  const tokenizer = (await Tokenizer.open(NANO, options))!;
  assertEquals(tokenizer.eosTokenIds, [1, 7]);
  assertEquals(tokenizer.decode([7, 41], { skipSpecialTokens: true }), "H");
});

Deno.test("added tokens mind lstrip, rstrip and single_word", async () => {
  const added = nano((json) => {
    json.added_tokens = [
      { id: 4096, content: "<l>", lstrip: true },
      { id: 4097, content: "<r>", rstrip: true },
      { id: 4098, content: "word", single_word: true },
    ];
  });
  const tokenizer = (await open({ "tokenizer.json": added }, 5000))!;
  const options = { addSpecialTokens: false, allowSpecial: true };
  const a = tokenizer.encode("a", options);
  assertEquals(tokenizer.encode("a  <l><r> \na", options), [
    ...a,
    4096,
    4097,
    ...a,
  ]);
  assertEquals(tokenizer.encode("word", options), [4098]);
  assert(!tokenizer.encode("sword", options).includes(4098));
  assert(!tokenizer.encode("words", options).includes(4098));
});
