"""The coded concepts of the DICOM objects: standard ones where the standard has them, our own where it has none.

docs/dicom-results.md holds the same table. A class of a profile is a word of that network, no diagnosis: it has a
code of our own on purpose, so that no rule of a PACS takes it for one.
"""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from models.decision import REASONS

SCHEME = "99SPINEX"
"""Private coding scheme; 99 says so (PS3.16, section 8.2)."""
LONGEST_MEANING = 64
"""Characters of a Code Meaning (LO)."""


def own(value: str, meaning: str) -> CodedConcept:
    """A concept of our own scheme."""
    return CodedConcept(value, SCHEME, meaning[:LONGEST_MEANING])


def unit(annotation: str, meaning: str) -> Code:
    """A unit that only says what is counted (UCUM annotation)."""
    return Code(f"{{{annotation}}}", "UCUM", meaning)


SCHEMES = [
    CodingSchemeIdentificationItem(
        SCHEME, name="Concepts of spinextract-agent", responsible_organization="spinextract-agent"
    )
]
PATCHES = unit("patches", "patches")
SLIDES = unit("slides", "slides")
RATIO = codes.UCUM.NoUnits
YES, NO = codes.SCT.Yes, codes.SCT.No

PROCEDURE = own("SRH", "Stimulated Raman histology")
SYNTHETIC_PROCEDURE = own("SRH-SYNTHETIC", "Synthetic phantom of stimulated Raman histology")
HEAT_MAP = own("HEAT-MAP", "Heat map of this result")
SEEN = own("SEEN", "Patches seen")
USED = own("USED", "Patches used")
MINIMUM = own("MINIMUM", "Patches that the profile asks for at least")
COUNTED_SLIDES = own("SLIDES", "Slides with at least one patch")
OPERATING_POINT = own("OPERATING-POINT", "Probability from which confidence is called high")
MASS = own("INTERVAL-MASS", "Mass of the credible intervals")
REVISION = own("REVISION", "Revision of this answer")
DOMAIN = {
    "judged": own("JUDGED", "Patches compared with the profile's reference"),
    "embedding_far": own("EMBEDDING-FAR", "Patches with an embedding unlike the reference"),
    "intensity_outside": own("INTENSITY-OUT", "Patches with intensities unlike the reference"),
}
DOMAIN_LIMIT = own("DOMAIN-LIMIT", "Share of such patches that makes it out of domain")

PREDICTED = own("PREDICTED", "Class with the largest probability")
NO_CLASS = own("NONE", "No class: no patch was used")
DECISION = own("DECISION", "What the answer may be called")
REASON = own("DECISION-REASON", "Why it is called so, and not more")
HIGH_CONFIDENCE = own("HIGH-CONFIDENCE", "Confidence at or above the operating point")
LOW_TISSUE = own("LOW-TISSUE", "Fewer used patches than the profile asks for")
STATE = own("STATE", "State of the acquisition")
INTENDED_USE = own("INTENDED-USE", "Intended use")
SPECIMEN_ORIGIN = own("ORIGIN", "What was imaged")
SYNTHETIC = own("SYNTHETIC", "Synthetic phantom, not tissue")

DECISIONS = {
    "insufficient": "Insufficient: too little tissue",
    "out_of_domain": "Out of domain: do not use",
    "provisional": "Provisional",
    "final": "Final, below high confidence",
    "high_confidence": "High confidence",
}


def decision(word: str) -> CodedConcept:
    """The decision as a concept; code values are the payload's words."""
    return own(word, DECISIONS[word])


def reason(word: str) -> CodedConcept:
    """The decision's reason as a concept; code values are the payload's words."""
    sentence = REASONS.get(word, "")
    return own(word, sentence if 0 < len(sentence) <= LONGEST_MEANING else word.replace("_", " ").capitalize())


def probability(name: str) -> CodedConcept:
    """Posterior mean probability of a class."""
    return own(f"P:{name}", f"Probability of class {name}")


def bounds(name: str) -> tuple[CodedConcept, CodedConcept]:
    """Lower and upper end of the credible interval of a class."""
    ends = (("L", "Lower"), ("U", "Upper"))
    lower, upper = (own(f"{letter}:{name}", f"{end} end of the credible interval, {name}") for letter, end in ends)
    return lower, upper


def rejected(why: str) -> CodedConcept:
    """Patches rejected for one reason."""
    return own(f"R:{why}", f"Patches rejected: {why}")
