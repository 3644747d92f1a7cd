"""What PyTorch gives for the kernels' shapes, to be run beside bench/cuda/*.cu on the same machine.

Usage: python3 bench/peers/torch_kernels.py --commit ID > bench/results/torch-kernels.csv

DeepSeek-V2-Lite in bf16: torch.mm (cuBLAS), torch._grouped_mm and scaled_dot_product_attention. Operands are
taken in turn from so many that none is still in the second-level cache; medians of five.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F

HIDDEN, HEADS, EXPERTS, CHOSEN, INNER = 2048, 16, 64, 6, 1408
COLD = 256 << 20  # bytes between two uses of an operand


def microseconds(call, operand_bytes):
    copies = max(2, min(64, COLD // operand_bytes + 1))
    for i in range(3):
        call(i % copies)
    times = []
    rounds = max(8, copies)
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for i in range(rounds):
            call(i % copies)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / rounds)
    return statistics.median(times), copies


def many(make, operand_bytes):
    return [make() for _ in range(max(2, min(64, COLD // operand_bytes + 1)))]


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def products(report):
    for name, n, k in [("q", 3072, HIDDEN), ("kv_a", 576, HIDDEN), ("output", HIDDEN, HIDDEN),
                       ("shared gate + up", 5632, HIDDEN), ("shared down", HIDDEN, 2816),
                       ("LM head", 102400, HIDDEN)]:
        weights = many(lambda: random(n, k), 2 * n * k)
        for rows in [1, 64, 256, 512, 4096]:
            if n > 50000 and rows > 256:
                continue
            x = random(rows, k)
            time, _ = microseconds(lambda i: torch.mm(x, weights[i].t()), 2 * n * k)
            report("torch.mm", name, rows, time, 2 * (n * k + rows * (n + k)), 2 * rows * n * k)


def experts(report):
    for name, n, k in [("experts gate + up", 2 * INNER, HIDDEN), ("experts down", HIDDEN, INNER)]:
        weights = [random(EXPERTS, n, k) for _ in range(2)]
        for rows in [64, 256, 512, 4096]:
            slots = rows * CHOSEN
            chosen = torch.rand(rows, EXPERTS, device="cuda").topk(CHOSEN).indices
            ends = torch.bincount(chosen.flatten(), minlength=EXPERTS).cumsum(0).to(torch.int32)
            x = random(slots, k)
            time, _ = microseconds(
                lambda i: torch._grouped_mm(x, weights[i % 2].transpose(-2, -1), offs=ends),
                2 * EXPERTS * n * k)
            report("torch._grouped_mm", name, rows, time,
                   2 * (EXPERTS * n * k + slots * (n + k)), 2 * slots * n * k)


def attention(report):
    for rows in [512, 4096, 16384]:
        q, k = (random(1, HEADS, rows, 192) for _ in range(2))
        v = random(1, HEADS, rows, 128)
        time, _ = microseconds(
            lambda _: F.scaled_dot_product_attention(q, k, v, is_causal=True), 2 * q.numel())
        report("scaled_dot_product_attention", "prefill, 192 and 128 dims", rows, time,
               2 * (q.numel() * 2 + v.numel() * 2), HEADS * rows * rows * (192 + 128))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--commit", required=True)
    commit = parser.parse_args().commit
    machine = torch.cuda.get_device_name()
    print("machine,commit,torch,call,kernel,rows,microseconds,gb_per_second,tflop_per_second")

    def report(call, kernel, rows, time, moved, operations):
        print(f'"{machine}",{commit},{torch.__version__},{call},"{kernel}",{rows},{time:.1f},'
              f"{moved / time / 1e3:.0f},{operations / time / 1e6:.1f}", flush=True)

    with torch.no_grad():
        for part in (products, experts, attention):
            try:
                part(report)
            except RuntimeError as error:
                print(f"# {part.__name__}: {error}".splitlines()[0], flush=True)


if __name__ == "__main__":
    main()
