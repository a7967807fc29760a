"""The key of a job's resume state: made once, by the attempt that holds the lease, and by no stale one."""

import pytest

from app.deployment import Deployment
from app.errors import LeaseLost
from app.privacy import purge
from app.records import job as jobs
from tests.app.records.test_job import add_job, add_model
from worker.lease import Lease, claim


def claimed(lethe: Deployment) -> Lease:
    lease = claim(lethe.store, "worker:a", 60.0)
    assert lease is not None
    return lease


def test_the_first_attempt_makes_the_key_and_the_next_one_finds_it(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    lease = claimed(lethe)
    lease.make_key(lethe.keyring)
    key = lethe.keyring.key(job_id)
    lease.release("drained")
    claimed(lethe).make_key(lethe.keyring)
    assert lethe.keyring.key(job_id) == key


def test_a_stale_attempt_makes_no_key(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    stale = claimed(lethe)
    stale.crash()
    later = claimed(lethe)
    later.make_key(lethe.keyring)
    with lethe.store.write() as session:
        jobs.succeed(session, job_id, later.token, later.worker, True, {})
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job_id, lethe.settings)
    with pytest.raises(LeaseLost):
        stale.make_key(lethe.keyring)
    assert not lethe.keyring.exists(job_id)
