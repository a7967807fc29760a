"""If-Match: which state of a thing a change is meant for, held against the one that is there."""

from app.errors import Refused


def matches(if_match: str, etag: str) -> bool:
    """By strong comparison: a weak tag matches nothing."""
    tags = [tag.strip() for tag in if_match.split(",")]
    return tags == ["*"] or etag in tags


def precondition_required(what: str, otherwise: str = "") -> Refused:
    """For a change of a thing without If-Match; `otherwise` says what else would do."""
    rule, remedy = f"It must name the {what}'s ETag{otherwise}.", f"GET the {what} first."
    return Refused("precondition-required", "If-Match", rule, remedy, 428)
