"""Tiny models of the transformers library with their outputs and gradients: the oracle of tests/tests/hf_models.rs.

    python tests/torch/hf_models.py write [NAME ..] # tests/golden/hf/NAME: a checkpoint and expected.safetensors
    cargo test -p moe-tests --test hf_models -- --ignored export
    python tests/torch/hf_models.py check           # transformers loads what that wrote to target/hf-export/NAME

`write` needs transformers 5 and takes seconds. Weights and tokens are drawn from one generator, case after case, also
for those that are not written: a new case goes to the end and leaves the others as they are. expected.safetensors has
the tokens [B, S + 1], the logits [B, S, V] (of a long case those of the last positions only), the loss that transformers
minimises (cross entropy and its auxiliary loss with its coefficient), the auxiliary loss without it (0 of a model without
experts), and the gradient of
every tensor of the checkpoint under its name. A fused case is another one as transformers 5 holds it in memory: the
matrices of all experts in one tensor. It has the same weights, and nothing expected of its own.
"""

import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/hf"
EXPORT = ROOT / "target/hf-export"

BATCH, LENGTH, VOCABULARY = 2, 9, 19

# Largest difference of a logit between a model and its copy that went through our program.
TOLERANCE = 1e-6
# The same where sums are taken in another order.
REARRANGED = 1e-5

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}

COMMON = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "output_router_logits": True,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": None,
}

DENSE = {name: value for name, value in COMMON.items() if name != "output_router_logits"}

CASES = {
    "mixtral": MixtralConfig(
        **COMMON,
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=6,
        num_local_experts=5,
        num_experts_per_tok=3,
        router_aux_loss_coef=0.02,
    ),
    "mixtral-bf16": MixtralConfig(
        **COMMON,
        hidden_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=10,
        num_local_experts=3,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    ),
    "olmoe": OlmoeConfig(
        **COMMON,
        hidden_size=12,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=5,
        num_experts=7,
        num_experts_per_tok=3,
        norm_topk_prob=False,
    ),
    "olmoe-normalised-sharded": OlmoeConfig(
        **COMMON,
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=6,
        num_experts=5,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **{**COMMON, "num_hidden_layers": 3},
        hidden_size=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=10,
        moe_intermediate_size=5,
        num_experts=5,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 50.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "beta_fast": 2.0,
            "beta_slow": 0.5,
        },
    ),
    "qwen3-moe-sparse-step": Qwen3MoeConfig(
        **COMMON,
        hidden_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=8,
        moe_intermediate_size=7,
        num_experts=3,
        num_experts_per_tok=1,
        norm_topk_prob=False,
        decoder_sparse_step=2,
        rms_norm_eps=1e-3,
    ),
    "olmoe-padding": OlmoeConfig(
        **{**COMMON, "pad_token_id": 1},
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=3,
        num_experts=5,
        num_experts_per_tok=2,
    ),
    "qwen3-moe-padding-tied": Qwen3MoeConfig(
        **{**COMMON, "pad_token_id": 0},
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=6,
        moe_intermediate_size=3,
        num_experts=5,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    ),
    "olmoe-f16": OlmoeConfig(
        **COMMON,
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=3,
        num_experts=5,
        num_experts_per_tok=2,
    ),
    "mixtral-long": MixtralConfig(
        **{**COMMON, "max_position_embeddings": 260},
        hidden_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=34,
        intermediate_size=5,
        num_local_experts=3,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    ),
    "llama": LlamaConfig(
        **DENSE,
        hidden_size=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=10,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": MistralConfig(
        **DENSE,
        hidden_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=7,
        sliding_window=None,
    ),
    "qwen3": Qwen3Config(
        **DENSE,
        hidden_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=9,
        tie_word_embeddings=True,
    ),
}

SHARDED = {"olmoe-normalised-sharded": "4KB"}
DTYPES = {"mixtral-bf16": torch.bfloat16, "olmoe-f16": torch.float16}
# Batch, length, and of how many of the last positions the logits are kept.
SHAPES = {"mixtral-long": (1, 257, 4)}
# Every third token is that for padding.
PADDED = {"olmoe-padding", "qwen3-moe-padding-tied"}
# The case whose weights they have.
FUSED = {
    "mixtral-fused": "mixtral",
    "olmoe-normalised-sharded-fused": "olmoe-normalised-sharded",
    "qwen3-moe-fused": "qwen3-moe",
}
# What became of a case without experts: other tensors, the same logits.
UPCYCLED = {"llama-upcycled": "llama", "mistral-upcycled": "mistral", "qwen3-upcycled": "qwen3"}
# Its router keeps every token of layer 0 away from the last expert.
UNCHOSEN = {"qwen3-moe"}


def build(config):
    """Weights large enough for every part to matter."""
    model = AutoModelForCausalLM.from_config(config, **EAGER)
    for name, parameter in model.named_parameters():
        norm = parameter.ndim == 1
        parameter.data = 1 + 0.2 * torch.randn_like(parameter) if norm else 0.35 * torch.randn_like(parameter)
    return model.float().eval()


