"""Which models and versions are served, and how that changes; a part of ServerSettings."""

from dataclasses import dataclass

from serving.errors import InvalidRequest
from serving.setting import check_choice, check_ranges, setting
from serving.splits import Split, read_splits
from serving.version_policy import VersionPolicy, read_policy

CONTROLS = ("poll", "explicit", "none")


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    only: str = setting("", "names of the models to serve, separated by commas; empty: all")
    versions: str = setting(
        "latest:1",
        "versions of each model to serve: latest:N (the newest N sound ones), all, numbers such "
        "as 1,2,5, or alias (only those that an alias names, which are served in any case)",
    )
    canary: str = setting(
        "",
        "send a share (0 to 1) of the calls that name no version to this version, an alias or a "
        "number; several separated by commas",
    )
    shadow: str = setting(
        "",
        "send copies of a share of the calls to this version too; its answers are compared with "
        "the callers' and counted, and go to nobody",
    )
    control: str = setting(
        "poll",
        "poll: the repository is watched; explicit: versions change only by AdminService and at "
        "SIGHUP; none: only at SIGHUP",
    )
    poll_s: float = setting(
        5.0, "how often the repository is looked at, seconds; 0: only on SIGHUP"
    )
    admin_host: str = setting("127.0.0.1", "address on which AdminService listens")
    admin_port: int = setting(0, "port of AdminService; 0: it is not served")

    def __post_init__(self) -> None:
        check_ranges(self, (("poll_s", 0, 86_400), ("admin_port", 0, 65535)))
        check_choice(self, "control", CONTROLS)
        _, splits = self.policy, self.splits  # which raise for what they can't read
        if self.only and not self.model_names:  # as of "$A,$B" without either: not all models
            raise InvalidRequest(f"only must name models, with commas, got {self.only!r}")
        for model, shadow in splits["shadow"].items():
            canary = splits["canary"].get(model)
            if canary and canary.share == 1 and canary.reference == shadow.reference:
                raise InvalidRequest(
                    f"canary and shadow of {model} are the same version, which gets all calls: "
                    "nothing could be compared"
                )

    @property
    def policy(self) -> VersionPolicy:
        return read_policy(self.versions)

    @property
    def splits(self) -> dict[str, dict[str, Split]]:
        """Of "canary" and "shadow": model -> split."""
        return {kind: read_splits(getattr(self, kind), kind) for kind in ("canary", "shadow")}

    @property
    def model_names(self) -> frozenset[str]:
        """Empty: all."""
        return frozenset(name.strip() for name in self.only.split(",") if name.strip())
