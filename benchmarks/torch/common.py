"""What the scripts beside it share: the conversation with moe-bench, the clocks, and numbers both sides can make.

The conversation is one JSON object a line: moe-bench asks on stdin, the answer goes to stdout. An answer with the key
"error" holds one sentence for the person at the terminal.
"""

import json
import os
import sys
import time
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

NEEDED = "install torch 2.9 or later and transformers 5 or later for it"


def answer(reply):
    print(json.dumps(reply), flush=True)


def give_up(message):
    """Ends the program with an answer to whatever is asked first."""
    answer({"error": " ".join(str(message).split())})
    sys.exit(1)


try:
    import torch
    import transformers
except ImportError as missing:
    give_up(f"{sys.executable} has no module `{missing.name}`: {NEEDED}")

try:
    import transformers.integrations.moe  # noqa: F401
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts  # noqa: F401
except ImportError:
    give_up(f"transformers {transformers.__version__} of {sys.executable} is too old: {NEEDED}")

if not (hasattr(torch.nn.functional, "grouped_mm") or hasattr(torch, "_grouped_mm")):
    give_up(f"torch {torch.__version__} of {sys.executable} is too old: {NEEDED}")

grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MASK = (1 << 32) - 1
CHUNK = 1 << 24


def mixed(first, count, seed, device):
    """`count` integers below 2^32 from number `first` on: the same ones as `mixed` in src/data.rs."""
    h = torch.arange(first, first + count, dtype=torch.int64, device=device)
    h = (h * 2654435761 + seed * 2246822519) & MASK
    for _ in range(2):
        h = ((h ^ (h >> 16)) * 0x45D9F3B) & MASK
    return h ^ (h >> 16)


def hashed(shape, seed, scale, device):
    """Numbers in `-scale..scale`, f32, the same ones as `hashed` in src/data.rs."""
    count = 1
    for size in shape:
        count *= size
    out = torch.empty(count, dtype=torch.float32, device=device)
    for first in range(0, count, CHUNK):
        h = mixed(first, min(CHUNK, count - first), seed, device)
        out[first : first + h.numel()] = ((h >> 8).to(torch.float32) / (1 << 23) - 1) * scale
    return out.view(shape)


def prepare(request):
    """Threads and device of a request for a set-up."""
    torch.set_num_threads(request["threads"])
    if request["device"] == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} of {sys.executable} sees no CUDA device")
    return torch.device(request["device"])


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(device, action):
    """Wall and process time of `action` in seconds, and its value."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    value = action()
    wait(device)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, value


def converse(commands):
    """Answers requests until stdin ends; `commands` maps the key "do" to a function of the request."""
    commands["versions"] = lambda _request: versions()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(commands[request["do"]](request))
        except Exception as error:
            give_up(f"{type(error).__name__}: {error}")
