"""The flags of `train` for the best recipe of a sweep.   python pick.py SWEEP_DIR"""
import glob, json, math, sys
rs = [json.load(open(p)) for p in glob.glob(sys.argv[1] + "/r_*.json")]
rs = [r for r in rs if not r["aborted"] and not r["config"].get("embmuon")]
best = min(rs, key=lambda r: r["loss"])
c = best["config"]
epochs = min(6.0, c["epochs"] + max(0.0, math.log(best["loss"] / 0.086) / 1.4))
if best["loss"] < 0.07: epochs = c["epochs"] - math.log(0.08 / best["loss"]) / 1.6
steps = round(epochs * 2641 / c["B"])
flags = dict(batch_size=c["B"], grad_accum=1, steps=steps, lr=c["lr"], embedding_lr=c["emb"], position_lr=c["emb"] * c["wpe"], vector_lr=c["vec"], momentum=c["mom"], beta1=c["b1"], beta2=c["b2"],
             optimizer="muon", lr_schedule="wsd", decay_share=c["decay"], warmup_steps=max(1, round(c["warm"] * steps)), clip_grad=c["clip"], eval_every=max(1, steps // 12), save_every=steps, sample_every=steps // 4)
print(" ".join(f"--{k} {v}" for k, v in flags.items()))
