/** Light or dark: what the system says, or what was chosen. Runs before the page is drawn. */

const KEY = "moela.theme";

/** What can be chosen. */
export type Theme = "system" | "light" | "dark";

/** What was chosen. */
export function theme(): Theme {
  try {
    const kept = localStorage.getItem(KEY);
    return kept === "light" || kept === "dark" ? kept : "system";
  } catch {
    return "system";
  }
}

/** Shows a theme and keeps it. */
export function setTheme(chosen: Theme) {
  document.documentElement.dataset.theme = chosen;
  try {
    localStorage.setItem(KEY, chosen);
  } catch {
    // It holds until the page is left.
  }
}

document.documentElement.dataset.theme = theme();
