"""From loaded versions to what answers calls: batches, canaries, shadows, the catalogue."""

from collections.abc import Mapping
from dataclasses import replace

from serving.batching import BatchSettings
from serving.catalogue import Canary, Catalogue, ServedModel, ServedVersion, Shadow
from serving.device import cuda_problem
from serving.layout import version_number
from serving.loading import LoadedModel
from serving.settings import ServerSettings
from serving.splits import Split

_CPU_BATCH, _CUDA_BATCH = 2, 16


def catalogue_of(
    models: Mapping[str, LoadedModel],
    served: Mapping[tuple[str, int], ServedVersion],
    settings: ServerSettings,
) -> Catalogue:
    """served: what answers, by model and version."""
    splits = settings.splits
    return Catalogue(
        {
            name: _served_model(
                name,
                model,
                {version: served[name, version] for version in model.versions},
                splits["canary"].get(name),
                splits["shadow"].get(name),
            )
            for name, model in sorted(models.items())
            if model.served
        }
    )


def _served_model(
    name: str,
    model: LoadedModel,
    versions: dict[int, ServedVersion],
    canary: Split | None,
    shadow: Split | None,
) -> ServedModel:
    copied_to = versions.get(version_of(shadow, model)) if shadow else None
    if shadow is not None and copied_to is not None:
        copies = Shadow(served=copied_to, share=shadow.share)
        versions = {
            version: served if served is copied_to else replace(served, shadow=copies)
            for version, served in versions.items()
        }
    return ServedModel(
        name=name,
        versions=versions,
        default_version=model.default_version,
        aliases=model.aliases,
        restarting=frozenset(model.restarting),
        canary=Canary(version=version_of(canary, model), share=canary.share)
        if canary and version_of(canary, model) in versions
        else None,
    )


def version_of(split: Split, model: LoadedModel) -> int:
    """The version that a split names; 0 if there is no such version."""
    return version_number(split.reference) or model.aliases.get(split.reference, 0)


def runs_at_once(settings: ServerSettings) -> int:
    """Batches that run at the same time: on the CPU one on each core.

    Measured with mobilenet_v2 on two cores: 62 photos a second as two runs of one core, 53 as one
    run of two (benchmarks/limit.py).
    """
    on_cuda = settings.device != "cpu" and cuda_problem() is None
    return 1 if on_cuda else settings.inference_cores


def largest_batch(settings: ServerSettings, device: str) -> int:
    """A CPU gains nothing by more than a few photos, and its caches lose by it."""
    usual = _CPU_BATCH if device == "cpu" else _CUDA_BATCH
    return settings.max_batch or min(usual, settings.max_queue)


def batch_settings(settings: ServerSettings, device: str) -> BatchSettings:
    return BatchSettings(
        max_batch=largest_batch(settings, device),
        max_delay_s=settings.max_delay_ms / 1e3,
        max_queue=settings.max_queue,
        sizes=warm_sizes(settings, device) if _pads(settings, device) else (),
    )


def warm_sizes(settings: ServerSettings, device: str) -> tuple[int, ...]:
    """1, 2, 4, ... and max_batch where these are the sizes that are run. Else 1 and max_batch: on a
    CPU only the largest buffers count, and the rest would take its cores from the calls."""
    largest = largest_batch(settings, device)
    if not _pads(settings, device):
        return tuple(sorted({1, largest}))
    powers = (2**i for i in range(largest.bit_length()))
    return (*(power for power in powers if power < largest), largest)


def _pads(settings: ServerSettings, device: str) -> bool:
    """CUDA picks its kernels anew for each batch size; a CPU would only compute the padding too."""
    return settings.pad == "on" or (settings.pad == "auto" and device == "cuda")
