"""Write reports/models.md: published models, with their activations set, wired and compared.

    python tools/model_table.py [NAME ...]

Without names, all models run whose library is installed, and the page is written. With names, only these run, and the page
goes to the terminal. The weights are random, so nothing is downloaded. Exit codes: 0 the table is whole; 1 some row has a
fault, which the table says.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from relucheck.bifurcation.compare import Backprops, Comparison, backprop, compare
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.bifurcation.wiring import WiringError, check_wiring
from relucheck.errors import ModelError
from relucheck.numerics.bits import same_bits
from relucheck.results.files import write_atomically
from relucheck.results.tables import Table, listed

PAGE: Final = Path(__file__).resolve().parents[1] / "reports" / "models.md"
_VALUES: Final = (0.0, 1.0)


class Case(NamedTuple):
    """A model with inputs.

    Attributes:
        library: the package that it comes from.
        build: builds the model with random weights.
        inputs: its inputs; images and tokens are random, and the second image is blank.
        loss: from its output to a scalar.
    """

    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    loss: Callable[[Any], Tensor]


def images(size: int = 64) -> Tensor:
    """Two images, [2, 3, size, size]: normal numbers and zeros."""
    drawn = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    drawn[1] = 0
    return drawn


def tokens() -> dict[str, Any]:
    """Two sentences by name, as tokenisers return them; the second is shorter."""
    ids = torch.randint(1, 90, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def loss_of(output: Any) -> Tensor:
    """The mean cross-entropy of logits with classes 1 and 2."""
    return nn.functional.cross_entropy(output, torch.tensor([1, 2]))


def squares_of(output: Any) -> Tensor:
    """The mean square of the last hidden state of a language model."""
    mean: Tensor = output.last_hidden_state.square().mean()
    return mean


def _vision(name: str, size: int = 64, **options: Any) -> Case:
    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module("torchvision.models"), name)(num_classes=10, **options)
        return model

    return Case("torchvision", build, lambda: images(size), loss_of)


def _timm(name: str) -> Case:
    def build() -> nn.Module:
        model: nn.Module = importlib.import_module("timm").create_model(name, num_classes=10)
        return model

    return Case("timm", build, lambda: images(64), loss_of)


def _language(name: str, **options: Any) -> Case:
    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        model: nn.Module = getattr(library, f"{name}Model")(getattr(library, f"{name}Config")(**options))
        return model

    return Case("transformers", build, tokens, squares_of)


_SMALL: Final = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CASES: Final[dict[str, Case]] = {
    "resnet18": _vision("resnet18"),
    "mobilenet_v2": _vision("mobilenet_v2"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5"),
    "squeezenet1_1": _vision("squeezenet1_1"),
    "densenet121": _vision("densenet121"),
    "vgg11": _vision("vgg11"),
    "alexnet": _vision("alexnet"),
    "googlenet": _vision("googlenet", init_weights=False),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "timm resnet18": _timm("resnet18"),
    "timm mobilenetv3_small_050": _timm("mobilenetv3_small_050"),
    "timm regnetx_002": _timm("regnetx_002"),
    "timm convnext_atto": _timm("convnext_atto"),
    "transformers BERT (ReLU)": _language("Bert", intermediate_size=32, hidden_act="relu", **_SMALL),
    "transformers OPT": _language("OPT", ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=32, **_SMALL),
    "transformers GPT-2": _language("GPT2", vocab_size=100, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1),
}


class Row(NamedTuple):
    """What happened with one model.

    Attributes:
        name: the name of the case.
        set: how many modules ``set_subgradient`` has set, or why none.
        wired: how many activations answer ``check_wiring``, and which do not.
        compared: the outcome of ``compare`` with its hits.
        unreached: the functions that ``compare`` names as out of reach.
        verified: whether the gradients that were compared are those of ``.backward()``.
        fault: whether something is wrong.
    """

    name: str
    set: str
    wired: str
    compared: str
    unreached: str
    verified: str
    fault: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the table."""
        return (self.name, self.set, self.wired, self.compared, self.verified, self.unreached)


def installed(case: Case) -> bool:
    """Whether the library of a case is there."""
    return importlib.util.find_spec(case.library) is not None


