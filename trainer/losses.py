"""What a step lowers: cross-entropy, and with a teacher the distance from what that says."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

# (logits [n, K], goals: labels [n] or probabilities [n, K], the teacher's logits [n, K]) -> a sum
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def make_loss(weights: Tensor | None, smoothing: float) -> Loss:
    """Cross-entropy, with `weights` float32 [K] of the classes; a teacher is not heard."""

    def hard(logits: Tensor, goals: Tensor, taught: Tensor | None) -> Tensor:
        return cross_entropy(logits, goals, weights, reduction="sum", label_smoothing=smoothing)

    return hard


def make_distillation(hard: Loss, weights: Tensor | None, share: float, temperature: float) -> Loss:
    """share * T^2 * KL(teacher || student) + (1 - share) * hard, both softened by T in the first.

    Hinton et al. 2015, arXiv:1503.02531, section 2: T^2 keeps the gradients of the soft part as
    large as those of the other, whatever T is. `weights` are those of `hard`: photos of a rare
    class count more in both parts. Goals are labels.
    """

    def distilled(logits: Tensor, goals: Tensor, taught: Tensor | None) -> Tensor:
        assert taught is not None
        ours = (logits / temperature).log_softmax(dim=1)
        theirs = (taught / temperature).log_softmax(dim=1)
        apart = kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
        soft = apart.sum() if weights is None else (apart * weights[goals]).sum()
        return share * temperature**2 * soft + (1 - share) * hard(logits, goals, taught)

    return distilled
