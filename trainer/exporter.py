"""The exports of one run: a backbone goes through PyTorch's exporter once, whatever its head."""

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from trainer.backbones import Calibrated, Classifier
from trainer.cached_file import NOTHING_KEPT, CachedFile
from trainer.console import Console
from trainer.distributed import ALONE, World
from trainer.export import Served, to_onnx
from trainer.features import FeatureNet
from trainer.graph_cache import load_graph, save_graph
from trainer.onnx_runner import Floats, OnnxRunner
from trainer.pictures import Pixels

HEAD = "calibrated.classifier.head"


class Exporter:
    """Keeps the graph of the last backbone; another head is written into it in no time.

    PyTorch's exporter takes seconds, ONNX Runtime on a CPU is the faster of the two: so a frozen
    backbone is exported first, and what is published later is the graph that gave its features.
    """

    def __init__(self, size: int, console: Console) -> None:
        self._size = size
        self._console = console
        self._graph: onnx.ModelProto | None = None
        self._of = ""

    def prepare(
        self,
        classifier: Classifier,
        cache: CachedFile = NOTHING_KEPT,
        world: World = ALONE,
        *,
        weights: str | None = None,
    ) -> None:
        """Export the backbone of `classifier` unless it was the last one, or lies in `cache`.

        weights: its digest, where that is known. Of several processes the leader exports, for all.
        Raises FailedCheck if it can't be exported.
        """
        if self._of != (of := weights or classifier.backbone_digest()):
            self._graph = world.of_leader(lambda: self._kept_or_exported(classifier, cache))
            self._of = of

    def features(self, classifier: Classifier) -> FeatureNet:
        """The backbone of `classifier` in ONNX Runtime on the CPU.

        Raises FailedCheck if it can't be exported.
        """
        runner = feature_runner(self._backbone(classifier), beside_others=True)

        def run(images: Pixels) -> Floats:
            return runner.run(images)[0]

        return run

    def export(self, calibrated: Calibrated) -> onnx.ModelProto:
        """The graph of `calibrated`, on the CPU and in eval mode; the caller's own.

        The temperature is in the head: logits = (W x + b) / T = (W / T) x + b / T. Raises
        FailedCheck if the backbone can't be exported.
        """
        graph = onnx.ModelProto()
        graph.CopyFrom(self._backbone(calibrated.classifier))
        head = calibrated.classifier.head
        tensors = {initializer.name: initializer for initializer in graph.graph.initializer}
        _, weight, bias = head_node(graph).input
        for name, value in ((weight, head.weight), (bias, head.bias)):
            array = (value.detach() / calibrated.temperature).numpy()
            tensors[name].CopyFrom(numpy_helper.from_array(array, name))
        of_labels = {weight: 0, bias: 0, "probabilities": 1, "logits": 1}
        for value in (*graph.graph.output, *graph.graph.value_info):
            if value.name in of_labels:
                shape = value.type.tensor_type.shape
                shape.dim[of_labels[value.name]].dim_value = head.out_features
        return graph

    def _backbone(self, classifier: Classifier) -> onnx.ModelProto:
        """The graph of `classifier` with whatever head."""
        self.prepare(classifier)
        assert self._graph is not None
        return self._graph

    def _kept_or_exported(self, classifier: Classifier, cache: CachedFile) -> onnx.ModelProto:
        graph = load_graph(cache)
        if graph is None:
            self._console.line("Exporting to ONNX")
            graph = to_onnx(Served(Calibrated(_with_any_head(classifier), 1.0)), self._size)
            save_graph(cache, graph)
        return graph


def _with_any_head(classifier: Classifier) -> Classifier:
    """The same backbone, in eval mode. Not with its own head: the exporter leaves out a bias of
    zeros."""
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(classifier.head.in_features, classifier.head.out_features)
    return Classifier(
        classifier.backbone,
        head,
        classifier.head_name,
        classifier.normalisation,
        mirror=classifier.mirror,
    ).eval()


def head_node(model: onnx.ModelProto) -> onnx.NodeProto:
    """x [n, F], W [K, F], b [K] -> W x + b; of a file of any precision."""
    (node,) = (
        node
        for node in model.graph.node  # in int8 the weights come out of a node that bears their name
        if node.op_type == "Gemm" and node.input[1].startswith(f"{HEAD}.weight")
    )
    return node


def feature_runner(
    model: onnx.ModelProto, precision: str = "fp32", *, beside_others: bool = False
) -> OnnxRunner:
    """Runs that give nothing but what the head takes, [n, F]."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    pooled = head_node(graph).input[0]
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(pooled))
    return OnnxRunner(
        graph.SerializeToString(), [pooled], precision=precision, beside_others=beside_others
    )
