"""What is frozen stays as it is; what is cut in two is the same net."""

import copy

import pytest
import torch
from torch import nn

from trainer.backbones import Classifier, build
from trainer.optimizers import parameter_groups
from trainer.stages import frozen_stages, make_thawing, split_frozen, stages


def classifier(name: str, thaw: float = 0.25) -> Classifier:
    torch.manual_seed(0)
    net = build(name, 3, 64)
    net.freeze(frozen_stages(net.backbone, thaw))
    return net


def sample(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_train_leaves_frozen_stages_in_evaluation_mode_and_without_gradient():
    net = classifier("mobilenet_v2")
    frozen = nn.ModuleList(net.frozen)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        net.train()
        assert net.training and not any(m.training for m in frozen.modules() if m is not frozen)
        net(sample()).square().sum().backward()
        optimizer.step()
    assert all(p.grad is None for p in frozen.parameters())
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    thawed = {name for name, p in net.named_parameters() if p.requires_grad}
    still = set(net.state_dict()) - moved
    prefixes = tuple(f"backbone.features.{i}." for i in range(len(net.frozen)))
    assert all(name.startswith(prefixes) for name in still)
    assert not any(name.startswith(prefixes) for name in moved)  # running statistics among them
    assert any("running_mean" in name for name in still)
    assert any("running_mean" in name for name in moved) and thawed <= moved


def test_freeze_replaces_what_was_frozen_before():
    net = classifier("resnet18")
    net.freeze([])
    assert all(p.requires_grad for p in net.parameters())
    net.train()
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("name", "first_thawed"),
    [("resnet18", "layer3"), ("squeezenet1_1", "features.11"), ("mobilenet_v2", "features.14")],
)
def test_the_last_stages_are_thawed(name: str, first_thawed: str):
    net = classifier(name)
    thawed = next(n for n, p in net.backbone.named_parameters() if p.requires_grad)
    assert thawed.startswith(first_thawed)


def test_all_or_none_of_the_stages():
    backbone = build("resnet18", 3, 64).backbone
    assert frozen_stages(backbone, 1.0) == []
    assert frozen_stages(backbone, 0.0) == stages(backbone)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_prefix_then_suffix_is_the_backbone_and_has_its_gradient(name: str):
    net = classifier(name)
    prefix, suffix = split_frozen(net.backbone, net.frozen, 64)
    assert not isinstance(prefix, nn.Identity)
    with torch.no_grad():
        inner = prefix(sample())
    parts = suffix(inner)
    assert torch.allclose(parts, net.backbone(sample()), rtol=1e-4, atol=1e-6)
    trained = [p for p in net.backbone.parameters() if p.requires_grad]
    through_parts = torch.autograd.grad(parts.square().sum(), trained)
    through_all = torch.autograd.grad(net.backbone(sample()).square().sum(), trained)
    for one, other in zip(through_parts, through_all, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_the_suffix_follows_training_mode_and_shares_running_statistics():
    net = classifier("resnet18")
    _, suffix = split_frozen(net.backbone, net.frozen, 64)
    with torch.no_grad():
        inner = split_frozen(net.backbone, net.frozen, 64)[0](sample())
    before = net.backbone.layer4[0].bn1.running_mean.clone()
    net.train()
    suffix(inner)
    assert not torch.equal(net.backbone.layer4[0].bn1.running_mean, before)


class Skipping(nn.Module):
    """Its second stage needs the picture as well: it can't be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) + x).mean((2, 3))


def test_a_net_that_cannot_be_cut_is_left_whole():
    net = Skipping().eval()
    prefix, suffix = split_frozen(net, [net.first], 16)
    assert isinstance(prefix, nn.Identity) and suffix is net


def test_all_frozen_the_whole_backbone_is_run_ahead_unless_something_in_no_stage_learns():
    net = classifier("resnet18", thaw=0.0)
    prefix, suffix = split_frozen(net.backbone, net.frozen, 64)
    assert isinstance(suffix, nn.Identity)
    net.train()
    with torch.no_grad():
        ahead = prefix(sample())
    assert torch.equal(ahead, net.eval().backbone(sample())) and not prefix.training
    net.backbone.register_parameter("token", nn.Parameter(torch.zeros(1)))
    prefix, suffix = split_frozen(net.backbone, net.frozen, 64)
    assert isinstance(prefix, nn.Identity) and suffix is net.backbone


class Tokens(nn.Module):
    """Stages behind a token that is in none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.patch = nn.Linear(3, 4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.patch(x.mean((2, 3))) + self.token)


def test_what_is_in_no_stage_learns_only_where_all_stages_do_and_then_most_slowly():
    net = Classifier(Tokens(), nn.Linear(4, 2), "head")
    token = net.backbone.token
    net.freeze(frozen_stages(net.backbone, 0.34))
    assert not token.requires_grad
    net.freeze(frozen_stages(net.backbone, 0.0))
    assert isinstance(split_frozen(net.backbone, net.frozen, 8)[1], nn.Identity), "all run ahead"

    net.freeze(frozen_stages(net.backbone, 1.0))
    groups = parameter_groups(net, 0.1, layer_decay=0.5)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    assert scale[id(token)] == 0.5**4 < scale[id(net.backbone.patch.weight)] == 0.5**3

    thaw = make_thawing(net.backbone, net.frozen, gradual=True)
    learns = []
    for epoch in range(1, 5):
        net.freeze(thaw(epoch))
        learns.append(token.requires_grad)
    assert learns == [False, False, True, True]
