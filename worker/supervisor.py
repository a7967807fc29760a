"""Holds a lease and watches the runner work: events in, heartbeats out, and the end of the job, whatever it is.

The supervisor knows the database and the keys and never imports torch; the runner is the other way round. Cancel
and deadline arrive with the heartbeat: a cooperative stop first, TERM after the grace time, then KILL.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from app.errors import JobError, LeaseLost
from app.privacy import purge
from app.privacy.sealing import Keyring
from app.records.session import Store
from app.settings import Settings
from app.storage import LocalBlobs
from worker import register
from worker.lease import Lease, claim
from worker.specification import Specification, specify
from worker.warm import Runner

log = structlog.get_logger()


class Supervisor:
    """One per worker process. `draining` tells when this worker should take and hold no more work."""

    def __init__(self, settings: Settings, name: str, draining: Callable[[], bool]) -> None:
        self.settings, self.name, self.draining = settings, name, draining
        self.store = Store(settings.database)
        self.blobs = LocalBlobs(settings.blob_root)
        self.keyring = Keyring(settings.key_root)
        self.scratch = private_scratch(settings.scratch)
        self.runner = Runner(self.scratch)

    def look(self) -> int:
        """Take jobs until none is claimable. Returns how many ended or went back here."""
        count = 0
        while not self.draining():
            lease = claim(self.store, self.name, self.settings.lease_seconds)
            if lease is None:
                break
            count += 1
            with structlog.contextvars.bound_contextvars(job=lease.job_id, request=lease.request_id):
                self._hold(lease)
        return count

    def close(self) -> None:
        self.runner.kill()
        self.store.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _hold(self, lease: Lease) -> None:
        try:
            work = self.scratch / f"{lease.job_id}-{lease.token}"
            specification = specify(self.store, lease, self.keyring, self.blobs, self.settings, work)
            self._watch(lease, specification)
        except LeaseLost:
            log.warning("lease.lost", token=lease.token)
            self._replace_runner()
        except JobError as error:
            lease.fail(error)
            log.warning("job.failed", code=error.code)
        finally:
            shutil.rmtree(self.scratch / f"{lease.job_id}-{lease.token}", ignore_errors=True)
        purge.after_job(self.store, self.keyring, self.blobs, lease.job_id, self.settings)

    def _watch(self, lease: Lease, specification: Specification) -> None:
        if not self.runner.alive():
            self._replace_runner()
        self.runner.send({"run": specification.message})
        beat, stop = self.settings.lease_seconds / 3, _Stop(self.runner, self.settings.grace_seconds)
        renew_at = time.monotonic() + beat
        while True:
            try:
                message = self.runner.receive(min(0.2, beat))
            except EOFError:
                self._runner_died(lease, stop)
                return
            if message and self._take(lease, specification, message, stop):
                return
            if time.monotonic() >= renew_at:
                if lease.renew():
                    stop.ask("cancelled")
                renew_at = time.monotonic() + beat
            if self.draining():
                stop.ask("drained")
            stop.press()

    def _take(self, lease: Lease, specification: Specification, message: dict[str, Any], stop: "_Stop") -> bool:
        """One message of the runner. True when the job is over for this worker."""
        kind, data = message["kind"], message["data"]
        if kind == "stage":
            lease.tell("stage", data, stage=data["stage"], progress={})
        elif kind == "progress":
            lease.tell("progress", data, progress=data)
        elif kind == "note":
            lease.tell("note", data)
        elif kind == "saved":
            blob = register.keep_resume_state(self.blobs, lease, data["path"])
            lease.tell("resume_saved", {"step": data["step"]}, resume_blob=blob)
        elif kind == "done":
            register.register(self.store, self.blobs, lease, specification, data)
            log.info("job.succeeded", verdict=data["report"]["verdict"])
            self._spare(data["resident_mb"])
            return True
        elif kind == "failed":
            lease.fail(JobError(data["code"], data["detail"]))
            log.warning("job.failed", code=data["code"])
            self._replace_runner()
            return True
        elif kind == "stopped":
            self._stopped(lease, data["why"])
            return True
        return False

    def _stopped(self, lease: Lease, why: str) -> None:
        if why == "cancelled":
            lease.cancel()
            self._replace_runner()
        else:
            lease.release(why)
        log.info("job.stopped", why=why)

    def _runner_died(self, lease: Lease, stop: "_Stop") -> None:
        self._replace_runner()
        if stop.why is None:
            log.error("runner.died")
            lease.crash()
        else:
            self._stopped(lease, stop.why)

    def _spare(self, resident_mb: float) -> None:
        limit = self.settings.runner_memory_mb
        if limit and resident_mb > limit:
            self._replace_runner()

    def _replace_runner(self) -> None:
        self.runner.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(mode=0o700)
        self.runner = Runner(self.scratch)


class _Stop:
    """How hard a running job is being asked to stop."""

    def __init__(self, runner: Runner, grace: float) -> None:
        self.why: str | None = None
        self._runner, self._grace, self._asked_at, self._pressed = runner, grace, 0.0, 0

    def ask(self, why: str) -> None:
        if self.why is None:
            self.why, self._asked_at = why, time.monotonic()
            self._runner.send({"stop": why})

    def press(self) -> None:
        if self.why is None:
            return
        waited = time.monotonic() - self._asked_at
        if waited > 2 * self._grace and self._pressed < 2:
            self._pressed = 2
            self._runner.kill()
        elif waited > self._grace and self._pressed < 1:
            self._pressed = 1
            self._runner.terminate()


def private_scratch(root: Path) -> Path:
    """A fresh private folder for this process; those that dead processes of this host left are removed."""
    host = socket.gethostname()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in root.glob(f"{host}-*"):
        number = left.name.removeprefix(f"{host}-")
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(left, ignore_errors=True)
    mine = root / f"{host}-{os.getpid()}"
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir(mode=0o700)
    return mine
