/** Server-sent events, as the chat endpoint sends them: lines of `data: …`. */

/** The data of each event of a body. */
export async function* eventData(
  body: ReadableStream<Uint8Array>,
): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(/\r?\n/);
      rest = done ? "" : lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trimStart();
      }
      if (done) return;
    }
  } finally {
    // Whoever stops reading leaves, and the server stops writing.
    await reader.cancel().catch(() => {});
  }
}
