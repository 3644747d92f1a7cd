import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { NativeError } from "../src/errors.ts";
import { GrammarCompiler } from "../src/grammar/compiler.ts";
import type { Grammar } from "../src/grammar/grammar.ts";
import { Vocabulary } from "../src/grammar/vocabulary.ts";
import { loadXgrammar, Xgrammar } from "../src/grammar/xgrammar.ts";
import {
  allowed,
  isAllowed,
  openNano,
  singleByte,
  takes,
  walk,
} from "./support/grammar.ts";

const nano = await openNano();
const { compiler, tokenizer, size } = nano;
const [eos] = tokenizer.eosTokenIds;
const token = (text: string) => singleByte(tokenizer, text);

/** The same texts for both kinds of state. */
const BOTH: readonly Grammar[] = [
  { regex: "a[bc]{1,3}d?" },
  { ebnf: 'root ::= "a" [bc]{1,3} "d"?' },
];

for (const grammar of BOTH) {
  const [kind] = Object.keys(grammar);

  Deno.test(`a state of ${kind} masks, accepts, rolls back and forks`, () => {
    const state = compiler.compile(grammar).start();
    const mask = new Int32Array(compiler.maskWords);
    assertEquals(state.mask(mask), true);
    assert(isAllowed(mask, token("a")) && !isAllowed(mask, token("b")));
    assertEquals(state.accept(token("b")), false);
    assertEquals(state.accept(eos), false);
    assert(state.accept(token("a")) && !state.complete);
    assert(state.accept(token("b")) && state.complete);
    const before = new Int32Array(compiler.maskWords);
    state.mask(before);
    assert(isAllowed(before, eos) && isAllowed(before, token("d")));

    const fork = state.fork();
    assert(fork.accept(token("d")));
    fork.mask(mask);
    assertEquals(allowed(mask, size), [eos]);
    assert(fork.accept(eos) && fork.terminated && !state.terminated);
    assertEquals(fork.accept(eos), false);
    assertEquals(fork.accept(token("d")), false);
    fork.rollback(2);
    assert(!fork.terminated && fork.complete);
    fork.mask(mask);
    assertEquals(mask, before);
    fork.dispose();

    for (const text of ["c", "b"]) assert(state.accept(token(text)));
    assertEquals(state.accept(token("b")), false);
    state.rollback(2);
    state.mask(mask);
    assertEquals(mask, before);
    assertThrows(() => state.rollback(3), RangeError, "Cannot roll back");
    assertThrows(() => state.mask(new Int32Array(1)), RangeError, "words");
    state.dispose();
  });

  Deno.test(`a state of ${kind} takes no token without text`, () => {
    const state = compiler.compile(grammar).start();
    for (
      const id of [-1, size, 2 ** 31, 0.5, NaN, ...tokenizer.addedTokenIds]
    ) {
      assertEquals(state.accept(id), false, `${id}`);
    }
    state.dispose();
  });
}

Deno.test("added tokens and ids past the tokenizer are never allowed", async () => {
  const wide = await GrammarCompiler.open(tokenizer, size + 70, [eos]);
  for (const grammar of [{ json: {} }, { ebnf: "root ::= [^x]*" }]) {
    const state = wide.compile(grammar).start();
    const mask = new Int32Array(wide.maskWords);
    assertEquals(mask.length, Math.ceil((size + 70) / 32));
    assertEquals(state.mask(mask), true);
    for (const id of tokenizer.addedTokenIds) {
      assertEquals(isAllowed(mask, id), id === eos && state.complete);
    }
    for (let id = size; id < 32 * mask.length; id++) {
      assert(!isAllowed(mask, id));
    }
    state.dispose();
  }
});

Deno.test("mask() tells when nothing is forbidden", async () => {
  // Without added tokens, all of the vocabulary may come.
  const all = { regex: "[^]*" };
  const mask = new Int32Array(compiler.maskWords);
  const state = compiler.compile(all).start();
  assertEquals(state.mask(mask), true);
  const open = await GrammarCompiler.open(tokenizer, size, [
    ...tokenizer.addedTokenIds,
  ]);
  const bytes = new Set(allowed(mask, size));
  const texts = Array.from({ length: size }, (_, id) => id)
    .filter((id) => !tokenizer.addedTokenIds.has(id));
  const broken = texts.filter((id) => !bytes.has(id));
  // What cannot begin a character in UTF-8 cannot begin an output.
  for (const id of broken) {
    const [first] = tokenizer.table.bytes(id);
    assert(first >= 0x80, `token ${id} must be allowed`);
  }
  assertEquals(open.compile(all).start().mask(mask), broken.length > 0);
});

Deno.test("compile() keeps what was used last", () => {
  const first = compiler.compile({ choices: ["a", "b"] });
  assert(compiler.compile({ choices: ["a", "b"] }) === first);
  assert(compiler.compile({ choices: ["a", "c"] }) !== first);
  for (let i = 0; i < 100; i++) compiler.compile({ choices: [`${i}`] });
  assert(compiler.compile({ choices: ["a", "b"] }) !== first);
});

