"""An audit has the numbers of the separate calls, and concludes what models are built to show."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relucheck
from relucheck.auditing import api, trained
from relucheck.auditing.outlook import outlook
from relucheck.auditing.result import Audit
from relucheck.bifurcation.wiring import probe_wiring
from relucheck.hits.rates import predict
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.results.store import StoreError
from relucheck.training.own import objective as own_objective
from relucheck.training.own.run import train_own
from relucheck.training.own.task import OwnBatches, OwnSettings, Task
from relucheck.training.settings import Optimiser
from relucheck.training.sitting import Interrupted
from tests.helpers.own_models import Convolutional, Drifting, Functional, Transformer, digits, drawn, mlp
from tests.oracles.plain_training import trained as plainly_trained

BATCHES = digits()


def audited(model: Any, batches: Any = BATCHES, **options: Any) -> Audit:
    return relucheck.audit(model, batches, **{"steps": 10, "compared": 2, "progress": False, **options})


@pytest.fixture(scope="module")
def dead() -> Audit:
    return audited(mlp(dead=4))


@pytest.fixture(scope="module")
def quiet() -> Audit:
    return audited(mlp())


def test_the_numbers_are_those_of_the_separate_calls(dead: Audit) -> None:
    model = mlp(dead=4).train()
    (part,) = dead.parts
    assert dead.wires == probe_wiring(model, BATCHES[0][0])
    for found, (x, y) in zip(part.examined.batches, BATCHES, strict=False):
        alone = relucheck.compare(model, x, y)
        assert (found.outcome, found.hits, found.activations) == (alone.outcome, alone.hit_count, alone.activation_count)
        assert (found.parameters, found.largest) == (len(alone.differences), alone.largest)
        assert found.zone == relucheck.explain(model, x, y, limit=0).zone == "bifurcation"
    calls = [relucheck.compare(model, x, y).calls for x, y in BATCHES[:2]]
    assert [(layer.site, layer.hits) for layer in part.examined.layers] == [
        (first.site, first.hit_count + second.hit_count) for first, second in zip(*calls, strict=True)
    ]
    expected = sum(layer.expected for x, _ in BATCHES[:2] for layer in predict(model, x))
    assert part.examined.expected(32) == pytest.approx(expected, rel=1e-12)  # two mini-batches of 16
    assert part.examined.expected(64) == pytest.approx(2 * expected, rel=1e-12)
    assert part.trained is not None
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    for s in (0.0, 1.0):
        losses = plainly_trained(model, BATCHES, F.cross_entropy, adam, 10, s)[1]
        assert part.trained.run(f"s = {s:g}").loss == sum(losses[5:]) / 5
    task = Task(model, BATCHES, F.cross_entropy, Optimiser())
    alone = train_own(task, OwnSettings(0, 10, Arithmetic(torch.float32), {}), lambda count, line: None)
    nudges = [one for one in alone.members if one.member.nudge is not None]
    assert part.trained.distance is not None
    assert part.trained.distance.nudges == tuple(one.steps.l2[-1] for one in nudges)


def test_a_model_whose_s_matters(dead: Audit) -> None:
    (part,) = dead.parts
    assert part.trained is not None
    assert part.trained.finding == "matters"
    assert part.trained.loss is not None
    assert part.trained.loss.left
    assert part.examined.hits == 2 * 16 * 4
    assert not dead.failed
    assert dead.conclusion.startswith("In float32 s matters here: s = 1 changes the training loss by -")


def test_a_model_without_hits(quiet: Audit) -> None:
    (part,) = quiet.parts
    assert part.trained is not None
    assert part.trained.finding == "no hits"
    assert [batch.finding for batch in part.examined.batches] == ["agree", "agree"]
    assert quiet.conclusion == (
        "In float32 s cannot matter here: none of 3,200 pre-activations within reach in 10 steps was exactly at a kink."
    )


def test_hits_whose_gradient_is_zero_have_no_effect() -> None:
    model = mlp(dead=4)
    with torch.no_grad():
        model.get_parameter("3.weight")[:, :4] = 0  # nothing follows the dead units
    audit = audited(model)
    assert audit.parts[0].trained is not None
    assert audit.parts[0].trained.finding == "no effect"
    assert "s makes no difference here: 640 of 3,200" in audit.conclusion


def test_a_model_that_is_not_deterministic_gives_no_claim() -> None:
    audit = audited(drawn(Drifting), compared=1)
    assert audit.void
    assert audit.failed
    assert audit.parts[0].trained is not None
    assert audit.parts[0].trained.finding == "void"
    assert "nothing can be concluded: control differed at step 1" in audit.conclusion
    assert ", so the model or the loss is not deterministic." in audit.conclusion
    page = audit.markdown()
    assert "Void: control differed" in page
    rows = [
        line.split(" | ")[0].split(":")[0] for line in page.rpartition("| run |")[2].splitlines()[2:] if line[:1] == "|"
    ]
    assert rows == ["| s = 0", "| control", "| s = 1", "| 5 nudges"]


def test_training_that_diverges_gives_no_claim() -> None:
    sgd = functools.partial(torch.optim.SGD, lr=1e30)
    assert "nothing can be concluded: training with s = 0 diverged" in audited(mlp(), optimiser=sgd).conclusion


FOUR: dict[str, Any] = {
    "mlp": (functools.partial(mlp), BATCHES),
    "functions": (functools.partial(lambda: Functional(mlp())), BATCHES),
    "convolutional": (Convolutional, digits(image=True)),
    "transformer": (functools.partial(Transformer, wrong=True), BATCHES),
}


@pytest.mark.parametrize("name", FOUR)
def test_the_wiring_fault_is_found_in_the_model_that_has_one(name: str) -> None:
    """The factory of the transformer takes the subgradient, and one of its blocks ignores it."""
    model, batches = FOUR[name]
    audit = audited(model, batches, steps=0, compared=1)
    assert [wire.site for wire in audit.faults] == (["blocks.1.act"] if name == "transformer" else [])
    assert audit.failed == (name == "transformer")
    assert ("wiring is faulty at 'blocks.1.act' (ignores)" in audit.conclusion) == audit.failed
    assert all(wire.verdict == "answers" for wire in audit.wires) == (name not in ("transformer", "functions"))
    assert not audit.unserved  # calls of F.relu take no setting, and are compared and trained all the same


def test_what_no_setting_reaches_is_named() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(nn.Linear(784, 4), nn.ReLU()), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.first(x)
            y = y - y.mean()
            return self.second(y * (y > 0)) + y.abs().sum()

    audit = audited(drawn(Written), steps=0, compared=1)
    assert {one.node for one in audit.parts[0].examined.unreached} >= {"AbsBackward0", "ReLU written out"}
    assert [wire.verdict for wire in audit.unserved] == ["out of reach"]
    assert "where it arrives" in audit.conclusion


@pytest.mark.parametrize("function", [torch.abs, lambda x: x * (x > 0)], ids=["abs", "written out"])
def test_zeros_at_kinks_out_of_reach_are_said_to_be_uncounted(function: Any) -> None:
    """Units that are exactly 0 meet a function that no setting reaches, beside ReLU modules without a hit."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.zeros = mlp(), nn.Linear(784, 2)
            nn.init.zeros_(self.zeros.weight)
            nn.init.zeros_(self.zeros.bias)

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(x) + function(self.zeros(x)).sum()

    audit = audited(Beside(), compared=1)
    assert audit.parts[0].trained is not None
    assert audit.parts[0].trained.finding == "no hits"
    assert audit.conclusion.endswith(
        "s cannot matter here: none of 3,200 pre-activations within reach in 10 steps was exactly at a kink; "
        "kinks out of reach (1 call) keep torch's gradient and were not counted."
    )


