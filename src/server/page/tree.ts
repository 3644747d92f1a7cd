/** Conversations as trees: editing or repeating a turn adds a branch and loses none. */
import type { Conversation, Settings, Turn } from "./types.ts";

/** A conversation without turns. */
export function newConversation(settings: Settings): Conversation {
  return {
    id: crypto.randomUUID(),
    title: "",
    updated: Date.now(),
    settings: structuredClone(settings),
    turns: [],
    shown: {},
  };
}

/** The turns that follow another one, oldest first; `""` for the first turns. */
export function branches({ turns }: Conversation, parent: string): Turn[] {
  return turns.filter((turn) => turn.parent === parent);
}

/** The turn that is shown after another one. */
function next(conversation: Conversation, parent: string): Turn | undefined {
  const list = branches(conversation, parent);
  const chosen = conversation.shown[parent];
  return list.find(({ id }) => id === chosen) ?? list.at(-1);
}

/** The branch that is shown, from its first turn to its last. */
export function path(conversation: Conversation): Turn[] {
  const list: Turn[] = [];
  for (
    let turn = next(conversation, "");
    turn !== undefined;
    turn = next(conversation, turn.id)
  ) list.push(turn);
  return list;
}

/** The turns up to one, from the first to itself. */
export function pathTo(conversation: Conversation, id: string): Turn[] {
  const byId = new Map(conversation.turns.map((turn) => [turn.id, turn]));
  const list: Turn[] = [];
  for (let turn = byId.get(id); turn; turn = byId.get(turn.parent)) {
    list.unshift(turn);
  }
  return list;
}

/** Adds a turn after another one and shows it. */
export function addTurn(
  conversation: Conversation,
  turn: Omit<Turn, "id">,
): Turn {
  const added = { ...turn, id: crypto.randomUUID() };
  conversation.turns.push(added);
  conversation.shown[turn.parent] = added.id;
  conversation.updated = Date.now();
  if (conversation.title === "" && turn.role === "user") {
    conversation.title = titleOf(turn.text);
  }
  return added;
}

/** Shows the branch beside a turn: 1 for the next, -1 for the one before. */
export function showBeside(
  conversation: Conversation,
  turn: Turn,
  step: 1 | -1,
) {
  const list = branches(conversation, turn.parent);
  const beside = list[list.findIndex(({ id }) => id === turn.id) + step];
  if (beside) conversation.shown[turn.parent] = beside.id;
}

const LONGEST_TITLE = 48;

/** A title from the first words of a text. */
export function titleOf(text: string): string {
  const line = text.trim().replace(/\s+/g, " ");
  if (line.length <= LONGEST_TITLE) return line;
  const cut = line.slice(0, LONGEST_TITLE + 1);
  const space = cut.lastIndexOf(" ");
  // Not in the middle of a word, nor of a pair of surrogates.
  const end = space > LONGEST_TITLE / 2 ? space : LONGEST_TITLE;
  return `${cut.slice(0, end).toWellFormed().replace(/\ufffd$/, "")}…`;
}
