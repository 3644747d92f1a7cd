/** The panel of settings: it shows those of the conversation, and changes them. */
import { byId, h } from "./dom.ts";
import { schemaProblem } from "./settings.ts";
import type { Format, Sampling, Settings } from "./types.ts";

interface NumberField {
  name: Exclude<keyof Sampling, "stop">;
  label: string;
  hint: string;
  min: number;
  max: number;
  /** 1 for whole numbers. */
  step: number;
  /** Whether it is shown at once, and not with those that are seldom used. */
  common?: boolean;
}

const FIELDS: readonly NumberField[] = [
  {
    name: "temperature",
    label: "Temperature",
    hint: "0 takes the likeliest token; more is more varied",
    min: 0,
    max: 2,
    step: 0.01,
    common: true,
  },
  {
    name: "top_p",
    label: "Top-p",
    hint: "Draws from the likeliest tokens that have this share together",
    min: 0,
    max: 1,
    step: 0.01,
    common: true,
  },
  {
    name: "max_tokens",
    label: "Max tokens",
    hint: "Tokens of an answer at most",
    min: 1,
    max: 1e9,
    step: 1,
    common: true,
  },
  {
    name: "seed",
    label: "Seed",
    hint: "The same seed draws the same answer; empty draws a new one",
    min: 0,
    max: 2 ** 53 - 1,
    step: 1,
    common: true,
  },
  {
    name: "top_k",
    label: "Top-k",
    hint: "Draws from so many of the likeliest tokens; 0 is all",
    min: 0,
    max: 1e9,
    step: 1,
  },
  {
    name: "min_p",
    label: "Min-p",
    hint: "Leaves out tokens below this share of the likeliest one",
    min: 0,
    max: 1,
    step: 0.01,
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    hint: "Against tokens that were there",
    min: -2,
    max: 2,
    step: 0.1,
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    hint: "Against tokens by how often they were there",
    min: -2,
    max: 2,
    step: 0.1,
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    hint: "Divides the scores of tokens that were there; 1 is none",
    min: 0.01,
    max: 100,
    step: 0.01,
  },
];

/** Reads and writes the panel. */
export class SettingsForm {
  readonly #system = byId("system", HTMLTextAreaElement);
  readonly #format = byId("format", HTMLSelectElement);
  readonly #schema = byId("schema", HTMLTextAreaElement);
  readonly #schemaField = byId("schema-field", HTMLElement);
  readonly #schemaError = byId("schema-error", HTMLElement);
  readonly #stop = byId("stop-strings", HTMLTextAreaElement);
  readonly #probabilities = byId("probabilities", HTMLInputElement);
  readonly #numbers = new Map<string, [HTMLInputElement, HTMLElement]>();
  #settings!: Settings;

  /** @param changed called when a field has another value, right or not */
  constructor(changed: (settings: Settings) => void) {
    for (const field of FIELDS) {
      byId(field.common ? "sampling" : "sampling-more", HTMLElement)
        .append(this.#numberField(field));
    }
    byId("settings", HTMLElement).addEventListener("input", ({ target }) => {
      if ((target as HTMLElement).id === "api-key") return;
      this.#read();
      changed(this.#settings);
    });
    byId("sampling-reset", HTMLButtonElement).addEventListener("click", () => {
      this.#settings.sampling = {};
      this.show(this.#settings);
      changed(this.#settings);
    });
  }

  #numberField({ name, label, hint, min, max, step }: NumberField) {
    const id = `sampling-${name}`;
    const input = h("input", {
      id,
      type: "number",
      min,
      max,
      step: step === 1 ? 1 : "any",
      inputmode: step === 1 ? "numeric" : "decimal",
      placeholder: name === "seed" ? "random" : "default",
      autocomplete: "off",
      "aria-describedby": `${id}-hint ${id}-error`,
    });
    const error = h("p", { id: `${id}-error`, class: "error" });
    this.#numbers.set(name, [input, error]);
    return h(
      "div",
      { class: "field" },
      h("label", { for: id, title: hint }, label),
      h("span", { id: `${id}-hint`, class: "sr" }, hint),
      input,
      error,
    );
  }

  /** Shows settings, which it changes from now on. */
  show(settings: Settings) {
    this.#settings = settings;
    const { sampling } = settings;
    this.#system.value = settings.system;
    this.#format.value = settings.format;
    this.#schema.value = settings.schema;
    this.#stop.value = (sampling.stop ?? []).join("\n");
    this.#probabilities.checked = settings.probabilities;
    for (const { name } of FIELDS) {
      this.#numbers.get(name)![0].value = `${sampling[name] ?? ""}`;
    }
    this.problem();
  }

  #read() {
    const sampling: Sampling = {};
    for (const { name } of FIELDS) {
      const [{ value, validity }] = this.#numbers.get(name)!;
      if (value !== "" && validity.valid) sampling[name] = Number(value);
    }
    const stop = this.#stop.value.split("\n").filter((line) => line !== "");
    if (stop.length > 0) sampling.stop = stop;
    Object.assign(this.#settings, {
      system: this.#system.value,
      sampling,
      format: this.#format.value as Format,
      schema: this.#schema.value,
      probabilities: this.#probabilities.checked,
    });
    this.problem();
  }

  /** What is wrong with the fields, in words beside them; the first is returned. */
  problem(): string | undefined {
    const problems: string[] = [];
    const tell = (field: HTMLElement, place: HTMLElement, words = "") => {
      place.textContent = words;
      if (words === "") field.removeAttribute("aria-invalid");
      else {
        field.setAttribute("aria-invalid", "true");
        problems.push(words);
      }
    };
    for (const { name, label, min, max, step } of FIELDS) {
      const [input, error] = this.#numbers.get(name)!;
      const whole = step === 1 ? "a whole number" : "a number";
      const most = max < 1e9 ? ` to ${max}` : " on";
      const range = `${label} must be ${whole} from ${min}${most}`;
      tell(input, error, input.validity.valid ? "" : range);
    }
    const needed = this.#format.value === "json_schema";
    this.#schemaField.hidden = !needed;
    tell(
      this.#schema,
      this.#schemaError,
      needed ? schemaProblem(this.#schema.value) : "",
    );
    return problems[0];
  }
}
