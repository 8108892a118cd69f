"""What can be done about each sign: what the paper suggests, and what is this project's own advice."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ADVICE", "Advice"]


@dataclass(frozen=True)
class Advice:
    """Attributes
    ----------
    paper : str
        What "Quantifying Memory Utilization with Effective State-Size" (arXiv:2504.19561) suggests; empty where it is silent.
    ours : str
        What practice and other sources suggest.
    """

    paper: str
    ours: str

    def __str__(self) -> str:
        return " ".join(
            filter(None, [self.paper and f"Paper: {self.paper}", self.ours and f"Ours: {self.ours}"])
        )


_FULL = Advice(
    "a full state with a failing task needs more state (larger d_k or n), or a hybrid with attention layers, where "
    "the placing of attention matters more than its amount.",
    "Check that the task fails for want of memory: a model that solves it may well use all of its state.",
)

ADVICE = {
    "non-finite": Advice(
        "",
        "Look at the weights and inputs of this layer first: everything behind it inherits its NaN. A row whose mask "
        "lets it read nothing gives NaN too; in half precision look for overflow.",
    ),
    "unreadable": Advice(
        "",
        "The layer computes something that its name does not allow (gates above 1, an infinity in its queries or keys): "
        "mend that, or tell ew.register how to read it.",
    ),
    "unverified": Advice(
        "",
        "Correct the function given to ew.register, or report the layer: an operator that does not reproduce the "
        "model's output says nothing about the model.",
    ),
    "exploding": Advice(
        "",
        "Keep |A| at most 1: write gates as exp(-softplus(·)) or sigmoid, normalise keys of a delta rule and keep "
        "its step size within 0 … 2.",
    ),
    "saturation": _FULL,
    "collapse": Advice(
        "the state is there and is not used: penalise ‖A − I‖_F while training (this let GLA and WLA pass linear "
        "attention on a hard recall task), or begin closer to the identity: a larger α in S6 and GLA-S6.",
        "A layer whose task needs no memory may collapse and be right; compare on inputs that do need it.",
    ),
    "dead": Advice(
        "",
        "Prune it, or initialise it again; if it died in training look at its output projection, at weight decay and "
        "at gates behind the mixer.",
    ),
    "uniform": Advice(
        "",
        "Equal scores: keys or queries that have collapsed to a point, a scale of 0, or a layer that has not begun to "
        "learn. Look at the norms of keys and queries.",
    ),
    "constant": Advice(
        "",
        "It works as a fixed filter: a purely positional head. If it should read content, look at what reaches its "
        "queries and keys.",
    ),
    "undecayed": Advice(
        "gates at 1 are the identity that the paper's regulariser aims at: they keep, and are no defect in themselves.",
        "Make sure that the gate is applied in this head at all.",
    ),
    "copy": Advice(
        "",
        "One of both can go; look at their initialisation, at tied weights and at a wrong repeat of heads.",
    ),
    "diagonal": Advice(
        "",
        "It is a feed-forward layer with the cost of a mixer. In a trained transformer it may rest on these inputs; "
        "try others before removing it.",
    ),
    "local": Advice(
        "",
        "Common and useful: previous-token heads serve induction. A window or a short convolution would do for it.",
    ),
    "full": _FULL,
    "sink": Advice(
        "",
        "Common in trained softmax models: a head that has nothing to add parks there (arXiv:2309.17453, 2410.10781). "
        "Keep these tokens when evicting a cache; attention there is no sign of importance where the contribution is "
        "small (arXiv:2606.07604).",
    ),
}
