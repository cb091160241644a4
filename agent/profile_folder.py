"""Reading a profile folder, with the errors that a user can act on."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ProfileError
from models.profile import LoadedProfile, ProfileInvalid, load_profile
from models.registry import MODALITIES


def load_profile_folder(folder: Path) -> LoadedProfile:
    """Read and verify a profile folder; raises ProfileError with one clear line."""
    try:
        profile = load_profile(lambda name: (folder / name).read_bytes())
        modality = MODALITIES.get(profile.spec.modality)
        if modality is None:
            raise ProfileInvalid(f"modality {profile.spec.modality!r} is not one of {', '.join(MODALITIES)}")
        modality.check(profile.spec)
    except OSError as error:
        raise ProfileError(f"cannot read the profile: {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise ProfileError(f"profile {folder}: {error}") from error
    return profile