def avoid_last_expert(model):
    """A channel that every token has, which the last expert's score falls with."""
    model.model.embed_tokens.weight.data[:, 0] = 4.0
    layer = model.model.layers[0]
    layer.post_attention_layernorm.weight.data[0] = 1.0
    layer.mlp.gate.weight.data[-1] = 0.0
    layer.mlp.gate.weight.data[-1, 0] = -5.0


def load(folder):
    """In f32, and only if every tensor has its place."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **EAGER, output_loading_info=True
    )
    left = {kind: names for kind, names in report.items() if names}
    assert not left, f"{folder}: transformers did not take every tensor: {left}"
    return model.eval()


def has_experts(config):
    return getattr(config, "num_experts_per_tok", None) is not None


def run(model, tokens):
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    # The targets are shifted here, so that every token has a target and the auxiliary loss sees the same tokens.
    router = {"output_router_logits": True} if has_experts(model.config) else {}
    return model(input_ids=inputs, labels=targets, shift_labels=targets, **router)


def gradients(model, folder):
    """The gradients in the layout of a checkpoint: those of a model whose weights they are."""
    other = copy.deepcopy(model)
    for to, parameter in zip(other.parameters(), model.parameters()):
        to.data = parameter.grad.clone()
    other.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    shutil.rmtree(folder)
    return {f"grad.{name}": tensor for name, tensor in tensors.items()}


def draw_tokens(name, config):
    batch, length, _ = SHAPES.get(name, (BATCH, LENGTH, None))
    tokens = torch.randint(VOCABULARY, (batch, length + 1))
    if name in PADDED:
        tokens[:, ::3] = config.pad_token_id
    return tokens


def write_case(name, config, folder):
    shutil.rmtree(folder, ignore_errors=True)
    model = build(config)
    if name in UNCHOSEN:
        avoid_last_expert(model)
    model = model.to(DTYPES.get(name, torch.float32))
    save(model, folder, max_shard_size=SHARDED.get(name, "1GB"))
    # From the files, so that nothing but the weights was ever rounded.
    model = load(folder)
    tokens = draw_tokens(name, config)
    output = run(model, tokens)
    output.loss.backward()
    if name in UNCHOSEN:
        chosen = output.router_logits[0].topk(config.num_experts_per_tok).indices
        assert (chosen != config.num_experts - 1).all(), "every token was to avoid the last expert"
    kept = SHAPES.get(name, (None, None, tokens.shape[1]))[2]
    expected = {
        "tokens": tokens,
        "logits": output.logits.detach()[:, -kept:].contiguous(),
        "loss": output.loss.detach().reshape(1),
        "balance": output.aux_loss.detach().reshape(1) if has_experts(config) else torch.zeros(1),
        **gradients(model, folder / "gradients"),
    }
    save_file(expected, folder / "expected.safetensors")


def write_fused(name, other):
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    save(load(GOLDEN / other), folder, max_shard_size=SHARDED.get(other, "1GB"), save_original_format=False)


def save(model, folder, **how):
    model.save_pretrained(folder, **how)
    (folder / "generation_config.json").unlink(missing_ok=True)


def write(names):
    torch.manual_seed(20)
    for name, config in CASES.items():
        with tempfile.TemporaryDirectory() as other:
            write_case(name, config, GOLDEN / name if name in names else Path(other) / name)
    for name in FUSED.keys() & names:
        write_fused(name, FUSED[name])
    write_defaults()


def write_defaults():
    """Every field of a configuration that was told nothing."""
    classes = (MixtralConfig, OlmoeConfig, Qwen3MoeConfig, LlamaConfig, MistralConfig, Qwen3Config)
    defaults = {config.model_type: config().to_dict() for config in classes}
    (GOLDEN / "defaults.json").write_text(json.dumps(defaults, indent=1, sort_keys=True) + "\n")


def check_case(name, golden, tolerance, same_loss=True):
    expected = load_file(GOLDEN / golden / "expected.safetensors")
    with torch.no_grad():
        output = run(load(EXPORT / name), expected["tokens"])
    kept = expected["logits"].shape[1]
    error = (output.logits[:, -kept:] - expected["logits"]).abs().max().item()
    loss = abs(output.loss.item() - expected["loss"].item()) if same_loss else 0.0
    files = sorted(path.name for path in (EXPORT / name).iterdir())
    print(f"{name:26} logits differ by {error:.1e}, loss by {loss:.1e}   {', '.join(files)}")
    assert error <= tolerance and loss <= tolerance, name


def main():
    if sys.argv[1:2] == ["write"]:
        write(set(sys.argv[2:]) or CASES.keys() | FUSED.keys())
    elif sys.argv[1:] == ["check"]:
        for name in CASES:
            check_case(name, name, TOLERANCE)
        for name, dense in UPCYCLED.items():
            check_case(name, dense, REARRANGED, same_loss=False)
    else:
        sys.exit(__doc__)


main()
