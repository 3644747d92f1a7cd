/** Starts the page. */
import { App } from "./app.ts";
import { byId } from "./dom.ts";
import { Drawers } from "./drawers.ts";
import { ActivityPlot } from "./plot.ts";
import { apiKey } from "./settings.ts";
import { Store } from "./store.ts";
import { setTheme, type Theme, theme } from "./theme.ts";

const drawers = new Drawers();
const app = new App(new Store(), drawers);
const plot = new ActivityPlot();

for (const id of ["new", "new-top"]) {
  byId(id, HTMLButtonElement).addEventListener("click", () => app.open(""));
}

addEventListener("keydown", ({ key, defaultPrevented }) => {
  if (key !== "Escape" || defaultPrevented) return;
  if (!drawers.closeAbove()) app.stop();
});

const key = byId("api-key", HTMLInputElement);
key.value = apiKey.get();
key.addEventListener("change", () => {
  apiKey.set(key.value.trim());
  void app.connect();
});

const chosen = byId("theme", HTMLSelectElement);
chosen.value = theme();
chosen.addEventListener("change", () => {
  setTheme(chosen.value as Theme);
  plot.recolour();
});
matchMedia("(prefers-color-scheme: dark)")
  .addEventListener("change", () => plot.recolour());

plot.start();
void app.start();
