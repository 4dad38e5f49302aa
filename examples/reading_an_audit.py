"""Reading an audit: what a run says of its leakage, and one figure made again from the raw outputs.

    python examples/reading_an_audit.py runs/digits

Shapes: S shadows, Q ways each image was shown, N images of the pool, K classes.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

run = Path(sys.argv[1])
result = json.loads((run / "result.json").read_text(encoding="utf-8"))
audit = result["audit"]
if audit is None:
    sys.exit(f"{run} has no audit; make one with: kr audit {run}")

# How it was made: few shadows, or much held fixed, make a weak audit.
print(f"mode {audit['mode']}, {audit['shadows']} shadows, {audit['images']} images")
print(f"held fixed: {', '.join(audit['held_fixed'])}")
print(f"declared beforehand: {audit['primary_attack']}; any other maximum is partly luck\n")

# The sanity row first: attacks that cannot find overfitted classifiers say nothing of the others.
for target, attacks in result["privacy"].items():
    name = max(attacks, key=lambda each: attacks[each]["auc"] or 0.0)
    low, high = attacks[name]["ci95"]["auc"]
    at_one_percent = attacks[name]["tpr_at_fpr"]["0.01"]
    found = "too few images" if at_one_percent is None else f"{100 * at_one_percent:.1f} %"
    print(f"{target:52} {name:18} AUC {attacks[name]['auc']:.3f} ({low:.3f} to {high:.3f})", end="")
    print(f"  members found at 1 % false alarms: {found}")

# One of these figures from the raw outputs: how sure the student is of its answer, whatever the
# label, as log(p / (1 - p)) of the largest probability p.
target = "student" if audit["mode"] == "pipeline" else "teacher"
saved = np.load(run / "audit/members.npz")
members, kinds = saved["members"], saved["kinds"]  # [S,N] who was IN; [N], 0: an image of the set
pool = members.shape[1]
shadows = sorted(run.glob("audit/shadow-*/signals.npz"))
logits = np.stack([np.load(shadow)[target][:, :pool] for shadow in shadows])  # [S,Q,N,K]

ordered = np.sort(logits.astype(np.float64), axis=-1)
log_odds = ordered[..., -1] - np.logaddexp.reduce(ordered[..., :-1], axis=-1)  # [S,Q,N]
confidence = log_odds.mean(axis=1)  # [S,N]

often = members.sum(axis=0)
judged = (kinds == 0) & (np.minimum(often, len(members) - often) >= 2)
inside, scores = members[:, judged].ravel(), confidence[:, judged].ravel()
false_alarms, found, _ = roc_curve(inside, scores)

reported = result["privacy"][target]["confidence"]
print(f"\n{target}, confidence, from audit/shadow-*/signals.npz:")
print(f"  AUC {roc_auc_score(inside, scores):.6f}, reported {reported['auc']:.6f}")
rate = found[false_alarms <= 0.1].max()
print(
    f"  members found at 10 % false alarms {rate:.6f}, reported {reported['tpr_at_fpr']['0.1']:.6f}"
)
