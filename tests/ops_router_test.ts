/** The router against its definition in float64. */
import { assert, assertEquals } from "@std/assert";
import { Kernels, type RouterShape } from "../ffi/mod.ts";
import { route, type RouterConfig } from "./reference/router.ts";
import {
  assertClose,
  assertSameBits,
  type Floats,
  kernelSets,
  normals,
} from "./support/ops.ts";

/** A gate of the family, and how the library is told of it. */
interface Gate {
  experts: number;
  config: RouterConfig;
  shape: Pick<RouterShape, "scoring" | "groupScore">;
}

const v2 = { model_type: "deepseek_v2", routed_scaling_factor: 16 };
const v3 = { model_type: "deepseek_v3", routed_scaling_factor: 2.5 };
const gates: Record<string, Gate> = {
  "greedy": {
    experts: 64,
    config: {
      ...v2,
      num_experts_per_tok: 6,
      routed_scaling_factor: 1,
      topk_method: "greedy",
    },
    shape: { scoring: "softmax", groupScore: "none" },
  },
  "group_limited_greedy": {
    experts: 160,
    config: {
      ...v2,
      num_experts_per_tok: 6,
      topk_method: "group_limited_greedy",
      n_group: 8,
      topk_group: 3,
    },
    shape: { scoring: "softmax", groupScore: "max" },
  },
  "noaux_tc": {
    experts: 256,
    config: {
      ...v3,
      num_experts_per_tok: 8,
      topk_method: "noaux_tc",
      n_group: 8,
      topk_group: 4,
      norm_topk_prob: true,
    },
    shape: { scoring: "sigmoid", groupScore: "top2_sum" },
  },
  "noaux_tc of an odd size": {
    experts: 21,
    config: {
      ...v3,
      num_experts_per_tok: 5,
      topk_method: "noaux_tc",
      n_group: 3,
      topk_group: 2,
      norm_topk_prob: false,
    },
    shape: { scoring: "sigmoid", groupScore: "top2_sum" },
  },
  "noaux_tc of one group": {
    experts: 384,
    config: {
      ...v3,
      num_experts_per_tok: 8,
      topk_method: "noaux_tc",
      n_group: 1,
      topk_group: 1,
      norm_topk_prob: true,
    },
    shape: { scoring: "sigmoid", groupScore: "none" },
  },
};

function routerShape({ experts, config, shape }: Gate): RouterShape {
  return {
    ...shape,
    n_routed_experts: experts,
    num_experts_per_tok: config.num_experts_per_tok,
    n_group: config.n_group ?? 1,
    topk_group: config.topk_group ?? 1,
    normalise: config.norm_topk_prob ?? false,
    factor: config.routed_scaling_factor,
  };
}

const ROWS = 33;

/** Random rows; row 0 all alike, row 1 in seven steps (ties), row 2 far apart, row 3 far below 0. */
function makeLogits(experts: number): Floats {
  const logits = normals(ROWS * experts, 21);
  for (let e = 0; e < experts; e++) {
    logits[e] = 0.5;
    logits[experts + e] = e % 7;
    logits[2 * experts + e] *= 5;
    logits[3 * experts + e] -= 80;
  }
  return logits;
}

for (const set of kernelSets) {
  for (const [name, gate] of Object.entries(gates)) {
    Deno.test(`router() chooses and weighs as ${name} (${set})`, async () => {
      using kernels = new Kernels({ threads: 2, kernels: set });
      const { experts, config } = gate;
      const k = config.num_experts_per_tok;
      const biased = config.model_type !== "deepseek_v2";
      // Mostly negative selections, which a mask of 0 would lose to.
      const bias = normals(experts, 22, 0.3).map((b) => b - 1);
      const logits = makeLogits(experts);
      // Equal scores stay equal only with equal biases.
      if (biased) bias.fill(-0.75, 0, 9);
      const chosen = await kernels.router(
        logits,
        routerShape(gate),
        biased ? kernels.tensor(bias) : undefined,
      );
      assertEquals(chosen.experts.length, ROWS * k);
      for (let row = 0; row < ROWS; row++) {
        const expected = route(
          config,
          Float64Array.from(
            logits.subarray(row * experts, (row + 1) * experts),
          ),
          biased ? Float64Array.from(bias) : undefined,
        );
        assertEquals(
          Array.from(chosen.experts.subarray(row * k, (row + 1) * k)),
          expected.map(({ expert }) => expert),
          `experts of row ${row}`,
        );
        assertClose(
          chosen.weights.subarray(row * k, (row + 1) * k),
          expected.map(({ weight }) => weight),
          2e-6 * config.routed_scaling_factor,
          `weights of row ${row}`,
        );
      }
    });

    Deno.test(`router() gives a row the same bits alone, as ${name} (${set})`, async () => {
      using kernels = new Kernels({ threads: 3, kernels: set });
      const { experts, config } = gate;
      const k = config.num_experts_per_tok;
      const logits = makeLogits(experts);
      const shape = routerShape(gate);
      const together = await kernels.router(logits, shape);
      for (const row of [0, 1, 2, 17, ROWS - 1]) {
        const alone = await kernels.router(
          logits.slice(row * experts, (row + 1) * experts),
          shape,
        );
        const slice = [row * k, (row + 1) * k] as const;
        assertEquals(
          Array.from(alone.experts),
          Array.from(together.experts.subarray(...slice)),
        );
        assertSameBits(
          alone.weights,
          together.weights.slice(...slice),
          `row ${row}`,
        );
      }
    });
  }

  Deno.test(`router() gives experts outside the kept groups the score 0 (${set})`, async () => {
    using kernels = new Kernels({ threads: 1, kernels: set });
    // Group 1 wins; of its experts one underflows to the 0 of those excluded, and index decides.
    const { experts, weights } = await kernels.router(
      new Float32Array([3, 2, 4, -200]),
      {
        n_routed_experts: 4,
        num_experts_per_tok: 2,
        n_group: 2,
        topk_group: 1,
        scoring: "softmax",
        groupScore: "max",
        normalise: false,
        factor: 1,
      },
    );
    assertEquals(Array.from(experts), [2, 0]);
    assertEquals(weights[1], 0);
  });

  Deno.test(`router() chooses existing experts whatever the logits (${set})`, async () => {
    using kernels = new Kernels({ threads: 1, kernels: set });
    for (const gate of Object.values(gates)) {
      for (const value of [NaN, Infinity, -Infinity]) {
        const logits = makeLogits(gate.experts).fill(value, 0, gate.experts);
        const { experts } = await kernels.router(logits, routerShape(gate));
        const first = experts.subarray(0, gate.config.num_experts_per_tok);
        assert(first.every((e) => e >= 0 && e < gate.experts));
        assertEquals(new Set(first).size, first.length);
      }
    }
  });
}
