/** Every example as a user runs it: a process of its own, with the permissions that are promised. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { floats, readSafetensors } from "./support/safetensors.ts";

const SUFFIX = Deno.build.os === "darwin" ? "dylib" : "so";
const LIBRARY = path(`build/libmoela.${SUFFIX}`);

interface Nano {
  prompts: Record<string, { text: string; greedy_text: string }>;
  perplexity: { windows: Record<string, { perplexity: number }> };
}

function path(file: string): string {
  return new URL(`../${file}`, import.meta.url).pathname;
}

async function nano(): Promise<Nano> {
  return JSON.parse(
    await Deno.readTextFile(path("tests/fixtures/nano/nano.json")),
  );
}

/** An example's process: it may read, and open the kernel library; nothing else without `flags`. */
function start(
  example: string,
  args: readonly string[],
  flags: readonly string[] = [],
): Deno.ChildProcess {
  return new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--quiet",
      "--no-prompt",
      "--allow-read",
      `--allow-ffi=${LIBRARY}`,
      ...flags,
      path(`examples/${example}`),
      ...args,
    ],
    cwd: path(""),
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

async function type(child: Deno.ChildProcess, input: string) {
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
}

async function run(
  example: string,
  args: readonly string[],
  input = "",
  flags: readonly string[] = [],
) {
  const child = start(example, args, flags);
  await type(child, input);
  const { code, stdout, stderr } = await child.output();
  const utf8 = new TextDecoder();
  return { code, out: utf8.decode(stdout), err: utf8.decode(stderr) };
}

/** The output of a run that goes well; what is for a terminal is not shown without one. */
async function succeed(
  example: string,
  args: readonly string[],
  input = "",
  flags: readonly string[] = [],
) {
  const { code, out, err } = await run(example, args, input, flags);
  assertEquals({ code, err }, { code: 0, err: "" });
  return out;
}

Deno.test("complete.ts streams the reference's continuation", async () => {
  const { prompts } = await nano();
  // Chosen for its margins: bf16 cannot change its tokens.
  const { text, greedy_text } = prompts["chat-list"];
  const out = await succeed("complete.ts", ["--temperature", "0", text]);
  assertEquals(out, `${text}${greedy_text}\n`);
});

Deno.test("complete.ts repeats itself with a seed", async () => {
  const args = ["--seed", "7", "--tokens", "20", "Once upon a time"];
  const out = await succeed("complete.ts", args);
  assert(out.startsWith("Once upon a time"), out);
  assertEquals(await succeed("complete.ts", args), out);
});

Deno.test("chat.ts answers line by line and remembers", async () => {
  const input = [
    "What is 12 + 30?",
    "",
    "What is the capital of France?",
    "/new",
    "What is 12 + 30?", // without an end of line
  ].join("\n");
  const out = await succeed("chat.ts", ["--temperature", "0"], input);
  assertEquals(out, "42\nThe capital of France is Paris.\n42\n");
});

Deno.test("chat.ts refuses a line that does not fit and goes on", async () => {
  const input = `${"tiger ".repeat(9000)}\nWhat is 12 + 30?\n`;
  const { code, out, err } = await run(
    "chat.ts",
    ["--temperature", "0"],
    input,
  );
  assertEquals({ code, out }, { code: 0, out: "42\n" });
  assertStringIncludes(err, "at most 8192 fit");
});

Deno.test({
  name: "chat.ts stops an answer at Ctrl-C and stays",
  ignore: Deno.build.os === "windows",
  async fn() {
    // So hot that EOS is one token among thousands: the answer is long.
    const args = ["--temperature", "100", "--seed", "1"];
    const whole = await succeed("chat.ts", args, "Hello!\n");
    const child = start("chat.ts", args);
    const typing = child.stdin.getWriter();
    await typing.write(new TextEncoder().encode("Hello!\n"));
    const texts = child.stdout.pipeThrough(new TextDecoderStream());
    let out = "";
    for await (const text of texts) {
      if (out === "") {
        child.kill("SIGINT");
        await typing.close();
      }
      out += text;
    }
    const { code } = await child.status;
    await child.stderr.cancel();
    assertEquals(code, 0);
    assert(out.length > 1 && out.length < whole.length, out);
    assert(whole.startsWith(out.trimEnd()), out);
  },
});

/** How likely each token is after the prompt "story", in percent. */
async function storyPercents(): Promise<number[]> {
  const tensors = await readSafetensors(
    new URL("./fixtures/nano/nano.safetensors", import.meta.url),
  );
  const logits = Array.from(floats(tensors, "story.last_logits"));
  const max = Math.max(...logits);
  const sum = logits.reduce((sum, logit) => sum + Math.exp(logit - max), 0);
  return logits.map((logit) => 100 * Math.exp(logit - max) / sum);
}

Deno.test("logits.ts prints the reference's most likely tokens", async () => {
  const { prompts } = await nano();
  const percents = await storyPercents();
  const fifth = percents.toSorted((a, b) => b - a)[4];
  const out = await succeed("logits.ts", ["--top", "5", prompts.story.text]);
  const [head, ...lines] = out.trimEnd().split("\n");
  assertStringIncludes(head, '" upon" " a" " time"');
  assertEquals(lines.length, 5);
  for (const line of lines) {
    const [percent, , id] = line.trim().split(/\s+/);
    const expected = percents[Number(id)];
    assert(expected > fifth - 0.5, `${line} is not among the first`);
    assert(
      Math.abs(Number(percent) - expected) < 0.5,
      `${line}: expected ${expected} %`,
    );
  }
});

