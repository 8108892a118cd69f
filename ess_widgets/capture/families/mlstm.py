"""The matrix memory of xLSTM, by the names of its kernels in transformers and in xlstm's own packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ess_widgets.capture.families._expected import takes
from ess_widgets.capture.families.kernels import continues
from ess_widgets.capture.reading import Call, Reading
from ess_widgets.operators import Operator, mlstm

__all__ = ["PREFIXES"]


@takes(
    "query q queries matQ: 4",
    "key k keys matK: 4",
    "value v values matV: 4",
    "igate i vecI igate_preact: 3 4",
    "fgate f vecF fgate_preact: 3 4",
)
def _mlstm(call: Call) -> Reading | str:
    """Heads before positions: ``q``, ``k``, ``v`` ``(batch, heads, L, ...)``, gates ``(batch, heads, L)``.

    ``T`` holds the row normaliser, ``max(|q·n|, exp(-m)) + eps``.
    """
    q, k = call.first("query", "q", "queries", "matQ"), call.first("key", "k", "keys", "matK")
    v, y = call.first("value", "v", "values", "matV"), call.output
    i, f = call.first("igate", "i", "vecI", "igate_preact"), call.first("fgate", "f", "vecF", "fgate_preact")
    tensors = {"q": q, "k": k, "v": v, "i": i, "f": f, "y": y}
    if y is None or any(not isinstance(item, Tensor) or item.ndim < 3 for item in tensors.values()):
        return ""  # a step, or a part of the computation
    if q.ndim != 4 or y.shape[:3] != q.shape[:3]:
        return f"its queries have the shape {tuple(q.shape)}, its result {tuple(y.shape)}"
    if continues(call):
        return "it goes on from an earlier state; run the full sequence in one call"
    eps = float(call.first("eps", default=1e-6))
    L = q.shape[2]

    def operator(t: Mapping[str, Any], valid: Tensor | None) -> Operator:
        gates = (t[gate].reshape(*t["q"].shape[:2], L) for gate in ("i", "f"))
        return mlstm(t["q"], t["k"], *gates, eps=eps, valid=valid)

    batch, heads = q.shape[:2]
    return Reading("mLSTM", (batch, heads, L), tensors, operator, lambda t: t["v"], lambda t: t["y"])


PREFIXES = {"mlstm_": _mlstm, "wrap_chunkwise_": _mlstm, "parallel_stabilized_": _mlstm}
