/** Conversations on the chat page, in a real browser; `deno task test:browser` runs them. */
import { assert, assertEquals } from "@std/assert";
import { openLibrary } from "../ffi/mod.ts";
import {
  answered,
  endless,
  greedy,
  pageTest,
  say,
  texts,
} from "./support/browser.ts";
import { CHAT, until } from "./support/server.ts";

openLibrary();

pageTest("chats, and is well under its own policy", async (given) => {
  const { page, complaints, base } = given;
  await greedy(page);
  await say(page, "What is 12 + 30?");
  await say(page, "What is 5 + 6?");
  assertEquals(await texts(page, ".plain"), [
    "What is 12 + 30?",
    "What is 5 + 6?",
  ]);
  assertEquals(await texts(page, ".markdown"), ["42", "11"]);
  assertEquals(await texts(page, ".conversation"), ["What is 12 + 30?"]);
  assertEquals(await page.title(), "What is 12 + 30? – moela");
  // Read out once it is complete, and not token by token.
  assertEquals(await page.textContent("#said"), "11");
  assertEquals(await page.getAttribute("#log", "aria-live"), "off");
  assertEquals(complaints, []);
  const policy = (await page.request.get(`${base}/`))
    .headers()["content-security-policy"];
  assert(policy.includes("script-src 'self';"), policy);
  assert(policy.includes("style-src 'self';"), policy);
});

pageTest("streams, and Escape stops the server too", async (given) => {
  const { page, metric } = given;
  await page.fill("#message", "Tell me a story.");
  await page.press("#message", "Enter");
  const length = async () => (await page.innerText("#log")).length;
  await page.locator(".markdown").waitFor();
  assertEquals(await page.getAttribute("#send", "aria-label"), "Stop");
  const before = await length();
  await until(async () => await length() > before, "it grows");
  await page.press("#message", "Escape");
  await answered(page);
  assertEquals(await texts(page, ".note"), ["Stopped"]);
  const after = await length();
  assert(after > before);
  await until(
    async () => await metric("moela_requests_aborted_total") === 1,
    "the server stops",
  );
  assertEquals(await length(), after);
  // And the button does the same.
  await page.click('[aria-label="Regenerate"]');
  await page.locator(".markdown").waitFor();
  await page.click("#send");
  await answered(page);
  assertEquals(await texts(page, ".note"), ["Stopped"]);
}, { intercept: endless });

pageTest("forks where a turn is edited, and keeps both", async ({ page }) => {
  await greedy(page);
  await say(page, "What is 12 + 30?");
  await say(page, "What is 5 + 6?");
  await page.locator('[aria-label="Edit"]').first().click();
  await page.locator(".edit textarea").fill("What is 20 + 3?");
  await page.locator(".edit textarea").press("Enter");
  await page.locator('.plain:text-is("What is 20 + 3?")').waitFor();
  await answered(page);
  assertEquals(await texts(page, ".plain"), ["What is 20 + 3?"]);
  assertEquals(await texts(page, ".markdown"), ["23"]);
  assertEquals(await texts(page, ".switch"), ["2/2"]);
  await page.click('[aria-label="Branch before"]');
  assertEquals(await texts(page, ".plain"), [
    "What is 12 + 30?",
    "What is 5 + 6?",
  ]);
  assertEquals(await texts(page, ".markdown"), ["42", "11"]);
  assertEquals(await texts(page, ".switch"), ["1/2"]);
  // The fork's own turns follow it.
  await page.click('[aria-label="Branch after"]');
  await say(page, "What is 1 + 1?");
  assertEquals(await texts(page, ".markdown"), ["23", "2"]);
});

pageTest("adds a branch where an answer is made again", async ({ page }) => {
  const seeds = async () =>
    (await texts(page, ".stats")).map((text) => /seed (\d+)/.exec(text)?.[1]);
  await say(page, "Tell me a story.");
  const [first] = await texts(page, ".markdown");
  const [seed] = await seeds();
  await page.click('[aria-label="Regenerate"]');
  await answered(page);
  assertEquals(await texts(page, ".switch"), ["2/2"]);
  assert((await seeds())[0] !== seed);
  await page.click('[aria-label="Branch before"]');
  assertEquals(await texts(page, ".markdown"), [first]);
  assertEquals(await seeds(), [seed]);
  // The seed it shows draws the same answer again.
  await page.click("#settings-button");
  await page.fill("#sampling-seed", seed!);
  await page.click('[aria-label="Regenerate"]');
  await answered(page);
  assertEquals(await texts(page, ".switch"), ["3/3"]);
  assertEquals(await texts(page, ".markdown"), [first]);
});

pageTest("keeps conversations over a reload", async ({ page }) => {
  await greedy(page);
  await page.fill("#system", "Sums.");
  await say(page, "What is 12 + 30?");
  await page.click('[aria-label="Regenerate"]');
  await answered(page);
  await page.click('[aria-label="Branch before"]');
  await page.click("#new");
  await say(page, "What is 5 + 6?");
  await page.locator(".conversation", { hasText: "12 + 30" }).click();
  await page.reload();
  await page.locator(".message").first().waitFor();
  assertEquals(await texts(page, ".plain"), ["What is 12 + 30?"]);
  assertEquals(await texts(page, ".markdown"), ["42"]);
  assertEquals(await texts(page, ".switch"), ["1/2"]);
  assertEquals(await page.inputValue("#system"), "Sums.");
  assertEquals(await page.inputValue("#sampling-temperature"), "0");
  const titles = ["What is 5 + 6?", "What is 12 + 30?"];
  assertEquals(await texts(page, ".conversation"), titles);

  await page.click('[aria-label="Delete “What is 12 + 30?”"]');
  assertEquals(await texts(page, ".conversation"), titles.slice(0, 1));
  await page.click("#status .link");
  assertEquals(await texts(page, ".conversation"), titles);
  await page.click('[aria-label="Delete “What is 12 + 30?”"]');
  await page.reload();
  await page.locator(".conversation").first().waitFor();
  assertEquals(await texts(page, ".conversation"), titles.slice(0, 1));
});