Deno.test("logprobs.ts prints the reference's probabilities", async () => {
  const { prompts } = await nano();
  const out = await succeed("logprobs.ts", [
    "--tokens",
    "3",
    prompts.story.text,
  ]);
  const lines = out.trimEnd().split("\n");
  assertEquals(lines.length, 3);
  const percents = [...lines[0].matchAll(/(\S+) %/g)].map(([, n]) => n);
  const [first, second, third] = (await storyPercents()).toSorted((a, b) =>
    b - a
  );
  const expected = [first, first, second, third];
  assertEquals(percents.length, expected.length, lines[0]);
  for (const [i, percent] of percents.entries()) {
    assert(Math.abs(Number(percent) - expected[i]) < 0.5, lines[0]);
  }
});

Deno.test("fork.ts computes the prompt once", async () => {
  const args = ["--count", "2", "--tokens", "5", "Once upon a time"];
  const out = await succeed("fork.ts", args);
  for (const seed of [0, 1]) {
    assertStringIncludes(out, `seed ${seed}: Once upon a time `);
  }
  assertEquals(out.match(/5 of 6 prompt tokens reused/g)?.length, 2, out);
});

Deno.test("batch.ts answers every prompt", async () => {
  const out = await succeed("batch.ts", ["--count", "7", "--tokens", "5"]);
  assertStringIncludes(out, "Once upon a time Tom went to the castle");
  assert(/^7 answers, \d+ tokens in /m.test(out), out);
});

Deno.test("json.ts gives what its schema says", async () => {
  const out = await succeed("json.ts", ["--count", "3", "--temperature", "2"]);
  for (const line of out.trim().split("\n")) {
    assert(
      /^[A-Z][a-z]{2,9}, [1-9]\d?, likes (apples|stories|the sea)$/.test(line),
      line,
    );
  }
});

Deno.test("examples answer a mistake with one line", async () => {
  const wrong = [
    ["complete.ts", "--tokens", "x"],
    ["fork.ts", "--temperature=-1"],
    ["logprobs.ts", "--top", "many"],
    ["batch.ts", "--tokens=-3"],
    ["json.ts", "--colour"],
  ];
  for (const [example, ...args] of wrong) {
    const { code, err } = await run(example, args);
    assertEquals(code, 1, example);
    assertEquals(err.trim().split("\n").length, 1, err);
  }
});

Deno.test("save_cache.ts goes on where its last run ended", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const save = () =>
      succeed("save_cache.ts", [`${folder}/story.cache`], "", [
        `--allow-write=${folder}`,
      ]);
    const first = await save();
    assertStringIncludes(first, "315 prompt tokens, 0 of them held");
    const second = await save();
    assertStringIncludes(second, "315 prompt tokens, 314 of them held");
    assertStringIncludes(second, "saved 315 tokens");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("score.ts gives the reference's perplexity", async () => {
  const { perplexity } = await nano();
  const out = await succeed("score.ts", [
    "--window",
    "255",
    path("tests/fixtures/heldout.txt"),
  ]);
  assertStringIncludes(out, "windows: 144 of 255 tokens");
  const actual = Number(/perplexity (\S+)/.exec(out)?.[1]);
  const expected = perplexity.windows["255"].perplexity;
  assert(Math.abs(actual / expected - 1) < 0.003, out);
});

Deno.test("cache_sizes.ts prints the paper's 93.3 %, scales included", async () => {
  const out = await succeed("cache_sizes.ts", []);
  const lines = out.trim().split("\n").map((line) => line.split(/\s{2,}/));
  assertEquals(lines.slice(1), [
    ["DeepSeek 67B", "bf16", "389,120", "0.0 %"],
    ["DeepSeek-V2", "bf16", "69,120", "82.2 %"],
    ["DeepSeek-V2", "fp8", "34,680", "91.1 %"],
    ["DeepSeek-V2", "int8", "34,680", "91.1 %"],
    ["DeepSeek-V2", "int6", "26,040", "93.3 %"],
    ["DeepSeek-V2-Lite", "bf16", "31,104", "92.0 %"],
    ["DeepSeek-V2-Lite", "fp8", "15,606", "96.0 %"],
    ["DeepSeek-V2-Lite", "int8", "15,606", "96.0 %"],
    ["DeepSeek-V2-Lite", "int6", "11,718", "97.0 %"],
  ]);
});

Deno.test("kernels.ts agrees with its plain loops", async () => {
  // Two splits of 512 keys, the second of one key.
  const out = await succeed("kernels.ts", ["--heads", "3", "--tokens", "513"]);
  const error = Number(/error against plain loops: (\S+)/.exec(out)?.[1]);
  assert(error > 0 && error < 1e-5, out);
});

const MISTAKES: readonly (readonly [string, string[], string])[] = [
  ["chat.ts", ["--temperature", "warm"], '--temperature is "warm"'],
  ["chat.ts", ["--model", "/none"], "No such file"],
  ["logits.ts", ["--top", "0"], '--top is "0"'],
  ["logits.ts", ["--flop", "1"], "--flop"],
  ["score.ts", [], "Usage: score.ts"],
  ["score.ts", ["/none"], "No such file"],
  ["score.ts", ["--window", "8192", "deno.json"], '--window is "8192"'],
  ["kernels.ts", ["--heads", "1.5"], '--heads is "1.5"'],
];

for (const [example, args, message] of MISTAKES) {
  Deno.test(`${example} ${args.join(" ")}: a message, no stack`, async () => {
    const { code, out, err } = await run(example, args);
    assertEquals({ code, out }, { code: 1, out: "" });
    assertStringIncludes(err, message);
    assert(!err.includes("    at "), err);
  });
}
