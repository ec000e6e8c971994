"""GPT-2 124M, many recipes, one GPU, several workers.   python sweep.py OUT_DIR ISLAND SECONDS [small]"""
import contextlib, glob, json, math, os, random, sys, time, traceback
import numpy as np, torch, torch.nn.functional as F
from gpt2_nb_utils.model.gpt2 import GPT2, GPT2Config, padded_linear
from gpt2_nb_utils.training.optimizer import orthogonalise, parameters_by_kind
import gpt2_nb_utils.training.optimizer as om
from gpt2_nb_utils.tokenization.dataset import EpochSampler

OUT, ISLAND, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
SMALL = len(sys.argv) > 4
BEGUN = time.time()
DEV = "cuda" if torch.cuda.is_available() else "cpu"
os.makedirs(OUT, exist_ok=True)
TOKENS = torch.from_numpy(np.load(os.environ["TOKENS"]).astype(np.int64))
if SMALL: TOKENS = TOKENS[:1500]
CFG = GPT2Config(block_size=256 if SMALL else 1024, n_layer=2 if SMALL else 12, n_head=2 if SMALL else 12, n_embd=64 if SMALL else 768)
TOK = TOKENS.to(DEV)
N = len(TOKENS) - 1

def windows_of(T):
    n = -(-N // T)
    place = torch.arange(n, device=DEV)[:, None] * T + torch.arange(T, device=DEV)
    beyond = place >= N
    place = place.clamp(max=N - 1)
    return TOK[place].masked_fill(beyond, 0), TOK[place + 1].masked_fill(beyond, -100)

FIRST = {}
def first(seed):
    if seed not in FIRST:
        FIRST.clear()
        FIRST[seed] = {k: v.to(DEV) for k, v in GPT2(CFG, seed=seed).state_dict().items()}
    return FIRST[seed]

MODEL = GPT2(CFG, seed=1).to(DEV)
PARAMS = list(MODEL.parameters())
KINDS = parameters_by_kind(MODEL)
WTE, WPE = KINDS["embeddings"]
GRAPHS = {}
for p in PARAMS: p.grad = torch.zeros_like(p)

def token_losses(x, y):
    with torch.autocast(DEV, dtype=torch.bfloat16, cache_enabled=False):
        hidden = MODEL.hidden(x).flatten(0, 1)
        logits = padded_linear(hidden, MODEL.transformer.wte.weight)
    return F.cross_entropy(logits.float(), y.flatten(), ignore_index=-100, reduction="none").view(y.shape)

def micro(x, y):
    losses = token_losses(x, y)
    (losses.sum() / y.numel()).backward()
    return losses.detach().mean(1)

def fwd_bwd(B, T):
    """A function of (x, y) that fills .grad and returns window losses; a CUDA graph where possible."""
    if (B, T) in GRAPHS: return GRAPHS[B, T]
    if DEV != "cuda":
        def run(x, y):
            for p in PARAMS: p.grad.zero_()
            return micro(x, y)
        GRAPHS[B, T] = run
        return run
    sx, sy = torch.zeros(B, T, dtype=torch.long, device=DEV), torch.zeros(B, T, dtype=torch.long, device=DEV)
    grads = [p.grad for p in PARAMS]
    try:
        side = torch.cuda.Stream(); side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3): torch._foreach_zero_(grads); micro(sx, sy)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            torch._foreach_zero_(grads)
            loss = micro(sx, sy)
        def run(x, y):
            sx.copy_(x); sy.copy_(y); graph.replay()
            return loss
    except Exception:
        print("no graph:", traceback.format_exc(limit=2), flush=True)
        torch.cuda.synchronize()
        def run(x, y):
            torch._foreach_zero_(grads)
            return micro(x, y)
    GRAPHS[B, T] = run
    return run

