/** The live plot of tokens a second and of the memory of caches. */
import uPlot from "uplot";
import { metricsText } from "./chat_api.ts";
import { byId } from "./dom.ts";
import { History, readMetrics, WINDOW } from "./metrics.ts";

/** Milliseconds from one reading to the next. */
const EVERY = 1000;
const HEIGHT = 150;

/** A colour of the style sheets, as it is now. */
function colour(name: string): string {
  return getComputedStyle(byId(`colour-${name}`, HTMLElement)).color;
}

/** Reads the server's numbers while it can be seen, and plots them. */
export class ActivityPlot {
  readonly #place = byId("plot", HTMLElement);
  readonly #words = byId("plot-words", HTMLElement);
  readonly #history = new History();
  #plot: uPlot | undefined;
  #timer: ReturnType<typeof setInterval> | undefined;

  /** Starts, stops and draws as the plot comes into view and leaves it. */
  start() {
    const seen = new IntersectionObserver(([{ isIntersecting }]) =>
      this.#run(isIntersecting)
    );
    seen.observe(this.#place);
    new ResizeObserver(() => {
      const width = this.#place.clientWidth;
      if (width > 0) this.#plot?.setSize({ width, height: HEIGHT });
    }).observe(this.#place);
  }

  /** Draws with the colours of the theme that holds now. */
  recolour() {
    this.#plot?.destroy();
    this.#plot = undefined;
    this.#draw();
  }

  #run(on: boolean) {
    clearInterval(this.#timer);
    if (!on) return;
    this.#timer = setInterval(() => void this.#read(), EVERY);
    void this.#read();
  }

  async #read() {
    if (document.hidden) return;
    try {
      const text = await metricsText(AbortSignal.timeout(5 * EVERY));
      this.#history.add(readMetrics(text, Date.now() / 1000));
      this.#draw();
    } catch {
      this.#words.textContent = "The server's numbers cannot be read now";
    }
  }

  #draw() {
    const width = this.#place.clientWidth;
    if (width === 0) return;
    const data = this.#history.columns();
    const [, speeds, megabytes] = data;
    this.#plot ??= this.#create(width);
    this.#plot.setData(data);
    const speed = Math.round(speeds.at(-1) ?? 0);
    this.#words.textContent = `${speed} tokens a second · ${
      (megabytes.at(-1) ?? 0).toFixed(1)
    } MB of caches`;
  }

  #create(width: number): uPlot {
    const ink = colour("muted");
    const rule = colour("rule");
    const axis = {
      stroke: ink,
      font: "11px system-ui, sans-serif",
      ticks: { show: false },
      grid: { stroke: rule, width: 1 },
    };
    const line = { width: 1.5, points: { show: false } };
    const scale = (least: number) => ({
      range: (_: uPlot, __: number, most: number): [number, number] => [
        0,
        Math.max(least, most * 1.1),
      ],
    });
    return new uPlot(
      {
        width,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: {
            range: (
              _: uPlot,
              __: number,
              last: number,
            ) => [last - WINDOW, last],
          },
          tokens: scale(10),
          bytes: scale(1),
        },
        axes: [
          {
            ...axis,
            grid: { show: false },
            size: 22,
            splits: (_: uPlot, __: number, first: number, last: number) =>
              [0, 1, 2, 3].map((i) => first + (last - first) * i / 3),
            values: () => ["-60 s", "-40", "-20", "now"],
          },
          { ...axis, scale: "tokens", size: 40 },
          {
            ...axis,
            scale: "bytes",
            side: 1,
            size: 36,
            grid: { show: false },
          },
        ],
        series: [
          {},
          { ...line, scale: "tokens", stroke: colour("tokens") },
          { ...line, scale: "bytes", stroke: colour("cache") },
        ],
      },
      [[], [], []],
      this.#place,
    );
  }
}