def test_arithmetics_are_audited_one_by_one() -> None:
    audit = audited(mlp(dead=2), arithmetics=["bfloat16", "mixed bfloat16"], steps=0, compared=1)
    assert [part.arithmetic for part in audit.parts] == ["bfloat16", "mixed bfloat16"]
    x, y = BATCHES[0]
    model = mlp(dead=2).bfloat16()
    alone = relucheck.compare(model, x.bfloat16(), y)
    assert audit.parts[0].examined.hits == alone.hit_count
    assert audit.parts[0].examined.batches[0].largest == alone.largest
    with torch.autocast("cpu", torch.bfloat16):
        mixed = relucheck.compare(mlp(dead=2), x, y)
    assert audit.parts[1].examined.batches[0].largest == mixed.largest
    assert "; in mixed bfloat16 " in audit.conclusion


def test_the_model_and_the_random_state_stay_as_they_are() -> None:
    model = drawn(Convolutional).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    audited(model, digits(image=True))
    assert torch.equal(random, torch.get_rng_state())
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_factory_draws_from_the_seed() -> None:
    one, other, third = (audited(lambda: mlp_from_the_generator(), seed=seed) for seed in (0, 0, 1))
    assert one.to_json() == other.to_json()
    assert one.to_json() != third.to_json()


