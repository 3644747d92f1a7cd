/**
 * `POST /v1/tokenize`
 *
 * @module
 */
import { Fields } from "./fields.ts";
import { readMessages } from "./messages.ts";
import type { Service } from "./service.ts";
import { readTools } from "./tools.ts";

/**
 * Answers it: the ids that a prompt or a conversation would be, and the text of each.
 *
 * @throws ApiError
 */
export function tokenize(service: Service, body: unknown): Response {
  const { tokenizer, config } = service.model;
  const request = new Fields(body);
  service.checkModel(request);
  const encode = (): number[] => {
    if (request.value("messages") !== undefined) {
      const messages = readMessages(request);
      const length = messages.reduce((n, { content }) => n + content.length, 0);
      service.checkText(length, "messages");
      const tools = readTools(request)?.tools ?? [];
      return tokenizer.encode(service.format.messages(messages, tools), {
        addGenerationPrompt: request.boolean("add_generation_prompt"),
      });
    }
    const prompt = request.required("prompt", request.string("prompt"));
    service.checkText(prompt.length, "prompt");
    return tokenizer.encode(prompt, {
      addSpecialTokens: request.boolean("add_special_tokens"),
    });
  };
  const tokens = encode();
  return Response.json({
    count: tokens.length,
    max_model_len: config.max_position_embeddings,
    tokens,
    token_strs: tokenizer.pieces(tokens),
  });
}
