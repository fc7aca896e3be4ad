"""The same models in PyTorch, for train_cpu.py and decode.py, which start this file where torch can be imported.

Reads a JSON request a line on standard input and answers with one on standard output, so that it computes only while it
is asked to. Needs torch and numpy alone; transformers only for the stock models.

- Attention: `scaled_dot_product_attention` with is_causal.
- Mamba: the scan step by step, time unbound first, over decays and inputs made at once.
- Mamba-2: the chunked form of Dao & Gu 2024 (arXiv:2405.21060), section 6, in einsums, all chunks at once.
- stock: MambaForCausalLM and Mamba2ForCausalLM of transformers, which take their slow path on a CPU.
- released: any folder that transformers loads, to read prompts and write on.
"""

import json
import math
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-5


class Norm(nn.Module):
    def __init__(self, width, **_):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.scale.shape, self.scale, EPSILON)


class Attention(nn.Module):
    def __init__(self, width, heads, rotary_base, **_):
        super().__init__()
        self.heads, self.rotary_base = heads, rotary_base
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x):
        batch, time_, width = x.shape
        q, k, v = self.qkv(x).view(batch, time_, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        cos, sin = self.rotations(time_, q.shape[-1])
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, time_, width))

    def rotations(self, time_, size):
        angles = torch.outer(torch.arange(time_), self.rotary_base ** (-torch.arange(0, size, 2) / size))
        return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class MLP(nn.Module):
    def __init__(self, width, hidden, **_):
        super().__init__()
        self.enter = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.out(F.gelu(self.enter(x), approximate="tanh"))


class Convolution(nn.Module):
    """Depthwise and causal, then silu; torch's own conv1d."""

    def __init__(self, channels, taps):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x):
        channels, taps = self.weight.shape
        y = F.conv1d(x.transpose(1, 2), self.weight[:, None], self.bias, padding=taps - 1, groups=channels)
        return F.silu(y[..., : x.shape[1]].transpose(1, 2))


class Mamba(nn.Module):
    def __init__(self, width, inner, rank, state, taps, **_):
        super().__init__()
        self.sizes = [rank, state, state]
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = Convolution(inner, taps)
        self.x = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, u):
        x, z = self.enter(u).chunk(2, dim=-1)
        x = self.convolution(x)
        low, B, C = self.x(x).split(self.sizes, dim=-1)
        dt = F.softplus(self.dt(low))
        y = selective_scan(x, dt, -self.A_log.exp(), B, C) + self.D * x
        return self.out(y * F.silu(z))


def selective_scan(x, dt, A, B, C):
    decays = torch.exp(dt[..., None] * A)
    inputs = (dt * x)[..., None] * B[:, :, None, :]
    h, ys = torch.zeros_like(inputs[:, 0]), []
    for decay, new, read in zip(decays.unbind(1), inputs.unbind(1), C.unbind(1), strict=True):
        h = torch.addcmul(new, decay, h)
        ys.append(torch.bmm(h, read[..., None])[..., 0])
    return torch.stack(ys, dim=1)


class Mamba2(nn.Module):
    def __init__(self, width, inner, heads, state, groups, taps, **_):
        super().__init__()
        self.inner, self.heads, self.state, self.groups = inner, heads, state, groups
        channels = inner + 2 * groups * state
        self.enter = nn.Linear(width, inner + channels + heads, bias=False)
        self.convolution = Convolution(channels, taps)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm_scale = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, u):
        batch, time_, _ = u.shape
        size = self.groups * self.state
        z, xBC, dt = self.enter(u).split([self.inner, self.inner + 2 * size, self.heads], dim=-1)
        x, B, C = self.convolution(xBC).split([self.inner, size, size], dim=-1)
        x = x.view(batch, time_, self.heads, -1)
        B, C = (a.view(batch, time_, self.groups, -1) for a in (B, C))
        dt = F.softplus(dt + self.dt_bias)
        y = ssd(x, dt, -self.A_log.exp(), B, C) + self.D[:, None] * x
        y = y.reshape(batch, time_, self.inner) * F.silu(z)
        grouped = y.view(batch, time_, self.groups, -1)
        grouped = F.rms_norm(grouped, grouped.shape[-1:], None, EPSILON)
        return self.out(grouped.reshape(y.shape) * self.norm_scale)


CHUNK = 64


