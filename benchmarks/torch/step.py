"""One training step of Hugging Face's Mixtral in PyTorch: forward, cross-entropy, backward, clipping, AdamW.

Which implementation of experts and of AdamW is fastest is tried out first, and that one is measured.
"""

import common
import torch
import torch.nn.functional as F
from transformers import MixtralConfig, MixtralForCausalLM

EXPERTS = ("eager", "grouped_mm")
ADAMW = ("fused", "foreach", "for loop")
TRIES = 3
DATA = 1


def make_model(request, device, experts):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=request["vocab"],
        hidden_size=request["width"],
        intermediate_size=request["expert_width"],
        num_hidden_layers=request["layers"],
        num_attention_heads=request["heads"],
        num_key_value_heads=request["heads"],
        max_position_embeddings=request["context"],
        num_local_experts=request["experts"],
        num_experts_per_tok=request["top_k"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._experts_implementation = experts
    return MixtralForCausalLM(config).to(device=device, dtype=torch.float32).train()


def make_adamw(request, model, kind):
    flags = {"fused": kind == "fused", "foreach": kind == "foreach"}
    return torch.optim.AdamW(model.parameters(), lr=request["lr"], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, **flags)


class Step:
    """A model, its optimizer and the one batch both sides train on."""

    def set_up(self, request):
        self.device = common.prepare(request)
        self.request = request
        batch, context = request["batch"], request["context"]
        ids = common.mixed(0, batch * (context + 1), DATA, self.device) % request["vocab"]
        ids = ids.view(batch, context + 1)
        self.inputs, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        tried = {}
        experts = self.fastest(tried, [(name, "fused") for name in EXPERTS])[0]
        adamw = self.fastest(tried, [(experts, name) for name in ADAMW])[1]
        self.start(experts, adamw)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {"parameters": parameters, "experts": experts, "adamw": adamw, "tried": tried, **common.versions()}

    def start(self, experts, adamw):
        self.model = make_model(self.request, self.device, experts)
        self.optimizer = make_adamw(self.request, self.model, adamw)

    def fastest(self, tried, kinds):
        """The pair of experts and AdamW with the quickest step; `tried` gets the seconds of each."""

        def seconds(kind):
            name = ", ".join(kind)
            if name not in tried:
                self.start(*kind)
                tried[name] = min(self.step({})["wall"] for _ in range(TRIES))
            return tried[name]

        return min(kinds, key=seconds)

    def step(self, _request):
        time, loss = common.timed(self.device, self.take)
        return {**time, "loss": loss}

    def take(self):
        logits = self.model(input_ids=self.inputs).logits
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), self.targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.request["clip_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


if __name__ == "__main__":
    step = Step()
    common.converse({"set up": step.set_up, "step": step.step})
