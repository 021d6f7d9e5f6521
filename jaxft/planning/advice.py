"""Whether to train every weight or an adapter: rules with a published source each.

An adapter here is LoRA on every linear layer. Each rule speaks for one side with a weight, and says
why; the side with more weight wins, and a tie is said to be one. What a rule says is its source's;
the weights, and from how many variants or parameters on it speaks, are ours.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Objective = Literal["classify", "instruct", "domain", "reinforce"]
OBJECTIVES = {
    "classify": "one label or number for a text",
    "instruct": "answers in a style or format, from examples",
    "domain": "new knowledge: continued pretraining, code, mathematics, a language",
    "reinforce": "reward in place of answers",
}
RANK = 64
"""Of the adapter that is compared with."""
BITS_PER_PARAMETER = 2.0
"""That a network can hold after long training. Source: Allen-Zhu & Li."""
BITS_PER_TOKEN = 1.0
"""To learn a text by heart, about: a loss of 0.69 nats. What carries over to others takes less.
Source: Schulman et al.
"""
TRAINED_BYTES = 12
"""A trained weight's gradient and AdamW's two moments, which a frozen one has not."""
FEW, MANY = 3, 8
"""Variants of one base: from where on serving them apart costs, and is out of proportion."""
SMALL = 1e9
"""Parameters up to which all weights of a model are cheap to train and to keep."""
LORA_FLOPS = 2 / 3
"""Of a full update, and a little more: no gradients of the frozen weights. Source: Schulman et al.
"""

HU = "Hu et al. 2021, LoRA (arXiv:2106.09685)"
BIDERMAN = "Biderman et al. 2024, LoRA Learns Less and Forgets Less (arXiv:2405.09673)"
SCHULMAN = "Schulman et al. 2025, LoRA Without Regret (Thinking Machines Lab)"
ALLEN_ZHU = "Allen-Zhu & Li 2024, Physics of Language Models 3.3 (arXiv:2404.05405)"
DETTMERS = "Dettmers et al. 2023, QLoRA (arXiv:2305.14314)"
HOULSBY = "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP (arXiv:1902.00751)"
DEVLIN = "Devlin et al. 2018, BERT (arXiv:1810.04805)"
CHEN = "Chen et al. 2023, Punica: Multi-Tenant LoRA Serving (arXiv:2310.18547)"


@dataclass(frozen=True)
class Case:
    """What the answer depends on."""

    objective: Objective
    parameters: int
    linear_sizes: tuple[tuple[int, int, int], ...]
    """(layers, inputs, outputs) of the linear layers an adapter would sit on."""
    variants: int
    fits: bool
    """Whether all weights can be trained on this hardware, as asked or with a change."""
    learnt_tokens: float | None
    """That the run learns from, over one pass; None where nobody knows."""
    tokens_are_counted: bool
    """Otherwise they are what full rows would hold, and may be far fewer."""
    bill: float | None
    budget: float | None
    """Both in the currency of the price."""


@dataclass(frozen=True)
class Reason:
    """One rule that applies."""

    side: Literal["full", "adapter"]
    weight: float
    text: str
    source: str


@dataclass(frozen=True)
class Advice:
    """The answer and why."""

    choice: Literal["full", "adapter", "either"]
    reasons: tuple[Reason, ...]

    @property
    def sentence(self) -> str:
        return {
            "full": "Yes: full fine-tuning is the right choice here.",
            "adapter": "No: take an adapter (LoRA on every linear layer) here.",
            "either": "Either: quality should be the same, so let cost and serving decide.",
        }[self.choice]

    def to_json(self) -> dict[str, Any]:
        return {"choice": self.choice, "reasons": [asdict(reason) for reason in self.reasons]}


def advise(case: Case) -> Advice:
    """The answer for a case."""
    reasons = tuple(sorted(_reasons(case), key=lambda reason: -reason.weight))
    balance = sum(r.weight if r.side == "full" else -r.weight for r in reasons)
    choice = "full" if balance > 0 else "adapter" if balance < 0 else "either"
    return Advice(choice, reasons)  # type: ignore[arg-type]


def adapter_parameters(case: Case, rank: int = RANK) -> int:
    """Of LoRA of this rank: two thin matrices beside each linear layer. Source: Hu et al., 4.1."""
    return sum(layers * rank * (d_in + d_out) for layers, d_in, d_out in case.linear_sizes)


def _reasons(case: Case) -> Iterator[Reason]:
    yield from _objective(case)
    yield from _capacity(case)
    if not case.fits:
        yield Reason(
            "adapter",
            10,
            "all weights with their optimizer state do not fit this hardware, with none of the "
            "changes tried; an adapter needs no state for the frozen weights, and those can be in "
            "4 bits (65 B parameters on one GPU of 48 GB)",
            DETTMERS,
        )
    if case.variants >= FEW:
        yield Reason(
            "adapter",
            3 if case.variants >= MANY else 1,
            f"{case.variants} variants of one base: one copy of the base serves all adapters, full "
            f"fine-tuning makes {case.variants} whole models",
            CHEN,
        )
    if case.parameters <= SMALL and case.variants < MANY:
        yield Reason(
            "full",
            1,
            f"with {case.parameters / 1e6:,.0f} M parameters memory is no reason for an adapter: "
            f"the gradients and AdamW's moments that it saves are "
            f"{TRAINED_BYTES * case.parameters / 1e9:,.1f} GB over all devices",
            HU,
        )
    if _too_dear(case):
        yield Reason(
            "adapter",
            4,
            f"the bill of {case.bill:,.2f} is over the budget of {case.budget:,.2f}; LoRA does "
            "slightly more than two thirds of the operations",
            SCHULMAN,
        )


def _too_dear(case: Case) -> bool:
    """Whether all weights cost more than there is, and an adapter would not."""
    if case.bill is None or case.budget is None:
        return False
    return case.bill * LORA_FLOPS <= case.budget < case.bill


def _objective(case: Case) -> Iterator[Reason]:
    if case.objective == "domain":
        yield Reason(
            "full",
            3,
            "continued pretraining on code and mathematics: LoRA learnt less at common ranks, and "
            "the changes that full fine-tuning makes are of 10 to 100 times such a rank",
            BIDERMAN,
        )
        yield Reason(
            "adapter",
            1,
            "LoRA forgot less of what the model could do before; measure it (data.evaluations)",
            BIDERMAN,
        )
    elif case.objective == "instruct":
        yield Reason(
            "adapter",
            1,
            "answers from examples: LoRA on all layers learnt as well from small and middling sets "
            "of this kind, with slightly more than two thirds of the operations",
            SCHULMAN,
        )
    elif case.objective == "reinforce":
        yield Reason(
            "adapter",
            3,
            "policy gradients learn about one bit an episode: LoRA matched full fine-tuning even "
            "at rank 1",
            SCHULMAN,
        )
    elif case.parameters <= SMALL:
        yield Reason(
            "full",
            2,
            "BERT's published scores come from fine-tuning all parameters end to end",
            DEVLIN,
        )
        if case.variants >= FEW:
            yield Reason(
                "adapter",
                1,
                "adapters (not LoRA) came within 0.4 % of BERT's full fine-tuning on GLUE, with "
                "3.6 % of the parameters a task",
                HOULSBY,
            )
    else:
        yield Reason(
            "adapter",
            1,
            "LoRA matched full fine-tuning on GLUE up to DeBERTa XXL (1.5 B parameters)",
            HU,
        )


def _capacity(case: Case) -> Iterator[Reason]:
    if case.learnt_tokens is None or case.objective in ("reinforce", "classify"):
        return
    room = adapter_parameters(case) * BITS_PER_PARAMETER
    needed = case.learnt_tokens * BITS_PER_TOKEN
    most = "" if case.tokens_are_counted else "at most "
    said = (
        f"to learn {most}{case.learnt_tokens / 1e6:,.1f} M tokens by heart takes about "
        f"{needed / 1e6:,.1f} M bits; an adapter of rank {RANK} has room for {room / 1e6:,.0f} M "
        "(2 bits a parameter)"
    )
    if needed > room:
        weight = 2 if case.tokens_are_counted else 1
        yield Reason("full", weight, f"{said}: it may be too little", f"{SCHULMAN}; {ALLEN_ZHU}")
    elif case.objective == "instruct":
        yield Reason("adapter", 0.5, f"{said}: enough", f"{SCHULMAN}; {ALLEN_ZHU}")
