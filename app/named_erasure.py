"""What a request named, with its caller's `external_id` and the `reference` of its outside check, erased at an operator's word. Of a
completed one nobody is asked about it again, and no duplicate of it is told; of another the purge has left the last two alone.

The key goes first, then the ciphertext and the fingerprint in the transaction that says so. The empty column is what shows an
older copy of the key folder that its key must go again (app/returned_keys.py).
"""

import hashlib

from app.deployment import Deployment
from app.errors import NotFound, Refused
from app.privacy.purge import drop_label_figures
from app.records import history
from app.records.request import KEPT, Request


def erase_named(lethe: Deployment, request_id: str, code: str, actor: str = "operator") -> bool:
    """False when it was erased before. Refused while its purge is still to come, which decides what goes and what is held."""
    with lethe.store.write() as session:
        request = session.get(Request, request_id, with_for_update=True)
        if request is None:
            raise NotFound("request")
        if request.status not in KEPT and request.purged_at is None:
            rule = f"It is {request.status}: what it named goes with its purge."
            raise Refused("not-completed", "request", rule, "Wait for its retention, or shorten it.", 409)
        if request.purged_at is None:
            rule = "Its forget set is still kept, by the model's retention or a legal hold."
            raise Refused("not-purged", "request", rule, "Wait for its purge, or shorten the retention.", 409)
        lethe.keyring.destroy(request.key_id)
        check = request.verification or {}
        if not request.sealed and request.external_id is None and check.get("reference") is None:
            return False
        request.sealed, request.fingerprint, request.external_id = b"", None, None
        if check:
            request.verification = {**check, "reference": None}
        drop_label_figures(session, request_id)
        details = {"code": code, "key": hashlib.sha256(request.key_id.encode()).hexdigest()}
        history.write(session, actor, "request.named_erased", request_id, request_id, details)
    return True