def row(name: str) -> Row:
    """Set, wire and compare one model."""
    case = CASES[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        model = case.build().eval()
        inputs = case.inputs()
        placed, wired = _set(case), _wired(model, inputs)
        run: Backprops | None = None
        try:
            comparison = compare(model, inputs, loss=case.loss, subgradients=_VALUES)
            run = backprop(model, inputs, loss=case.loss, subgradients=_VALUES)
        except ModelError as error:
            return Row(name, placed, wired[0], f"refused: {str(error).split(';')[0]}", "", "", fault=False)
        verified = _verified(case, model, inputs, run) if wired[1] else "functions are not set"
    return Row(name, placed, wired[0], _compared(comparison), _unreached(comparison), verified, verified == "no")


def _set(case: Case) -> str:
    try:
        reached = set_subgradient(case.build(), 0.5)
    except ModelError:
        return "nothing to set"
    return f"{len(reached)}" + (f", without {len(reached.left_out)}" if reached.left_out else "")


def _wired(model: nn.Module, inputs: Any) -> tuple[str, bool]:
    """How many activations answer and which do not, and whether all do."""
    try:
        return f"{len(check_wiring(model, inputs))} answer", True
    except WiringError as error:
        sites = sorted({wire.site for wire in error.wires})
        more = f" and {len(sites) - 2} more" if len(sites) > 2 else ""
        return f"{len(error.wires)} out of reach: {', '.join(f'`{site}`' for site in sites[:2])}{more}", False
    except ModelError as error:
        return f"refused: {str(error).split(';')[0].split(': ')[-1]}", False


def _compared(comparison: Comparison) -> str:
    return f"{comparison.outcome}, {comparison.hit_count:,} hits of {comparison.activation_count:,}"


def _unreached(comparison: Comparison) -> str:
    return ", ".join(sorted({re.sub(r"(Backward)?\d*$", "", item.node) for item in comparison.out_of_reach}))


def _verified(case: Case, model: nn.Module, inputs: Any, run: Backprops) -> str:
    """Whether ``.backward()`` of a copy whose modules are set leaves the same gradients, bit for bit."""
    for value, found in zip(_VALUES, run.gradients, strict=True):
        copied = case.build().eval()
        copied.load_state_dict(model.state_dict())
        set_subgradient(copied, value)
        output = copied(**inputs) if isinstance(inputs, Mapping) else copied(inputs)
        case.loss(output).backward()
        for name, parameter in copied.named_parameters():
            gradient = found[name]
            same = parameter.grad is gradient is None or (
                parameter.grad is not None and gradient is not None and same_bits(parameter.grad, gradient)
            )
            if not same:
                return "no"
    return "yes"


def page(rows: Sequence[Row]) -> str:
    """The report on some rows."""
    header = ("model", "set", "wired", "compared", "as `.backward()`", "out of reach in `compare`")
    libraries = dict.fromkeys(["torch", *(CASES[one.name].library for one in rows)])
    versions = [f"{library} {importlib.metadata.version(library)}" for library in libraries]
    table = "\n".join(Table(header, [one.cells for one in rows]).markdown())
    return f"""# Published models

Does relucheck serve models as they are? Each was built with random weights, set by `set_subgradient`, probed by
`check_wiring`, and compared by `compare` with subgradients 0 and 1, on two inputs in float32 on a CPU, in evaluation mode.
One of two images is blank. It gives exact zeros in all layers of a new network without biases.

{table}

- *set*: the number of modules that now have a subgradient. Functions such as `F.relu` have none.
- *wired*: the number of activations whose gradient at each kink is the subgradient times the upstream gradient, or those
  that no setting reaches. `compare` and `backprop` control functions, too.
- *as `.backward()`*: whether the gradients that were compared are, bit for bit, those that `.backward()` leaves in a copy
  whose modules are set.
- *out of reach*: functions with kinks or ties that are none of the three activations, by the name of their node.

`python tools/model_table.py` writes this page; counts of hits may differ on another processor. It runs those models whose
library is installed. Here these were {listed(versions)}.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME", help="models to run; all without one")
    names = parser.parse_args(arguments).names
    rows = []
    for name in names or [name for name, case in CASES.items() if installed(case)]:
        rows.append(row(name))
        print(" | ".join(rows[-1].cells), file=sys.stderr, flush=True)
    if names:
        print(page(rows))
    else:
        write_atomically(PAGE, page(rows))
    return int(any(one.fault for one in rows))


if __name__ == "__main__":
    sys.exit(main())
