"""The parts of reproducing scripts in torch about modules.

They concern in-place variants, parameters, copies and global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from relucheck.gate.frameworks.of_torch.scripts.views import TorchViewScript
from relucheck.gate.frameworks.of_torch.views import filled, packed, seen
from relucheck.numerics.floats import Floats


def backward_runs(value: str) -> list[str]:
    """Return lines that assert that the backward of a value runs."""
    return [
        "try:",
        f"    {value}.sum().backward()",
        "except RuntimeError as error:",
        '    raise AssertionError("backward needs a value that was overwritten") from error',
    ]


class TorchModuleScript(TorchViewScript):
    """Writes those parts."""

    def _variant(self) -> list[str]:
        """Return lines that define the activation as ``act`` and its in-place variant as ``act_``."""
        subject = self.subject
        if callable(subject.activation.inplace):
            line = "act_ = act  # construct the in-place variant here"
        elif subject.is_module:
            line = "import copy; act_ = copy.deepcopy(act)" + ("" if subject.announces_inplace else "; act_.inplace = True")
        else:
            line = "act_ = act" if subject.announces_inplace else "act_ = lambda t: act(t, inplace=True)"
        return [*self.header(copying=False), line, *self.copying()]

    def in_place(self, x: float) -> str:
        return "\n".join(
            [
                *self._variant(),
                self.input([x]),
                "plain, = torch.autograd.grad(act(x).sum(), x)",
                "got, = torch.autograd.grad(act_(x * 1).sum(), x)",
                'print("in-place", got, "out of place", plain)',
                "assert torch.allclose(got, plain) and torch.allclose(act_(x.detach() * 1), act(x.detach()))",
            ]
        )

    def in_place_runs(self) -> str:
        lines = ["y = act_(x * 1)", "assert isinstance(y, torch.Tensor), y", *backward_runs("y")]
        return "\n".join([*self._variant(), self.input([0.5]), *lines])

    def after_saving(self, x: float) -> str:
        eps = self.eps
        return "\n".join(
            [
                *self._variant(),
                self.input([x]),
                "expected, = torch.autograd.grad(act(torch.tanh(x)).sum(), x)",
                "try:",
                "    got, = torch.autograd.grad(act_(torch.tanh(x)).sum(), x)",
                "except RuntimeError:",
                "    got = expected  # an error is right",
                'print("got", got, "expected", expected)',
                f"assert torch.allclose(got, expected, rtol={16 * eps:.3g}, atol={4 * eps:.3g})",
            ]
        )

    def parameter(self, name: str, x: Sequence[float], value: float | None = None, of: str = "parameter") -> str:
        step, slack = ("1e-4", "1e-3") if self.dtype == "float64" else ("0.0625", "0.1")
        layout = self.subject.layout
        spread = [] if layout.plain else [f"x = x.reshape{layout.unexpanded}.expand{layout.shape}.clone()"]
        p = f'act.get_parameter("{name}")'
        return self.text(
            f"x = torch.tensor({list(x)}, {self.place})",
            *spread,
            f"p = {p}" if of == "parameter" else f"{p}.data.fill_({value}); p = x.requires_grad_()",
            *([f"p.data.fill_({value})"] if of == "parameter" and value is not None else []),
            "loss = lambda c=1.0: (c * torch.linspace(-1, 2, x.numel()).reshape(x.shape).to(x) * act(x)).double().sum()",
            "g, twice = (torch.autograd.grad(loss(c), p, allow_unused=True)[0] for c in (1.0, 2.0))",
            f"h = {step}; p.data += h; up = loss(); p.data -= 2 * h; difference = ((up - loss()) / (2 * h)).item()",
            "assert g is not None and torch.allclose(twice, 2 * g, rtol=0.02, atol=1e-3), (g, twice)",
            f"assert abs(g.double().sum() - difference) <= {slack} * (1 + abs(g.double().sum())), (g, difference)",
        )

    def batch(self, shape: tuple[int, ...]) -> str:
        eps = 8 * self.eps
        return self.text(
            f"x = 3 * torch.sin(1.7 * torch.arange({math.prod(shape)}.0)).reshape({shape}).to({self.place})",
            "run = lambda x: torch.autograd.grad(act(x).sum(), [x, *act.parameters()])",
            "whole = run(x.requires_grad_())",
            "each = list(zip(*(run(sample.detach().requires_grad_()) for sample in x.split(1))))",
            "parts = [torch.cat(each[0]), *(sum(gradients) for gradients in each[1:])]",
            'print("batch", whole, "samples", parts)',
            f"assert all(torch.allclose(a, b, rtol={eps:.3g}, atol={eps:.3g}) for a, b in zip(whole, parts))",
        )

    def second_by_parameter(
        self, name: str, x: Floats, cotangent: Floats, weights: Floats, expected: Floats, slack: float
    ) -> str:
        return self.text(
            f"v, w = (torch.tensor(n, {self.place}) for n in ({cotangent.tolist()}, {weights.tolist()}))",
            f"g, = torch.autograd.grad(act(x){self.pick}, x, v.requires_grad_(), create_graph=True)",
            f"got, = torch.autograd.grad(g{self.pick} @ w, act.get_parameter({name!r}), allow_unused=True)",
            f"expected = torch.tensor({expected.tolist()}, {self.place})",
            "got = torch.zeros_like(expected) if got is None else got",
            f"assert (got - expected).abs().max() <= {slack:.6g}, (got, expected)",
            x=x.tolist(),
        )

    def copy(self, x: float, way: str) -> str:
        construct = (self.subject.activation.source or ("", "act"))[1]
        line = {
            "deepcopy": "import copy; other = copy.deepcopy(act)",
            "pickle": "import pickle; other = pickle.loads(pickle.dumps(act))",
            "state_dict": f"other = {construct}.to(x.dtype); other.load_state_dict(act.state_dict())",
        }[way]
        view = self.subject.view
        called = "f(x * 1)" if view is None else seen(view, f"f({packed(view, filled(view, '(x * 1)'))})")
        lines = [
            *self.header(copying=False, viewing=False),  # hooks that are lambdas cannot be pickled
            "with torch.no_grad():",
            "    [p.add_(0.125) for p in act.state_dict().values() if p.is_floating_point()]",
            self.input([x]),
            line,
            f"g = lambda f: torch.autograd.grad({called}.sum(), x)[0]",
            "assert torch.equal(g(other), g(act)), (g(other), g(act))",
        ]
        return "\n".join(lines)

    def state(self) -> str:
        return self.text(
            "def state():",
            "    modes = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()",
            "    return *modes, torch.initial_seed(), torch.get_rng_state().sum().item()",
            self.input([-1.0, 0.5]),
            "before = state()",
            "act(x).sum().backward()",
            "assert state() == before, (before, state())",
        )
