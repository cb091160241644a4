"""The errors that a user may meet. Each carries facts and ends up as one clear line, never a traceback."""

from __future__ import annotations


class AgentError(Exception):
    """Something the user can act on. Exit code 1."""


class SettingsError(AgentError):
    """Settings or arguments that cannot be used. Exit code 2."""


class FormatError(AgentError):
    """A file that cannot be read as an image of the expected kind.

    `reason` is one of the words below: it is counted, logged and published, so other people match on it.
    """

    REASONS = (
        "not_an_image",  # neither TIFF nor DICOM, or pixels that are not an image of this kind
        "malformed",  # structure contradicts itself
        "wrong_type",  # not uint16
        "wrong_shape",  # height, width, planes or frames that no profile geometry knows
        "unsupported",  # a valid file that uses a compression or transfer syntax we do not read
        "limits",  # beyond the configured limits (dimensions, tags, expansion)
    )

    def __init__(self, reason: str, detail: str, offset: int | None = None) -> None:
        if reason not in self.REASONS:
            raise AssertionError(f"unknown reason {reason!r}")
        super().__init__(f"{reason}: {detail}" + (f" (at byte {offset})" if offset is not None else ""))
        self.reason = reason
        self.detail = detail
        self.offset = offset


class ProfileError(AgentError):
    """A profile that must not be used: a checksum, key or value is wrong."""


class EngineError(AgentError):
    """An engine that cannot be built, loaded or trusted."""


class LedgerError(AgentError):
    """The ledger cannot be opened or written."""


class LedgerDamaged(LedgerError):
    """The ledger's bytes are not what was written. The next start sets it aside and begins a new one."""

    def __init__(self, path: object, detail: str) -> None:
        self.detail = detail.splitlines()[0]
        super().__init__(
            f"ledger {path} is damaged ({self.detail}): the next start sets it aside, takes over what can be read of"
            " it, and counts anew what the folder holds"
        )
