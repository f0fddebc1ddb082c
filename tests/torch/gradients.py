"""Outputs and gradients of Mixture-of-Experts layers in PyTorch, f64: the oracle of tests/tests/torch_gradients.rs.

    python tests/torch/gradients.py > tests/golden/torch_gradients.json

Written from the equations, token by token, without a look at the Rust code: router softmax over all experts, top-K,
gates renormalised or not, experts y = act(x W_in + b_in) W_out + b_out with SwiGLU (gate columns first), exact GELU or
ReLU. The loss is sum(output * weight). Inputs come from the closed formula `numbers`, so that none is stored.
"""

import json

import torch
import torch.nn.functional as F

T, D, H, E, K = 7, 4, 3, 5, 2

CASES = [
    {"activation": "swiglu", "normalize": False, "bias": False},
    {"activation": "swiglu", "normalize": True, "bias": True},
    {"activation": "gelu", "normalize": True, "bias": False},
    {"activation": "gelu", "normalize": False, "bias": True},
    {"activation": "relu", "normalize": False, "bias": True},
]


def numbers(seed, *shape):
    """Exact multiples of 2^-20 in -1..1: the hash of Knuth's multiplier, its upper bits."""
    count = 1
    for size in shape:
        count *= size
    hashed = [((i + 1) * 2654435761 + seed * 40503 * 65537) % (1 << 32) for i in range(count)]
    values = [(h >> 11) / (1 << 20) - 1 for h in hashed]
    return torch.tensor(values, dtype=torch.float64).reshape(shape).requires_grad_()


def activate(name, hidden):
    if name == "swiglu":
        return F.silu(hidden[:H]) * hidden[H:]
    return F.gelu(hidden, approximate="none") if name == "gelu" else F.relu(hidden)


def layer(case, tokens, router, w_in, w_out, b_in, b_out):
    rows = []
    for x in tokens:
        probs = torch.softmax(x @ router, dim=0)
        gates, experts = torch.topk(probs, K)
        if case["normalize"]:
            gates = gates / gates.sum()
        row = torch.zeros(D, dtype=torch.float64)
        for gate, e in zip(gates, experts.tolist()):
            hidden = x @ w_in[e] + (b_in[e] if case["bias"] else 0)
            row = row + gate * (activate(case["activation"], hidden) @ w_out[e] + (b_out[e] if case["bias"] else 0))
        rows.append(row)
    return torch.stack(rows)


def golden(case):
    columns = 2 * H if case["activation"] == "swiglu" else H
    inputs = {
        "tokens": numbers(1, T, D),
        "router": numbers(2, D, E),
        "w_in": numbers(3, E, D, columns),
        "w_out": numbers(4, E, H, D),
        "b_in": numbers(5, E, columns),
        "b_out": numbers(6, E, D),
    }
    output = layer(case, *inputs.values())
    (output * numbers(7, T, D).detach()).sum().backward()
    used = {name: value for name, value in inputs.items() if case["bias"] or not name.startswith("b_")}
    flat = {"output": output.detach(), **{name: value.grad for name, value in used.items()}}
    return {**case, **{name: value.flatten().tolist() for name, value in flat.items()}}


if __name__ == "__main__":
    sizes = dict(zip(["tokens", "d_model", "d_hidden", "experts", "top_k"], [T, D, H, E, K]))
    cases = ",\n".join(json.dumps(golden(case)) for case in CASES)
    print(f'{{"torch": "{torch.__version__}", "sizes": {json.dumps(sizes)}, "cases": [\n{cases}\n]}}')
