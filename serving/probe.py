"""Is a server healthy? `python -m serving.probe`, for a container's HEALTHCHECK and for scripts.

Asks the standard health service (grpc.health.v1) of the server at --address, or of the one whose
settings stand in the environment (PAWPRINT_SERVE_PORT and _TLS_...). Status 0: SERVING. 1: not
serving, not there, or no answer in time. 2: wrong arguments.
"""

if __name__ == "__main__":  # as the command does: a package that is missing is one line
    from serving import launch

    raise SystemExit(launch.probe())

import math
import os
from collections.abc import Mapping, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.access import TRY_TLS, Options, Tls, access_of, add_access_flags, channel_opener
from serving.channel import host_port
from serving.commandline import Parser, fail, reader_may_leave
from serving.errors import InvalidRequest, in_utf8
from serving.own_tls import own_tls
from serving.proxies import STRAIGHT, by_proxy

_NO_ANSWER = ("DEADLINE_EXCEEDED", "UNAVAILABLE")


def serving_status(
    address: str, service: str, timeout_s: float, tls: Tls | None = None, options: Options = ()
) -> str:
    """SERVING, NOT_SERVING, SERVICE_UNKNOWN, or the status code of a call that failed."""
    with channel_opener(address, tls, options)() as channel:
        request = health_pb2.HealthCheckRequest(service=in_utf8("the service", service))
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                request, timeout=timeout_s, wait_for_ready=True
            )
        except grpc.RpcError as error:
            code: str = error.code().name
            return code
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return name


def _here(environment: Mapping[str, str]) -> str:
    """Where the server of these settings is reached from its own machine."""
    host = environment.get("PAWPRINT_SERVE_HOST", "")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return host_port(host, environment.get("PAWPRINT_SERVE_PORT", "50051"))


def main(arguments: Sequence[str] | None = None) -> None:
    here = _here(os.environ)
    parser = Parser(prog="python -m serving.probe", description=__doc__)
    parser.add_argument("--address", default=here, help="the server (default: %(default)s)")
    parser.add_argument(
        "--service", default="", help="ask about one service (default: the whole server)"
    )
    parser.add_argument(
        "--timeout", type=float, default=3.0, help="longest wait, seconds (default: %(default)s)"
    )
    add_access_flags(parser)
    options = parser.parse_args(arguments)
    if not 0 < options.timeout < math.inf:
        parser.error(f"--timeout must be more than 0 seconds and finite, got {options.timeout:g}")
    try:
        tls = access_of(options)["tls"]
        if tls is None and options.address == here:
            tls = own_tls(here, os.environ, options.timeout)
        own = STRAIGHT if options.address == here else ()
        status = serving_status(options.address, options.service, options.timeout, tls, own)
    except InvalidRequest as error:
        fail(str(error))
    if status != "SERVING":
        hint = f"; {TRY_TLS}" if tls is None and status in _NO_ANSWER else ""
        through = "" if own else by_proxy(options.address)
        fail(f"{options.address} is {status}{through}{hint}", status=1)
    with reader_may_leave():
        print(status)
