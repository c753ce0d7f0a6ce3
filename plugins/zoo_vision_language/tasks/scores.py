"""What answers to questions are judged by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class AnswerScores(Metric):
    """``loss`` in nats a token of the answers; ``accuracy``, the share of answers that are right to the last token;
    ``accuracy_seen``, that share among the questions which the blind control gets wrong; ``accuracy_KIND`` of each kind
    of question. Of questions with yes or no for an answer, as POPE has them (arXiv:2305.10355): ``yes_precision``,
    ``yes_recall``, ``yes_f1`` and ``yes_share``, the share that is answered with yes. What there is nothing of is left
    out.

    An answer counts as right when the greedy answer is it: when every token of it and of its end is the likeliest after
    those before it.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    nats: Tensor
    tokens: Tensor
    counts_K2: Tensor
    seen_2: Tensor
    yes_22: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        shapes = {"tokens": (), "counts_K2": (len(self.kinds), 2), "seen_2": (2,), "yes_22": (2, 2)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, nats_N: Tensor, right_Q: Tensor, kind_Q: Tensor, blind_Q: Tensor, yes_Q: Tensor, said_Q: Tensor
    ) -> None:
        """Nats of N answer tokens; of Q questions whether the answer is right, the kind, whether the blind control is
        right, the truth (1 yes, 0 no, -1 neither) and whether yes was said."""
        self.nats += nats_N.sum(dtype=torch.float64)
        self.tokens += nats_N.numel()
        self.counts_K2.index_put_((kind_Q, right_Q.long()), torch.ones_like(kind_Q), accumulate=True)
        missed_Q = right_Q[~blind_Q].long()
        self.seen_2.index_put_((missed_Q,), torch.ones_like(missed_Q), accumulate=True)
        asked_Q = yes_Q >= 0
        truth_Q, said_Q = yes_Q[asked_Q], said_Q[asked_Q].long()
        self.yes_22.index_put_((truth_Q, said_Q), torch.ones_like(truth_Q), accumulate=True)

    def compute(self) -> dict[str, Tensor]:
        all_2 = self.counts_K2.sum(0)
        found = {"loss": self.nats / self.tokens, "accuracy": _share(all_2), "accuracy_seen": _share(self.seen_2)}
        if len(self.kinds) > 1:
            found |= {f"accuracy_{kind}": _share(row_2) for kind, row_2 in zip(self.kinds, self.counts_K2, strict=True)}
        (_, wrong_yes), (missed_yes, right_yes) = self.yes_22.double().tolist()
        if self.yes_22.sum():
            precision = right_yes / max(1.0, right_yes + wrong_yes)
            recall = right_yes / max(1.0, right_yes + missed_yes)
            f1 = 2 * precision * recall / (precision + recall) if right_yes else 0.0
            share = (right_yes + wrong_yes) / float(self.yes_22.sum())
            names = ("yes_precision", "yes_recall", "yes_f1", "yes_share")
            found |= {n: torch.tensor(v) for n, v in zip(names, (precision, recall, f1, share), strict=True)}
        return {name: value for name, value in found.items() if not torch.isnan(value)}


def _share(wrong_right: Tensor) -> Tensor:
    return wrong_right[1].double() / wrong_right.sum()
