/** The panels at the sides: beside the conversation where there is room, else above it. */
import { byId } from "./dom.ts";

interface Drawer {
  panel: HTMLElement;
  button: HTMLButtonElement;
  /** Where there is no room beside the conversation. */
  narrow: MediaQueryList;
  open: boolean;
}

/** Opens and closes both panels. */
export class Drawers {
  readonly #backdrop = byId("backdrop", HTMLElement);
  readonly #main = byId("main", HTMLElement);
  readonly #list: Drawer[];

  constructor() {
    const drawer = (name: string, width: string): Drawer => ({
      panel: byId(name, HTMLElement),
      button: byId(`${name}-button`, HTMLButtonElement),
      narrow: matchMedia(`(max-width: ${width})`),
      open: false,
    });
    // As in layout.css.
    this.#list = [drawer("sidebar", "800px"), drawer("settings", "1100px")];
    for (const each of this.#list) {
      each.open = !each.narrow.matches && each.panel.id === "sidebar";
      each.button.addEventListener("click", () => this.toggle(each.panel.id));
      each.narrow.addEventListener("change", () => this.#show());
      each.panel.querySelector(".close")?.addEventListener(
        "click",
        () => this.toggle(each.panel.id, false),
      );
    }
    this.#backdrop.addEventListener("click", () => this.closeAbove());
    this.#show();
  }

  #above(): Drawer | undefined {
    return this.#list.find(({ open, narrow }) => open && narrow.matches);
  }

  /** Opens or closes one; another one that covers the conversation makes room. */
  toggle(name: string, open?: boolean) {
    const drawer = this.#list.find(({ panel }) => panel.id === name)!;
    drawer.open = open ?? !drawer.open;
    if (drawer.open && drawer.narrow.matches) {
      for (const each of this.#list) {
        if (each !== drawer && each.narrow.matches) each.open = false;
      }
    }
    this.#show();
    if (!drawer.open) drawer.button.focus();
    else if (drawer.narrow.matches) drawer.panel.focus();
  }

  /** Closes the one that covers the conversation. Returns whether there was one. */
  closeAbove(): boolean {
    const above = this.#above();
    if (above) this.toggle(above.panel.id, false);
    return above !== undefined;
  }

  #show() {
    const above = this.#above();
    this.#backdrop.hidden = above === undefined;
    this.#main.inert = above !== undefined;
    for (const { panel, button, open } of this.#list) {
      panel.classList.toggle("open", open);
      panel.inert = !open || (above !== undefined && above.panel !== panel);
      button.setAttribute("aria-expanded", `${open}`);
    }
  }
}
