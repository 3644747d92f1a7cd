/** What the chat page shows and how it is used, in a real browser. */
import { assert, assertEquals } from "@std/assert";
import { openLibrary } from "../ffi/mod.ts";
import {
  endless,
  greedy,
  isChat,
  pageTest,
  say,
  streamOf,
  texts,
} from "./support/browser.ts";
import { until } from "./support/server.ts";

openLibrary();

const HOSTILE = [
  "<script>window.bad = 1</",
  "script>\n\n",
  "Hello <b onclick='bad()'>bold</b> <img src=x onerror='window.bad = 2'>\n\n",
  "[a](javascript:window.bad=3) [b](https://example.org/x) ",
  "[c](data:text/html,<script>window.bad=4</script>) ",
  "![picture](https://example.org/p.png)\n\n",
  "<svg onload='window.bad = 5'></svg>\n\n",
  "<iframe srcdoc='<script>parent.bad = 6</script>'></iframe>\n\n",
  "<style>body { display: none }</style>\n\n",
  "```html\n<script>window.bad = 7</script>\n```\n\n",
  "| <script>window.bad = 8</script> | b |\n|-|-|\n| 1 | <a href='x' style='color:red'>2</a> |\n",
];

pageTest("shows HTML of the model as text", async ({ page, complaints }) => {
  await say(page, "Be evil.");
  const [shown] = await texts(page, ".markdown");
  for (
    const part of [
      "<script>window.bad = 1</script>",
      "<b onclick='bad()'>bold</b>",
      "<img src=x onerror='window.bad = 2'>",
      "<svg onload='window.bad = 5'></svg>",
      "<iframe srcdoc=",
      "<style>body { display: none }</style>",
      "<script>window.bad = 7</script>",
    ]
  ) assert(shown.includes(part), `${part} in ${shown}`);
  const count = (selector: string) =>
    page.locator(`#log :is(${selector})`).count();
  assertEquals(await count("script, img, iframe, style, b, [style]"), 0);
  assertEquals(await count("[onclick], [onerror], [onload]"), 0);
  const links = await page.locator("#log a").evaluateAll((list) =>
    list.map((link) => link.getAttribute("href"))
  );
  assertEquals(links.filter((href) => href !== null), [
    "https://example.org/x",
    "https://example.org/p.png",
  ]);
  assertEquals(await page.evaluate("window.bad"), undefined);
  // Kept and shown again it is text as well, and so is a title.
  await say(page, "<img src=x onerror='window.bad = 9'>");
  await page.click("#new");
  await say(page, "<script>window.bad = 10</script>");
  await page.reload();
  await page.locator(".markdown").first().waitFor();
  assertEquals(await page.evaluate("window.bad"), undefined);
  assertEquals(complaints, []);
}, {
  intercept: (request) =>
    Promise.resolve(isChat(request) ? streamOf(...HOSTILE) : request),
});

pageTest("renders Markdown", async ({ page }) => {
  await say(page, "Write.");
  const count = (selector: string) =>
    page.locator(`.markdown ${selector}`).count();
  assertEquals(await texts(page, ".markdown h2"), ["Title"]);
  const items = (await texts(page, ".markdown li")).map((text) => text.trim());
  assertEquals(items, ["one", "two", "done"]);
  assertEquals(await count('ol[start="3"]'), 1);
  assertEquals(await texts(page, ".markdown strong"), ["bold"]);
  assertEquals(await texts(page, ".markdown td"), ["1", "2"]);
  assertEquals(await count('td[align="right"]'), 1);
  assertEquals(await count('li > input[type="checkbox"]:checked'), 1);
  assertEquals(await texts(page, ".code code"), ["let a = 1 < 2;\n"]);
  assertEquals(await texts(page, ".code-head span"), ["js"]);
  assertEquals(await count("[style]"), 0);
}, {
  intercept: (request) =>
    Promise.resolve(
      isChat(request)
        ? streamOf(
          "## Ti",
          "tle\n\n- one\n- t",
          "wo\n\n3. [x] done\n\nA **bo",
          "ld** word\n\n|a|b|\n|-|",
          "-:|\n|1|2|\n\n```j",
          "s\nlet a = 1 < 2;\n```",
        )
        : request,
    ),
});