def ssd(x, dt, A, B, C):
    """Within chunks as masked attention, between chunks by their states; T is a multiple of CHUNK."""
    batch, time_, heads, size = x.shape
    chunks = time_ // CHUNK
    B, C = (a.repeat_interleave(heads // a.shape[2], dim=2) for a in (B, C))
    x, B, C = (a.reshape(batch, chunks, CHUNK, heads, -1) for a in (x * dt[..., None], B, C))
    total = (dt * A).view(batch, chunks, CHUNK, heads).permute(0, 3, 1, 2).cumsum(-1)  # b h c q
    within = segment_decays(total)
    y = torch.einsum("bcqhn,bcshn,bhcqs,bcshp->bcqhp", C, B, within, x)
    states = torch.einsum("bcshn,bhcs,bcshp->bchpn", B, torch.exp(total[..., -1:] - total), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    between = segment_decays(F.pad(total[..., -1], (1, 0)).cumsum(-1))
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    y = y + torch.einsum("bcqhn,bchpn,bhcq->bcqhp", C, states, torch.exp(total))
    return y.reshape(batch, time_, heads, size)


def segment_decays(total):
    """exp(total_q - total_s) where s <= q, else 0."""
    mask = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool).tril()
    return torch.exp((total[..., :, None] - total[..., None, :]).masked_fill(~mask, -torch.inf))


class Layer(nn.Module):
    def __init__(self, kind, width, sizes):
        super().__init__()
        self.norm = Norm(width)
        self.mixer = {"*": Attention, "-": MLP, "S": Mamba, "M": Mamba2}[kind](width, **sizes)

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class LanguageModel(nn.Module):
    def __init__(self, pattern, width, vocabulary, sizes):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList([Layer(kind, width, sizes[kind]) for kind in pattern])
        self.norm = Norm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


# Our name of a layer's parameter -> (its name here, in transformers); matrices are transposed on the way.
NAMES = {
    "norm.scale": ("norm.scale", "norm.weight"),
    "mixer.qkv": ("mixer.qkv.weight", None),
    "mixer.enter": ("mixer.enter.weight", "mixer.in_proj.weight"),
    "mixer.out": ("mixer.out.weight", "mixer.out_proj.weight"),
    "mixer.conv": ("mixer.convolution.weight", "mixer.conv1d.weight"),
    "mixer.conv_bias": ("mixer.convolution.bias", "mixer.conv1d.bias"),
    "mixer.x": ("mixer.x.weight", "mixer.x_proj.weight"),
    "mixer.dt": ("mixer.dt.weight", "mixer.dt_proj.weight"),
    "mixer.A_log": ("mixer.A_log", "mixer.A_log"),
    "mixer.D": ("mixer.D", "mixer.D"),
    "mixer.norm_scale": ("mixer.norm_scale", "mixer.norm.weight"),
}
ENDS = {
    "embedding": ("embedding.weight", "backbone.embeddings.weight"),
    "norm.scale": ("norm.scale", "backbone.norm_f.weight"),
    "output": ("head.weight", "lm_head.weight"),
}
MATRICES = {"mixer.qkv", "mixer.enter", "mixer.out", "mixer.x", "mixer.dt", "output"}


def load(model, pattern, arrays, stock):
    """Copies our weights; every parameter is given exactly once."""
    parameters = dict(model.named_parameters())
    for name, array in arrays.items():
        if name.startswith("layers."):
            _, position, rest = name.split(".", 2)
            period = len(pattern) // len(array)
            if rest == "mixer.dt_bias":  # Mamba's is its projection's bias
                names = {"S": ("mixer.dt.bias", "mixer.dt_proj.bias"), "M": ("mixer.dt_bias", "mixer.dt_bias")}
                target = names[pattern[int(position)]][stock]
            else:
                target = NAMES[rest][stock]
            prefix = "backbone.layers." if stock else "layers."
            pieces = [(f"{prefix}{i * period + int(position)}.{target}", piece) for i, piece in enumerate(array)]
        else:
            rest, pieces = name, [(ENDS[name][stock], array)]
        for target, piece in pieces:
            parameter = parameters.pop(target)
            value = torch.from_numpy(np.ascontiguousarray(piece.T if rest in MATRICES else piece))
            with torch.no_grad():
                parameter.copy_(value.reshape(parameter.shape))
    if parameters:
        raise SystemExit(f"these parameters have no counterpart: {sorted(parameters)}")


def stock_model(pattern, width, vocabulary, sizes):
    import transformers

    transformers.logging.set_verbosity_error()
    kind, layers = pattern[0], len(pattern)
    common = dict(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, state_size=sizes[kind]["state"],
        expand=sizes[kind]["inner"] // width, conv_kernel=sizes[kind]["taps"], layer_norm_epsilon=EPSILON,
        use_bias=False, use_conv_bias=True, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    if kind == "S":
        config = transformers.MambaConfig(**common, time_step_rank=sizes[kind]["rank"])
        return transformers.MambaForCausalLM(config)
    heads, groups = sizes[kind]["heads"], sizes[kind]["groups"]
    config = transformers.Mamba2Config(
        **common, num_heads=heads, head_dim=sizes[kind]["inner"] // heads, n_groups=groups, chunk_size=CHUNK
    )
    return transformers.Mamba2ForCausalLM(config)


class Job:
    """A model, its optimizer and its batch."""

    def __init__(self, pattern, width, vocabulary, sizes, weights, undecayed, optimizer, stock):
        self.stock = stock
        self.model = (stock_model if stock else LanguageModel)(pattern, width, vocabulary, sizes)
        with np.load(weights) as arrays:
            arrays = dict(arrays)
            self.tokens, self.targets = (torch.from_numpy(arrays.pop(n)).long() for n in ("tokens", "targets"))
            load(self.model, pattern, arrays, stock)
        self.clip = optimizer.pop("clip")
        decay = optimizer.pop("weight_decay")
        # like ours: norms, biases, scales, A_log and D are not decayed
        still = [p for n, p in self.model.named_parameters() if is_undecayed(n, undecayed)]
        rest = [p for n, p in self.model.named_parameters() if not is_undecayed(n, undecayed)]
        groups = [{"params": rest, "weight_decay": decay}, {"params": still, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, fused=True, **optimizer)
        self.decayed = sum(p.numel() for p in rest)

    def step(self):
        logits = self.model(self.tokens)
        logits = logits.logits if self.stock else logits
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.item(), norm.item()


def is_undecayed(name, names):
    """By name, like workbench.train.optimizer; transformers' norms are called norm too."""
    *above, last = name.split(".")
    return last in names or last.endswith(("_bias", "_scale")) or any("norm" in part for part in (*above, last))


class Released:
    """A folder's model under transformers, and how fast it reads prompts and writes on, the likeliest token each."""

    def __init__(self, folder, prompts):
        import transformers

        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.from_pretrained(folder)
        if hasattr(config, "chunk_size"):
            config.chunk_size = CHUNK  # of its Mamba-2, which keeps [T, chunk, H, N]: 256 takes four times the memory
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config).eval()
        self.prompts = torch.tensor(prompts)

    def read(self):
        return self.model(self.prompts, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def prompt(self, **_):
        start = time.perf_counter()
        out = self.read()
        return {"seconds": time.perf_counter() - start, "logits": out.logits[:, -1].tolist()}

    @torch.inference_mode()
    def generate(self, tokens):
        times = []

        def clock(ids, scores, **_):
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        found = self.model.generate(
            self.prompts, attention_mask=torch.ones_like(self.prompts), do_sample=False, stopping_criteria=[clock],
            max_new_tokens=tokens + 1, pad_token_id=0,
        )  # fmt: skip
        return {"seconds": (times[-1] - times[0]) / tokens, "tokens": found[:, self.prompts.shape[1] :].tolist()}


def answer(jobs, request):
    do = request.pop("do")
    if do == "facts":
        facts = {"torch": torch.__version__.split("+")[0], "torch_threads": torch.get_num_threads()}
        try:
            import transformers

            facts["transformers"] = transformers.__version__
        except ImportError:
            pass
        return facts
    if do == "make":
        jobs.clear()
        jobs["job"] = job = Job(**request)
        return {"parameters": sum(p.numel() for p in job.model.parameters()), "decayed": job.decayed}
    if do == "steps":
        start = time.perf_counter()
        results = [jobs["job"].step() for _ in range(request["steps"])]
        seconds = (time.perf_counter() - start) / request["steps"]
        return {"seconds": seconds, "losses": [r[0] for r in results], "norms": [r[1] for r in results]}
    if do == "load":
        jobs.clear()
        jobs["job"] = job = Released(**request)
        return {"parameters": sum(p.numel() for p in job.model.parameters())}
    if do in ("prompt", "generate"):
        return getattr(jobs["job"], do)(**request)
    raise ValueError(f"unknown request {do!r}")


def main():
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints stays out of the conversation
    torch.set_num_threads(int(sys.argv[1]))
    jobs = {}
    for line in sys.stdin:
        result = answer(jobs, json.loads(line))
        if not all(map(math.isfinite, result.get("losses", []))):
            raise SystemExit("the loss is not finite")
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