pageTest("holds answers to a JSON schema", async ({ page, log }) => {
  await page.click("#settings-button");
  await page.selectOption("#format", "json_schema");
  await page.fill("#schema", "{ nothing");
  await page.fill("#message", "What is 12 + 30?");
  await page.press("#message", "Enter");
  const problem = await page.locator("#alert").innerText();
  assert(problem.startsWith("This is not JSON: "), problem);
  assertEquals(await page.getAttribute("#schema", "aria-invalid"), "true");
  assertEquals(log.filter(({ path }) => path === CHAT), []);
  assertEquals(await page.inputValue("#message"), "What is 12 + 30?");

  const schema = {
    type: "object",
    properties: {
      colour: { enum: ["red", "blue"] },
      size: { type: "integer", minimum: 1, maximum: 9 },
    },
    required: ["colour", "size"],
    additionalProperties: false,
  };
  await page.fill("#schema", JSON.stringify(schema));
  await say(page, "What is 12 + 30?");
  const [text] = await texts(page, ".code code");
  const value: { colour: string; size: number } = JSON.parse(text);
  assertEquals(Object.keys(value), ["colour", "size"]);
  assert(["red", "blue"].includes(value.colour));
  assert(value.size >= 1 && value.size <= 9);
  // Set out over lines.
  assert(text.includes('\n  "size": '), text);
});

pageTest("shows a token's alternatives", async ({ page }) => {
  await greedy(page);
  await page.check("#probabilities");
  await say(page, "What is 12 + 30?");
  const tokens = page.locator(".tokens .token");
  assertEquals((await tokens.allInnerTexts()).join("").trim(), "42");
  const card = page.locator(".alternatives");
  assertEquals(await card.isVisible(), false);
  await tokens.last().click();
  assertEquals(await card.locator("tbody tr").count(), 8);
  const shares = (await card.locator("tbody td:not(.share)").allInnerTexts())
    .map((text) => Number(text.replace(/[<%]/g, "")));
  // What was drawn at temperature 0 is the likeliest; the list descends.
  assertEquals(shares, shares.toSorted((a, b) => b - a));
  const chosen = card.locator("tr.chosen");
  assertEquals(await chosen.count(), 1);
  const [first] = await card.locator("tbody tr").allInnerTexts();
  assertEquals(await chosen.innerText(), first);
  await page.keyboard.press("Escape");
  assertEquals(await card.isVisible(), false);
  // All by keys: the tokens are one stop of the tab order.
  await page.keyboard.press("Home");
  await page.keyboard.press("Enter");
  assertEquals(await card.isVisible(), true);
  assertEquals(await tokens.first().getAttribute("aria-expanded"), "true");
  await page.keyboard.press("ArrowRight");
  assertEquals(await tokens.nth(1).getAttribute("aria-expanded"), "true");
  assertEquals(await page.locator('.token[tabindex="0"]').count(), 1);
  // It closes where the focus goes elsewhere.
  await page.focus("#message");
  assertEquals(await card.isVisible(), false);
  // Back to Markdown and forth.
  await page.click('.tools [aria-label="Token probabilities"]');
  assertEquals(await texts(page, ".markdown"), ["42"]);
  await page.click('.tools [aria-label="Token probabilities"]');
  assertEquals(await tokens.count() > 0, true);
});

pageTest("says errors in words", async ({ page }) => {
  const alert = page.locator("#alert");
  await alert.locator("span").waitFor();
  assert((await alert.innerText()).includes("wants an API key"));
  await alert.locator(".link").click();
  await page.locator("#api-key:focus").waitFor();
  await page.keyboard.type("secret");
  await page.keyboard.press("Enter");
  await page.locator('#model:text-is("nano")').waitFor();
  await page.fill("#sampling-temperature", "0");
  await say(page, "What is 12 + 30?");
  assertEquals(await texts(page, ".markdown"), ["42"]);
  const kept = await page.evaluate<string>("JSON.stringify(localStorage)");
  assert(!kept.includes("secret"), kept);

  await page.fill("#sampling-temperature", "3");
  await page.fill("#message", "Hello");
  await page.press("#message", "Enter");
  assert((await alert.innerText()).includes("number from 0 to 2"));
  await page.fill("#sampling-temperature", "0");
  await page.fill("#system", "word ".repeat(9000));
  await say(page, "Hello");
  assert((await texts(page, ".failure"))[0].includes("prompt is too long"));
  await page.fill("#system", "");
  await page.route(`**${CHAT}`, (route) => route.abort());
  await page.click('[aria-label="Try again"]');
  await answered(page);
  assert((await texts(page, ".failure"))[0].includes("cannot be reached"));
  await page.unroute(`**${CHAT}`);
  await page.click('[aria-label="Try again"]');
  await answered(page);
  assertEquals(await page.locator(".failure").count(), 0);
  assertEquals(await alert.innerText(), "");
}, { server: { apiKeys: ["secret"] } });
