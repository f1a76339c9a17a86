"""Compare the gate and gradcheck with the answers of this folder.

    python compare.py gradcheck          runs torch's gradcheck and gradgradcheck at ordinary points and at kinks
    python compare.py table GATE.json    prints the summary and the table of second_set.md from a report of the gate

The first writes gradcheck.json.
"""

import collections
import importlib.util
import json
import sys
import tomllib
import warnings
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
ANSWERS = tomllib.loads((FOLDER / "answers.toml").read_text())
REASONS = ANSWERS.pop("reasons")
#: Where functions have kinks or jumps; 0 for those without an entry.
KINKS = {
    "APLModule": [0.0, 1.0],
    "ClippedGELU": [10.0],
    "NemoClamp": [-1.0, 1.0],
    "SReLU": [-1.0, 1.0],
    "TsaiSmeLU": [-2.0, 2.0],
    "apl": [0.0, 1.0],
    "hard_elish": [-1.0, 0.0, 1.0],
    "sqnl": [-2.0, 0.0, 2.0],
}
#: Those that need [batch, channels, time] with three channels.
CHANNELS = {"BigVGANSnakeBeta", "NemoSnake"}


def activations():
    """Yield name and a callable in float64 for every activation."""
    for stem in ANSWERS:
        spec = importlib.util.spec_from_file_location(stem, FOLDER / f"{stem}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in ANSWERS[stem]:
            value = getattr(module, name)
            value = value.make() if hasattr(value, "make") else value() if isinstance(value, type) else value
            yield name, value.double() if isinstance(value, torch.nn.Module) else value


def checked(check, function, points):
    """Return "passes", or the first line of what check raises."""
    inputs = (points.clone().requires_grad_(), *(function.parameters() if isinstance(function, torch.nn.Module) else ()))
    try:
        # the clone makes the input of an in-place activation no leaf
        check(lambda x, *_: function(x.clone()), inputs)
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return "passes"


def gradcheck():
    results = {}
    for name, function in activations():
        shape = (2, 3, 4) if name in CHANNELS else (24,)
        ordinary = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
        kinks = torch.tensor(KINKS.get(name, [0.0]), dtype=torch.float64)
        kinks = kinks.repeat(24)[:24].reshape(shape) if name in CHANNELS else kinks
        results[name] = {
            f"{check.__name__}, {where}": checked(check, function, points)
            for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck)
            for where, points in (("ordinary", ordinary), ("kinks", kinks))
        }
    (FOLDER / "gradcheck.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def judged(answer, failed):
    """Return the judgement of one activation from the laws that failed on it."""
    right = {law for kind in answer.get("kinds", ()) for law in REASONS[kind]}
    match answer["verdict"]:
        case "healthy":
            return "right" if failed <= set(answer.get("accept", ())) else "false alarm"
        case "skip":
            return "right" if failed <= {"locality"} else "false alarm"
        case "edge" if not failed:
            return "passed"
    return "right reason" if failed & right else "wrong reason" if failed else "missed"


def table(report):
    grad = json.loads((FOLDER / "gradcheck.json").read_text())
    failed = collections.defaultdict(set)
    for result in json.loads(Path(report).read_text())["results"]:
        if result["outcome"] == "failed":
            failed[result["activation"]].add(result["law"])
    counts = collections.Counter()
    lines = []
    for answers in ANSWERS.values():
        for name, answer in answers.items():
            judgement = judged(answer, failed[name])
            counts[answer["verdict"], judgement] += 1
            found = ", ".join(f"`{law}`" for law in sorted(failed[name])) or "-"
            kinds = ", ".join(answer.get("kinds", ())) or "-"
            marks = " | ".join("passes" if value == "passes" else "fails" for _, value in sorted(grad[name].items()))
            lines.append(f"| {name} | {answer['verdict']} | {kinds} | {found} | {judgement} | {marks} |")
    for (verdict, judgement), count in sorted(counts.items()):
        print(verdict, judgement, count)
    print(*lines, sep="\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:] == ["gradcheck"]:
        gradcheck()
    elif len(sys.argv) == 3 and sys.argv[1] == "table":
        table(sys.argv[2])
    else:
        sys.exit(__doc__)
