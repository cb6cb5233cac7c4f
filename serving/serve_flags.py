"""The flags of `serve`: one for each setting, by what they are about."""

import argparse
from collections.abc import Iterable
from dataclasses import Field
from typing import Any

from serving.commandline import Parser, one_of
from serving.control_settings import CONTROLS
from serving.device import DEVICES
from serving.log_format import FORMATS
from serving.precision import PRECISIONS
from serving.setting import ON_OFF

PADS = ("auto", *ON_OFF)
# What a value looks like, in the order in which they are told.
GROUPS = {
    "what is served": {
        "models": "DIR",
        "only": "NAME,...",
        "versions": "WHICH",
        "control": one_of(CONTROLS),
        "poll_s": "SECONDS",
        "canary": "MODEL=VERSION:SHARE",
        "shadow": "MODEL=VERSION:SHARE",
    },
    "addresses and ports": {
        "host": "ADDRESS",
        "port": "PORT",
        "port_file": "FILE",
        "admin_host": "ADDRESS",
        "admin_port": "PORT",
        "metrics_host": "ADDRESS",
        "metrics_port": "PORT",
    },
    "who may call": {
        "tls_cert": "FILE",
        "tls_key": "FILE",
        "tls_client_ca": "FILE",
        "tokens": "FILE",
    },
    "what models run on": {
        "device": one_of(DEVICES),
        "precision": one_of(PRECISIONS),
        "cores": "N",
        "decode_threads": "N",
        "workers": "N",
        "gpu_memory_mib": "MIB",
        "cuda_graphs": one_of(ON_OFF),
        "tensorrt": "DIR",
    },
    "batches": {
        "max_batch": "PHOTOS",
        "max_delay_ms": "MS",
        "max_queue": "PHOTOS",
        "pad": one_of(PADS),
    },
    "limits": {
        "max_calls": "N",
        "max_streams": "N",
        "max_stream_in_flight": "N",
        "max_message_mib": "MIB",
        "max_photos": "N",
        "max_photo_mib": "MIB",
        "max_megapixels": "N",
        "photo_formats": "KIND,...",
        "max_connection_age_s": "SECONDS",
        "drain_s": "SECONDS",
    },
    "logs": {
        "log_format": one_of(FORMATS),
        "access_log": one_of(ON_OFF),
    },
}
_ALL = ("cores", "decode_threads")  # their default, 0, is all of them

_EPILOG = """\
examples:
  serve                                          # all of models/, for callers on this machine
  serve --models s3://bucket/models --check      # load and prove them, and end
  serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --tokens tokens.toml
  serve --canary pets=2:0.1 --metrics-port 9464  # a tenth of the calls go to version 2
  serve --config serve.toml                      # settings from a file

Every setting can also stand in the environment ({environment}MAX_BATCH=8) or in the file of
--config (max_batch = 8). A flag comes before the environment, and the environment before the file.

SIGTERM and SIGINT let running calls finish. SIGHUP makes the server read the file again and look
at the repository.

exit status:
  0  stopped by a signal; with --check: all is sound
  1  there is no model to serve; with --check: a version is refused or missing
  2  a wrong setting, or a port, a device or a store that can't be used
"""


def parser(settings: Iterable[Field[Any]], environment: str) -> argparse.ArgumentParser:
    """environment: what the names of variables begin with."""
    flags = Parser(
        prog="serve",
        usage="serve [--models DIR] [--check] [--config FILE] [flags]",
        description="Answer Classify calls over gRPC with the models of a repository: the newest\n"
        "sound version of each, and the versions that aliases name.",
        epilog=_EPILOG.format(environment=environment),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--config", metavar="FILE", help="TOML file of settings")
    flags.add_argument(
        "--check",
        action="store_true",
        help="load and prove what would be served, print it, and end; status 1 if a version is "
        "refused or missing",
    )
    known = {one.name: one for one in settings}
    for title, looks in GROUPS.items():
        group = flags.add_argument_group(title)
        for name, metavar in looks.items():
            group.add_argument(
                f"--{name.replace('_', '-')}",
                metavar=metavar,
                help=known[name].metadata["help"] + _default(known[name]),
            )
    return flags


def _default(one: Field[Any]) -> str:
    value = "all" if one.name in _ALL else one.default
    if value == "":
        return ""
    return f" (default: {value:g})" if isinstance(value, float) else f" (default: {value})"
