"""How log lines look: text for a person, JSON for a machine; and the access log."""

import json
import logging
import re
import warnings
from datetime import UTC, datetime
from typing import Any

from serving.edge import Call
from serving.log_output import LineHandler
from serving.visible import visible

FORMATS = ("text", "json")
ACCESS = "serving.access"
STDERR = 2

_access = logging.getLogger(ACCESS)


class TextFormatter(logging.Formatter):
    """`fields` of the record follow its message as name=value."""

    def __init__(self, worker: int | None) -> None:
        """worker: which of several processes writes."""
        of = "" if worker is None else f" worker {worker}"
        super().__init__(f"%(asctime)s{of} %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {}).items()
        given = [f"{name}={_quoted(value)}" for name, value in fields if value != ""]
        return visible(" ".join((super().formatMessage(record).rstrip(), *given)))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(visible, super().formatException(ei).split("\n")))


def _quoted(value: object) -> object:
    """So that no caller's id can look like a field of ours."""
    return json.dumps(value) if isinstance(value, str) and re.search(r'[\s"=]', value) else value


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `fields` of the record stand beside its message."""

    def __init__(self, worker: int | None) -> None:
        """worker: which of several processes writes."""
        super().__init__()
        self._of = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            **self._of,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        # ASCII alone: the stream may take no more, and some readers end lines at U+2028 or U+0085.
        return json.dumps(value, default=str)


def configure_logging(kind: str, worker: int | None) -> None:
    """Log to stderr as `kind` of FORMATS; what was configured before goes. worker: which of several
    processes this is."""
    handler = LineHandler(STDERR)
    handler.setFormatter((JsonFormatter if kind == "json" else TextFormatter)(worker))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Of each tag in a photo's EXIF block that it skips: callers could fill the log, and the memory,
    # as Python keeps every text that it has shown.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def log_access(call: Call) -> None:
    """A sink of the edge: one line for each call. Photos and tokens are never written."""
    fields = {
        "method": call.method,
        "code": call.code.name,
        "request_id": call.request_id,
        "caller": call.token.name if call.token else "",
        "model": call.model,
        "version": call.version,
        "photos": call.photos,
        "total_ms": round(1e3 * (call.end - call.start), 2),
    }
    if call.inferred is not None:
        fields |= {
            "decode_ms": round(1e3 * call.inferred.decode_s, 2),
            "queue_ms": round(1e3 * call.inferred.queue_s, 2),
            "inference_ms": round(1e3 * call.inferred.inference_s, 2),
        }
    _access.info("call", extra={"fields": fields})
