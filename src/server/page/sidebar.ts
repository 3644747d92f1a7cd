/** The list of conversations. */
import { byId, h, iconButton } from "./dom.ts";
import type { Conversation } from "./types.ts";

/** What can be done in it. */
export interface SidebarActions {
  open(id: string): void;
  remove(id: string): void;
}

/** Shows the conversations; the last used one first. */
export class Sidebar {
  readonly #list = byId("conversations", HTMLElement);
  readonly #actions: SidebarActions;

  constructor(actions: SidebarActions) {
    this.#actions = actions;
  }

  show(conversations: readonly Conversation[], current: Conversation) {
    const items = conversations.map(({ id, title }) =>
      h(
        "li",
        {},
        h("button", {
          type: "button",
          class: "conversation",
          title,
          "aria-current": id === current.id ? "true" : undefined,
          onclick: () => this.#actions.open(id),
        }, title),
        iconButton(
          "delete",
          `Delete “${title}”`,
          () => this.#actions.remove(id),
        ),
      )
    );
    this.#list.replaceChildren(
      ...items.length > 0
        ? items
        : [h("li", { class: "none" }, "Conversations will be listed here")],
    );
  }
}
