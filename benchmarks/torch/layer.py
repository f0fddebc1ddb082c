"""One Mixture-of-Experts layer in PyTorch, on the numbers moe-bench uses.

hf eager, hf grouped_mm   the sparse block of Hugging Face's Mixtral, router included, with either implementation of experts
dense ffn                 a SwiGLU network of width K * F: the same active FLOPs without routing
torch grouped_mm          CUDA only: the two grouped products and the activation on rows that are sorted already
torch matmul              CUDA only: dense products of the same FLOPs
"""

import math

import common
import torch
import torch.nn.functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

TOKENS, ROUTER, W_IN, W_OUT = 1, 2, 3, 4


def make_block(shape, dtype, device):
    tokens, width, hidden, experts, top_k = (shape[name] for name in ("tokens", "d_model", "d_hidden", "experts", "top_k"))
    config = MixtralConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    config._experts_implementation = "eager"
    with torch.device("meta"):
        block = MixtralSparseMoeBlock(config)
    block = block.to_empty(device=device)
    router = common.hashed((width, experts), ROUTER, math.sqrt(3 / width), device)
    router[0] = -shape["skew"] * torch.log(torch.arange(1, experts + 1, device=device, dtype=torch.float32))
    w_in = common.hashed((experts, width, 2 * hidden), W_IN, 1 / math.sqrt(width), device)
    w_out = common.hashed((experts, hidden, width), W_OUT, 1 / math.sqrt(hidden), device)
    with torch.no_grad():
        block.gate.weight.copy_(router.t())
        block.experts.gate_up_proj.copy_(w_in.transpose(1, 2))
        block.experts.down_proj.copy_(w_out.transpose(1, 2))
    return block.to(dtype).train()


def make_tokens(shape, dtype, device):
    tokens = common.hashed((shape["tokens"], shape["d_model"]), TOKENS, math.sqrt(3), device)
    tokens[:, 0] = 1
    return tokens.to(dtype)


class Contestant:
    """A module on its own tokens; `leaves` are all tensors that get a gradient."""

    def __init__(self, forward, inputs, weights):
        self.forward, self.inputs = forward, inputs
        self.leaves = [inputs.requires_grad_(), *weights]

    def forget_gradients(self):
        for leaf in self.leaves:
            leaf.grad = None

    def output(self):
        return self.forward(self.inputs)

    def train(self):
        output = self.output()
        torch.autograd.backward(output, self.upstream(output))
        return output

    def upstream(self, output):
        if not hasattr(self, "_upstream"):
            outputs = output if isinstance(output, tuple) else (output,)
            self._upstream = tuple(torch.ones_like(one) for one in outputs)
        return self._upstream


def of_block(block, implementation, tokens):
    def forward(inputs):
        block.experts.config._experts_implementation = implementation
        return block(inputs.unsqueeze(0)).squeeze(0)

    return Contestant(forward, tokens.clone(), block.parameters())


def parameter(shape, dtype, device):
    return torch.randn(shape, device=device).mul_(1 / math.sqrt(shape[-2])).to(dtype).requires_grad_()


def dense_ffn(shape, tokens):
    width, hidden = shape["d_model"], shape["top_k"] * shape["d_hidden"]
    first = torch.nn.Linear(width, 2 * hidden, bias=False, device=tokens.device, dtype=tokens.dtype)
    second = torch.nn.Linear(hidden, width, bias=False, device=tokens.device, dtype=tokens.dtype)

    def forward(inputs):
        gate, up = first(inputs).chunk(2, dim=-1)
        return second(F.silu(gate) * up)

    return Contestant(forward, tokens.clone(), [first.weight, second.weight])


def sorted_rows(block, tokens):
    """Rows sorted by expert, and the last row of each expert plus one."""
    with torch.no_grad():
        _, _, chosen = block.gate(tokens)
    experts, order = torch.sort(chosen.flatten())
    counts = torch.bincount(experts, minlength=block.experts.num_experts)
    return tokens[order // chosen.shape[1]], torch.cumsum(counts, 0).to(torch.int32)


def grouped_products(shape, block, tokens):
    rows, ends = sorted_rows(block, tokens)
    size = (shape["experts"], shape["d_model"], 2 * shape["d_hidden"])
    w_in = parameter(size, tokens.dtype, tokens.device)
    w_out = parameter((size[0], shape["d_hidden"], size[1]), tokens.dtype, tokens.device)

    def forward(inputs):
        gate, up = common.grouped_mm(inputs, w_in, offs=ends).chunk(2, dim=-1)
        return common.grouped_mm(F.silu(gate) * up, w_out, offs=ends)

    return Contestant(forward, rows, [w_in, w_out])


def dense_products(shape, tokens):
    rows = tokens.repeat_interleave(shape["top_k"], dim=0)
    w_in = parameter((shape["d_model"], 2 * shape["d_hidden"]), tokens.dtype, tokens.device)
    w_out = parameter((shape["d_hidden"], shape["d_model"]), tokens.dtype, tokens.device)
    hidden = parameter((rows.shape[0], shape["d_hidden"]), tokens.dtype, tokens.device)
    return Contestant(lambda inputs: (inputs @ w_in, hidden @ w_out), rows, [w_in, w_out, hidden])


class Layer:
    """The contestants of one shape."""

    def set_up(self, request):
        self.contestants = {}
        self.device = common.prepare(request)
        dtype = common.DTYPES[request["dtype"]]
        tokens, block = make_tokens(request, dtype, self.device), make_block(request, dtype, self.device)
        self.contestants = {
            "hf eager": of_block(block, "eager", tokens),
            "hf grouped_mm": of_block(block, "grouped_mm", tokens),
            "dense ffn": dense_ffn(request, tokens),
        }
        if self.device.type == "cuda":
            self.contestants["torch grouped_mm"] = grouped_products(request, block, tokens)
            self.contestants["torch matmul"] = dense_products(request, tokens)
        unable = self.drop_unable()
        return {"names": list(self.contestants), "unable": unable, **common.versions()}

    def drop_unable(self):
        """Takes out who fails on this shape; the reasons by name. torch.grouped_mm, for one, wants aligned widths."""
        unable = {}
        for name, contestant in list(self.contestants.items()):
            try:
                contestant.train()
            except Exception as error:
                unable[name] = " ".join(str(error).split())[:200]
                del self.contestants[name]
            contestant.forget_gradients()
        return unable

    def run(self, request):
        contestant = self.contestants[request["name"]]
        contestant.forget_gradients()
        action = contestant.train if request["backward"] else contestant.output
        time, _ = common.timed(self.device, action)
        contestant.forget_gradients()
        return time

    def result(self, request):
        """Writes output and token gradient of a block, `[2, T, D]` in f32."""
        contestant = self.contestants[request["name"]]
        contestant.forget_gradients()
        output = contestant.train()
        both = torch.stack([output.detach(), contestant.inputs.grad]).to(torch.float32)
        with open(request["path"], "wb") as file:
            file.write(both.cpu().numpy().astype("<f4").tobytes())
        return {"values": both.numel()}


if __name__ == "__main__":
    layer = Layer()
    common.converse({"set up": layer.set_up, "run": layer.run, "result": layer.result})