@torch.no_grad()
def measure(T, params=None):
    x, y = windows_of(T)
    total, per = 0.0, []
    n = max(1, 16384 // T)
    for i in range(0, len(x), n):
        losses = token_losses(x[i:i + n], y[i:i + n])
        per.append(losses.sum(1))
    return torch.cat(per).double().sum().item() / N

BASE = dict(seed=1337, B=48, T=128, epochs=4.0, lr=0.02, emb=0.004, wpe=1.0, vec=0.002, mom=0.9, b1=0.9, b2=0.95, sched="linear", decay=0.5, warm=0.05, clip=1.0,
            iters=5, nor=0, order="shuffle", cut=0.0, avg=0.0, wd=0.0, mom_end=0.0, opt="muon", embmuon=0)
AXES = dict(B=[16, 24, 32], lr=[0.0085, 0.01, 0.012, 0.014, 0.017, 0.02, 0.024], emb=[0.003, 0.004, 0.005, 0.006, 0.0075], wpe=[0.06, 0.12, 0.25, 0.4], vec=[0.001, 0.002, 0.004, 0.006],
            mom=[0.7, 0.8, 0.85, 0.9], b1=[0.9, 0.95, 0.97], b2=[0.97, 0.98, 0.99], decay=[0.5, 0.6, 0.7, 0.85], warm=[0.02, 0.05], clip=[0.0, 1.0])

def factor(p, c):
    if p < c["warm"]: return max(p / c["warm"], 0.02)
    start = max(c["warm"], 1 - c["decay"])
    if p <= start: return 1.0
    u = (p - start) / (1 - start)
    return 1 - u if c["sched"] == "linear" else 0.5 * (1 + math.cos(math.pi * u))

def run(c, bests):
    begun = time.time()
    MODEL.load_state_dict(first(c["seed"]))
    x, y = windows_of(c["T"])
    n = len(x); B = c["B"]
    total_steps = round(c["epochs"] * n / B)
    fb = fwd_bwd(B, c["T"])
    wte_buffer = torch.zeros_like(WTE) if c["embmuon"] else None
    adam_groups = [dict(params=[] if c["embmuon"] else [WTE], lr=c["emb"], peak=c["emb"], weight_decay=c["wd"]), dict(params=[WPE], lr=1, peak=c["emb"] * c["wpe"], weight_decay=0.0),
                   dict(params=KINDS["vectors"], lr=1, peak=c["vec"], weight_decay=0.0)]
    muon_on = c["opt"] == "muon"
    if not muon_on: adam_groups.append(dict(params=KINDS["matrices"] + KINDS["qkv"], lr=1, peak=c["lr"], weight_decay=c["wd"]))
    adam_groups = [g for g in adam_groups if g["params"]]
    adam = torch.optim.AdamW(adam_groups, betas=(c["b1"], c["b2"]), fused=DEV == "cuda")
    mats = {}
    for name, parts in (("matrices", 1), ("qkv", 3)):
        for p in KINDS[name]: mats.setdefault((tuple(p.shape), parts), []).append(p)
    buffers = {k: [torch.zeros_like(p) for p in ps] for k, ps in mats.items()}
    second = {}
    om.ITERATIONS = c["iters"]
    sampler = EpochSampler(n, c["seed"], True)
    last_loss = torch.full((n,), 99.0, device=DEV)
    queue, epoch = [], 0
    curve, aborted = [], False
    smooth = None
    saved = None
    for step in range(total_steps):
        while len(queue) < B:
            order = list(sampler._order_of(0 if c["order"] == "same" else epoch))
            if c["cut"] and epoch >= 2:  # the best-known windows are left out of this epoch
                bound = torch.quantile(last_loss, c["cut"]).item()
                keep = (last_loss > bound).cpu().numpy()
                order = [i for i in order if keep[i]]
            queue += order; epoch += 1
        idx = torch.tensor([int(i) for i in queue[:B]], device=DEV); queue = queue[B:]
        loss = fb(x[idx], y[idx])
        last_loss[idx] = loss
        mean = loss.mean()
        smooth = mean.clone() if smooth is None else smooth.lerp(mean, 0.1)
        if c["clip"]: torch.nn.utils.clip_grad_norm_(PARAMS, c["clip"])
        f = factor((step + 0.5) / total_steps, c)
        for g in adam.param_groups: g["lr"] = g["peak"] * f
        adam.step()
        if c["embmuon"]:
            with torch.no_grad():
                wte_buffer.lerp_(WTE.grad, 1 - c["mom"])
                o = orthogonalise(WTE.grad.lerp(wte_buffer, c["mom"])[None], torch.bfloat16)[0].float()
                WTE.add_(o, alpha=-(f * c["emb"] / o.square().mean().sqrt()).item())
        if muon_on:
            m = c["mom"]
            if c["mom_end"]:
                m = c["mom_end"] + (c["mom"] - c["mom_end"]) * min(1, 2 * f)
            with torch.no_grad():
                for key, ps in mats.items():
                    parts = key[1]
                    grads = [p.grad for p in ps]
                    torch._foreach_lerp_(buffers[key], grads, 1 - m)
                    d = torch._foreach_lerp(grads, buffers[key], m)
                    stacked = torch.stack([q for g in d for q in g.chunk(parts, dim=1)])
                    n_in, n_out = stacked.shape[1:]
                    o = orthogonalise(stacked, torch.bfloat16 if DEV == "cuda" else torch.float32).float()
                    if c["nor"]:  # NorMuon: each output neuron's updates divided by their running size (weights are stored (in, out))
                        sq = o.square().mean(1, keepdim=True)
                        if key not in second: second[key] = torch.zeros_like(sq)
                        second[key].lerp_(sq, 0.05)
                        before = o.norm(dim=(1, 2), keepdim=True)
                        o = o / (second[key] / (1 - 0.95 ** (step + 1))).sqrt().add(1e-8)
                        o = o * (before / o.norm(dim=(1, 2), keepdim=True))
                    o = o.split(parts)
                    if c["wd"]: torch._foreach_mul_(ps, 1 - f * c["lr"] * c["wd"])
                    torch._foreach_add_(ps, [torch.cat(list(u), dim=1) if parts > 1 else u[0] for u in o], alpha=-f * c["lr"] * math.sqrt(max(1, n_out / n_in)))
        if c["avg"] and step >= total_steps * (1 - c["avg"]):
            if saved is None: saved, count = [p.detach().clone() for p in PARAMS], 1
            else:
                count += 1
                torch._foreach_lerp_(saved, [p.detach() for p in PARAMS], 1 / count)
        if step % max(1, total_steps // 10) == total_steps // 10 - 1:
            s = smooth.item()
            curve.append(round(s, 4))
            if not math.isfinite(s) or (bests and len(curve) in (6, 8, 9) and s > 1.6 * bests[len(curve) - 1] and s > 0.3):
                aborted = True
                break
    result = {"config": c, "steps": total_steps, "tokens": total_steps * B * c["T"], "curve": curve, "aborted": aborted}
    result["loss"] = 9.0 if aborted else measure(c["T"])
    if saved is not None and not aborted:
        with torch.no_grad(): torch._foreach_copy_(PARAMS, saved)
        result["loss_averaged"] = measure(c["T"])
    result["seconds"] = round(time.time() - begun, 1)
    return result

def diff(c): return {k: v for k, v in c.items() if v != BASE.get(k)}

def read():
    out = []
    for path in glob.glob(f"{OUT}/r_*.json"):
        with contextlib.suppress(Exception): out.append(json.load(open(path)))
    return out

ISLANDS = json.loads(os.environ.get("ISLANDS", "[48, 32, 24, 16]"))
PLAN = json.loads(os.environ.get("PLAN", "{}")).get(str(ISLAND), [])
B0 = ISLANDS[ISLAND]
rng = random.Random(100 + ISLAND)
tried, number = set(), 0
queue = [{**BASE, "B": B0, "epochs": 5.0, "wpe": 0.25, "b1": 0.95, "b2": 0.98, "emb": 0.006, "lr": 0.014, "decay": 0.7, **p} for p in PLAN]
print("worker", ISLAND, "ready after", round(time.time() - BEGUN, 1), flush=True)
longest = 0
while time.time() - BEGUN + longest < SECONDS:
    everything = read()
    own = sorted((r for r in everything if not r["aborted"]), key=lambda r: r["loss"])
    if queue: c = queue.pop(0)
    elif os.environ.get("PLAN_ONLY"): break
    else:
        pool = own[:2] or everything or [{'config': dict(BASE, B=B0)}]
        base = dict(pool[0 if rng.random() < 0.7 or len(pool) < 2 else 1]["config"])
        done = {json.dumps(r["config"], sort_keys=True) for r in everything}
        for _ in range(200):
            c = dict(base)
            for axis in rng.sample(list(AXES), rng.choice([1, 2, 2, 3])):
                values = AXES[axis]
                i = values.index(c[axis]) if c[axis] in values else 0
                near = [values[j] for j in (i - 1, i + 1) if 0 <= j < len(values)]
                c[axis] = rng.choice(near)
            if json.dumps(c, sort_keys=True) not in done: break
    try:
        r = run(c, own[0]["curve"] if own and len(own[0]["curve"]) >= 9 else None)
    except Exception:
        print("failed", diff(c), traceback.format_exc(limit=3), flush=True)
        continue
    r["at"] = round(time.time() - BEGUN, 1)
    json.dump(r, open(f"{OUT}/r_{ISLAND}_{number}.json", "w")); number += 1
    longest = max(longest, r["seconds"]) if number > 1 else longest
    print(f"{ISLAND} {r['loss']:.4f}" + (f" avg {r['loss_averaged']:.4f}" if "loss_averaged" in r else "") + f" {r['tokens']} {r['seconds']}s {diff(c)} {r['curve']}", flush=True)