pageTest("plots what the server does", async ({ page }) => {
  await page.click("#settings-button");
  await page.locator("#plot").scrollIntoViewIfNeeded();
  await page.locator("#plot canvas").waitFor();
  await page.fill("#message", "Tell me a story.");
  await page.press("#message", "Enter");
  const words = page.locator("#plot-words");
  await until(
    async () => /^[1-9]\d* tokens a second/.test(await words.innerText()),
    "tokens are counted",
    10,
  );
  assert(/[\d.]+ MB of caches$/.test(await words.innerText()));
  const inked = await page.evaluate<number>(`(() => {
    const canvas = document.querySelector("#plot canvas");
    const { data } = canvas.getContext("2d")
      .getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 3; i < data.length; i += 4) if (data[i] > 0) count++;
    return count;
  })()`);
  assert(inked > 200, `${inked} pixels are drawn`);
}, { intercept: endless });

const LONG = "x".repeat(200);

pageTest("fits a phone", async ({ page, complaints }) => {
  const wide = () =>
    page.evaluate<number>("document.documentElement.scrollWidth");
  assertEquals(await wide(), 360);
  await say(page, LONG);
  assert((await texts(page, ".markdown"))[0].includes(LONG));
  assertEquals(await wide(), 360);
  assertEquals(await page.locator("#sidebar").isVisible(), false);
  await page.click("#sidebar-button");
  assertEquals(await page.locator("#sidebar").isVisible(), true);
  assertEquals(
    await page.evaluate("document.querySelector('main').inert"),
    true,
  );
  await page.keyboard.press("Escape");
  assertEquals(await page.locator("#sidebar").isVisible(), false);
  assertEquals(
    await page.evaluate("document.activeElement.id"),
    "sidebar-button",
  );
  await page.click("#settings-button");
  const box = await page.locator("#settings").boundingBox();
  assert(box !== null && box.x >= 0 && box.x + box.width <= 360);
  await page.click("#backdrop", { position: { x: 5, y: 300 } });
  assertEquals(await page.locator("#settings").isVisible(), false);
  assertEquals(complaints, []);
}, {
  width: 360,
  height: 740,
  intercept: (request) =>
    Promise.resolve(
      isChat(request)
        ? streamOf(
          LONG,
          "\n\n```\n",
          LONG,
          "\n```\n\n",
          `|${LONG}|${LONG}|\n|-|-|`,
        )
        : request,
    ),
});

pageTest("is light and dark", async ({ page }) => {
  const paper = () =>
    page.evaluate<string>("getComputedStyle(document.body).backgroundColor");
  const dark = await paper();
  await page.selectOption("#theme", "light");
  const light = await paper();
  assert(dark !== light);
  await page.emulateMedia({ colorScheme: "light" });
  assertEquals(await paper(), light);
  await page.selectOption("#theme", "dark");
  await page.reload();
  assertEquals(await paper(), dark);
  await page.selectOption("#theme", "system");
  assertEquals(await paper(), light);
}, { dark: true });

pageTest("names every control, and Tab reaches them", async ({ page }) => {
  await greedy(page);
  await say(page, "What is 12 + 30?");
  const nameless = await page.evaluate<string[]>(`
    [...document.querySelectorAll("button, input, select, textarea, [role=button]")]
      .filter((each) => each.checkVisibility())
      .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim() ||
        [...each.labels ?? []].some((label) => label.textContent.trim())))
      .map((each) => each.outerHTML)`);
  assertEquals(nameless, []);
  await page.focus("#message");
  const stops: string[] = [];
  for (let i = 0; i < 4; i++) {
    await page.keyboard.press("Tab");
    stops.push(await page.evaluate("document.activeElement.id"));
  }
  assertEquals(stops.slice(0, 2), ["send", "modes"]);
  // Shift and Enter start a line and send nothing.
  await page.fill("#message", "");
  await page.focus("#message");
  await page.keyboard.type("a");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("b");
  assertEquals(await page.inputValue("#message"), "a\nb");
  assertEquals(await page.locator(".message").count(), 2);
});