Deno.test("EBNF is enforced beyond what xgrammar does", () => {
  const cases: [string, string[], string[]][] = [
    ["root ::= [à-ü] [漢-龠🎉]", ["é漢", "à🎉"], ["é", "éa", "a漢"]],
    ["root ::= [^é\\n]{2}", ["ab", "漢e"], ["é", "aé", "a\n"]],
    ['root ::= e\ne ::= e "+" t | t\nt ::= [0-9]+', ["1+22+3"], ["1+", "+1"]],
    ['root ::= "é" | "\\u00e8"', ["é", "è"], ["e"]],
    ['# sums\nroot ::= "(" root ")" | ""', ["", "(())"], ["(()", ")"]],
    ['root ::= [a-c]{2,20} "."', ["ab.", "abcabcabcabcabcabcab."], [
      "a.",
      "abcabcabcabcabcabcabc.",
    ]],
  ];
  for (const [ebnf, right, wrong] of cases) {
    for (const text of right) assert(takes(nano, { ebnf }, text), ebnf + text);
    for (const text of wrong) assert(!takes(nano, { ebnf }, text), ebnf + text);
  }
  const text = walk(nano, { ebnf: 'root ::= [à-ü]{3,30} "."' }, 5);
  assert(/^[à-ü]{3,30}\.$/u.test(text), text);
});

Deno.test("compile() refuses EBNF that cannot be enforced", () => {
  for (
    const [ebnf, word] of [
      ["", "root"],
      ['main ::= "a"', "root"],
      ["root ::= other", "other"],
      ["root ::= root", "any token"],
      ['root ::= "a', "line 1"],
      ["root ::= [a", "line 1"],
      ['root ::=\n  "a" ! "b"', "line 2"],
      ["root ::= (", "well-formed"],
      ['root ::= "a" (= "b")', "looking ahead"],
      ['root ::= TagDispatch(("a", root))', "TagDispatch"],
      ['root ::= "a"{5000}', "repetition"],
      ["root ::= [\\d]", "\\d in a class"],
      ["root ::= []", "no character"],
      ["root ::= [z-a]", "backwards"],
      ['root ::= "\ud800"', "character"],
      [`root ::= ${"[a-z]".repeat(300)}`, "too large"],
      [`root ::= "${"a".repeat(30_000)}"`, "too large"],
      ['root ::= "a"\nroot ::= "b"', "well-formed"],
    ]
  ) {
    const error = assertThrows(() => compiler.compile({ ebnf }), TypeError);
    assert(
      error.message.startsWith("Cannot generate: grammar.ebnf ") &&
        error.message.includes(word),
      `${ebnf}: ${error.message}`,
    );
  }
});

Deno.test("states outlive grammars that break xgrammar", () => {
  const good = { ebnf: 'root ::= "a" [b-d]+ "e"' };
  const state = compiler.compile(good).start();
  assert(state.accept(token("a")) && state.accept(token("b")));
  const mask = new Int32Array(compiler.maskWords);
  const before = new Int32Array(compiler.maskWords);
  state.mask(before);
  for (let i = 0; i < 60; i++) {
    assertThrows(() => compiler.compile({ ebnf: `root ::= x${i}` }), TypeError);
  }
  state.mask(mask);
  assertEquals(mask, before);
  assert(state.accept(token("e")) && state.accept(eos) && state.terminated);
  assert(takes(nano, good, "abcde"));
  state.dispose();
});

Deno.test("a heap that is lost is replaced, and its states go on", async () => {
  const vocabulary = new Vocabulary(tokenizer, size, [eos]);
  const xgrammar = new Xgrammar(await loadXgrammar(), vocabulary);
  const compiled = xgrammar.compile('root ::= "a" [b-d]+ "e"');
  const state = compiled.start();
  const idle = compiled.start();
  for (const text of ["a", "b", "c"]) assert(state.accept(token(text)));
  const before = new Int32Array(vocabulary.words);
  const mask = new Int32Array(vocabulary.words);
  state.mask(before);
  for (let i = 0; i < 3; i++) {
    assertThrows(
      () => xgrammar.run(({ instance }) => instance.Grammar.FromEBNF("", "x")),
      NativeError,
      "not found",
    );
    state.mask(mask);
    assertEquals(mask, before);
    state.rollback(1);
    assert(state.accept(token("c")));
  }
  assert(state.accept(token("e")) && state.accept(eos) && state.terminated);
  assert(idle.accept(token("a")) && !idle.accept(token("e")));
  for (const each of [state, idle]) each.dispose();
});

Deno.test("loadXgrammar() names the task when the bundle is missing", async () => {
  const missing = new URL("../build/no-such-file.js", import.meta.url);
  const error = await assertRejects(() => loadXgrammar(missing), NativeError);
  assertStringIncludes(error.message, missing.href);
  assertStringIncludes(error.message, "deno task build");
});
