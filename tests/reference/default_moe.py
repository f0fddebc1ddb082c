"""Default MoE in PyTorch, dense and slow: five steps of gradient descent on one layer.

Writes tests/golden/default_moe.json, which tests/tests/suite/default_moe/torch.rs compares with the crate:

    python tests/reference/default_moe.py

Written from the paper's description (Panda, Baherwani et al., 2025, arXiv 2504.12463) and shares no code with the crate. All experts run
on all tokens; what an expert says about a token that did not choose it is then replaced by its running average. f64, CPU.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

TOKENS, WIDTH, HIDDEN, EXPERTS, CHOSEN = 7, 4, 3, 5, 2
STEPS, RATE, BETA = 5, 0.1, 0.8
RULES = ["mean", "weighted", "weighted-by-count"]
GOLDEN = Path(__file__).parent.parent / "golden" / "default_moe.json"


def draw(generator, *shape):
    # Exact in f32, so that the crate starts from the same numbers.
    return torch.rand(*shape, generator=generator, dtype=torch.float32).mul(2).sub(1).double()


def swiglu_experts(x, w_in, w_out):
    """Every expert on every token: [T, E, D]."""
    z = torch.einsum("td,edc->tec", x, w_in)
    gate, up = z[..., :HIDDEN], z[..., HIDDEN:]
    return torch.einsum("tef,efd->ted", F.silu(gate) * up, w_out)


def forward(x, params, average, rule):
    router, w_in, w_out = params
    probs = F.softmax(x @ router, dim=-1)
    top = probs.topk(CHOSEN, dim=-1).indices
    chosen = torch.zeros_like(probs, dtype=torch.bool).scatter(1, top, True)
    said = swiglu_experts(x, w_in, w_out)

    with torch.no_grad():
        mask = chosen.double()
        weight = mask if rule == "mean" else mask * probs
        total = torch.einsum("te,ted->ed", weight, said)
        divisor = weight.sum(0) if rule == "weighted" else mask.sum(0)
        busy = mask.sum(0) > 0
        mean = total / divisor.clamp_min(1e-300).unsqueeze(1)
        average = torch.where(busy.unsqueeze(1), BETA * average + (1 - BETA) * mean, average)

    value = torch.where(chosen.unsqueeze(-1), said, average.expand_as(said))
    return (probs.unsqueeze(-1) * value).sum(1), average


def run(start, batches, weights, rule):
    params = [p.clone().requires_grad_() for p in start]
    average = torch.zeros(EXPERTS, WIDTH, dtype=torch.float64)
    outputs = []
    for x, weight in zip(batches, weights):
        x = x.clone().requires_grad_()
        y, average = forward(x, params, average, rule)
        outputs.append(y.detach())
        grads = torch.autograd.grad((y * weight).sum(), [x, *params])
        with torch.no_grad():
            for p, g in zip(params, grads[1:]):
                p -= RATE * g
    names = ["grad_tokens", "grad_router", "grad_w_in", "grad_w_out"]
    last = dict(zip(names, grads))
    return {"rule": rule, "outputs": torch.stack(outputs), "average": average, **last}


def flat(value):
    if isinstance(value, torch.Tensor):
        return [float(f"{v:.9g}") for v in value.flatten().tolist()]
    return value


def main():
    g = torch.Generator().manual_seed(0)
    start = [draw(g, WIDTH, EXPERTS), draw(g, EXPERTS, WIDTH, 2 * HIDDEN), draw(g, EXPERTS, HIDDEN, WIDTH)]
    batches, weights = draw(g, STEPS, TOKENS, WIDTH), draw(g, STEPS, TOKENS, WIDTH)
    data = {
        "sizes": {"tokens": TOKENS, "width": WIDTH, "hidden": HIDDEN, "experts": EXPERTS, "chosen": CHOSEN},
        "steps": STEPS,
        "rate": RATE,
        "beta": BETA,
        "torch": torch.__version__.split("+")[0],
        **dict(zip(["router", "w_in", "w_out"], map(flat, start))),
        "tokens": flat(batches),
        "weights": flat(weights),
        "runs": [{k: flat(v) for k, v in run(start, batches, weights, rule).items()} for rule in RULES],
    }
    GOLDEN.write_text(json.dumps(data) + "\n")


if __name__ == "__main__":
    main()