def mlp_from_the_generator() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 10))


def test_an_interrupted_audit_goes_on(dead: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = OwnBatches.begin

    def interrupted(self: OwnBatches, epoch: int) -> None:
        if epoch == 7:
            raise KeyboardInterrupt
        begin(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(OwnBatches, "begin", interrupted)
        with pytest.raises(Interrupted, match="epoch 8 of 10"):
            audited(mlp(dead=4), folder=tmp_path)
    assert [path.name for path in (tmp_path / "float32").iterdir()] == ["seed-0.state"]
    assert audited(mlp(dead=4), folder=tmp_path).to_json() == dead.to_json()
    with pytest.raises(StoreError, match="belongs to another run: its settings loss is"):
        audited(mlp(dead=4), folder=tmp_path, loss=_doubled)


def _doubled(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 2 * F.cross_entropy(output, targets)


def test_an_audit_that_does_not_hand_on_s_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: training never sets s = 1."""
    monkeypatch.setattr(own_objective.Interception, "choose", lambda self, setting: None)
    with pytest.raises(AssertionError):
        test_a_model_whose_s_matters(audited(mlp(dead=4)))


def test_a_band_that_holds_everything_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: the band has no ends."""
    monkeypatch.setattr(trained, "prediction", lambda groups, level: (-700.0, 700.0))
    with pytest.raises(AssertionError):
        test_a_model_whose_s_matters(audited(mlp(dead=4)))


def test_a_check_of_the_wiring_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeded fault: the wiring is that of the model as it is built without a subgradient."""
    monkeypatch.setattr(api, "probe_wiring", lambda build, inputs: probe_wiring(Transformer(), inputs))
    with pytest.raises(AssertionError):
        test_the_wiring_fault_is_found_in_the_model_that_has_one("transformer")


def test_one_object_gives_text_markdown_and_json(dead: Audit) -> None:
    text, page, content = str(dead), dead.markdown(), json.loads(dead.json())
    assert max(map(len, text.splitlines())) <= 80
    assert " ".join(text.split()).startswith(dead.conclusion)
    assert page.splitlines()[2] == f"**{dead.conclusion}**"
    assert content["conclusion"] == dead.conclusion
    titles = ["Wiring", "Kinks out of reach", "Hits by layer", "Mini-batches", "Hits per training step", "Training"]
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == titles
    assert [line for line in text.splitlines() if line in titles] == titles
    assert "| s = 1 | " in page
    assert len(content["parts"][0]["trained"]["distances"]["s = 1"]) == 10


def test_hits_that_do_not_depend_on_rounding_are_predicted() -> None:
    """A channel of batch norm without weight and bias, and a branch that is 0 where its skip is."""
    model = drawn(Convolutional).train()
    with torch.no_grad():
        for name in ("norm.weight", "conv.weight", "conv.bias"):
            model.get_parameter(name)[0] = 0
    norm, total = outlook(model, digits(1, image=True)[0][0])
    assert norm.hits == norm.activations / 4
    assert norm.expected == pytest.approx(norm.hits, rel=1e-3)
    assert total.hits >= total.activations / 4
    assert total.expected == pytest.approx(total.hits, rel=1e-3)


def test_outlook_counts_what_compare_counts() -> None:
    model = drawn(Convolutional).train()
    (x, y), *_ = digits(image=True)
    found = outlook(model, x)
    assert [one.site for one in found] == [call.site for call in relucheck.compare(model, x, y).calls]
    assert [one.before for one in found] == ["batch norm", "residual sum"]
    assert all(one.expected is not None for one in found)
