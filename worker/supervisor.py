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

from app.errors import JobError, LeaseLost, Refused
from app.privacy import purge
from app.privacy.sealing import Keyring
from app.records.session import Store
from app.settings import Settings
from app.storage import LocalBlobs, StorageFull
from worker import register
from worker.lease import Lease, claim
from worker.specification import Specification, specify
from worker.warm import Runner

START_SECONDS = 120  # within which a runner has imported its libraries, on a slow disk too
log = structlog.get_logger()


class Supervisor:
    """One per worker process. `draining` tells when this worker should take and hold no more work."""

    def __init__(self, settings: Settings, name: str, draining: Callable[[], bool]) -> None:
        self.settings, self.name, self.draining = settings, name, draining
        self.store = Store(settings.database)
        self.blobs = LocalBlobs(settings.blob_root)
        self.keyring = Keyring(settings.key_root, settings.master_key_file)
        self.scratch = private_scratch(settings.scratch)
        self.runner, self._ready = Runner(self.scratch), False

    def look(self) -> int:
        """Take jobs until none is claimable. Returns how many ended or went back here."""
        count = 0
        self.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(self.scratch)  # still in use: the sweeper removes what nobody touched for days
        while not self.draining() and self._runner_is_ready():
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

    def _runner_is_ready(self) -> bool:
        """Whether the runner has its libraries: no job is claimed for one that cannot start."""
        if not self.runner.alive():
            self._replace_runner()
        until = time.monotonic() + START_SECONDS
        try:
            while not self._ready and time.monotonic() < until and not self.draining():
                message = self.runner.receive(0.2)
                self._ready = message is not None and message["kind"] == "ready"
        except EOFError:
            log.error("runner.did_not_start")
            self._replace_runner()
            time.sleep(2)
        return self._ready

    def _hold(self, lease: Lease) -> None:
        """One attempt of a job, whatever happens: afterwards the lease is given back and the runner is idle or new."""
        work = self.scratch / f"{lease.job_id}-{lease.token}"
        try:
            try:
                self._watch(lease, specify(self.store, lease, self.keyring, self.blobs, self.settings, work))
            except Refused as refused:
                lease.fail(JobError(refused.code.replace("-", "_"), f"{refused.rule} {refused.remedy}"))
            except StorageFull:
                self._replace_runner()
                lease.fail(JobError("storage_full", "The store has no room for the result. Free space, then retry."))
            except LeaseLost:
                raise
            except JobError as error:
                lease.fail(error)
                log.warning("job.failed", code=error.code)
            purge.after_job(self.store, self.keyring, self.blobs, lease.job_id, self.settings)
        except LeaseLost:
            log.warning("lease.lost", token=lease.token)
            self._replace_runner()
        except Exception as error:  # noqa: BLE001  (the lease runs out, and the sweeper queues the job again)
            log.error("attempt.broken", error=type(error).__name__)
            self._replace_runner()
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _watch(self, lease: Lease, specification: Specification) -> None:
        self.runner.send({"run": specification.message})
        beat, stop = self.settings.lease_seconds / 3, _Stop(self.runner, self.settings.grace_seconds)
        renew_at = time.monotonic() + beat
        while True:
            try:
                message = self.runner.receive(min(0.2, beat))
            except EOFError:
                self._runner_died(lease, stop)
                return
            if message and message["attempt"] == f"{lease.job_id}-{lease.token}":
                if self._take(lease, specification, message):
                    return
            elif message is None:
                stop.press()
            if time.monotonic() >= renew_at:
                if lease.renew():
                    stop.ask("cancelled")
                renew_at = time.monotonic() + beat
            if self.draining():
                stop.ask("drained")

    def _take(self, lease: Lease, specification: Specification, message: dict[str, Any]) -> bool:
        """One message of the runner. True when the job is over for this worker."""
        kind, data = message["kind"], message["data"]
        if kind == "stage":
            lease.tell("stage", data, stage=data["stage"], progress={})
        elif kind == "progress":
            lease.tell("progress", data, progress=data)
        elif kind == "note":
            lease.tell("note", data)
        elif kind == "saved":
            with lease.kept():
                blob = register.keep_resume_state(self.blobs, lease, data["path"])
            lease.tell("resume_saved", {"step": data["step"]}, resume_blob=blob)
        elif kind == "done":
            self._register(lease, specification, data)
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

    def _register(self, lease: Lease, specification: Specification, result: dict[str, Any]) -> None:
        if "attacks" in result:
            register.register_attacks(self.store, lease, result["attacks"])
            log.info("job.succeeded", attacks=len(result["attacks"]))
            return
        with lease.kept():
            register.register(self.store, self.blobs, self.keyring, lease, specification, result)
        log.info("job.succeeded", verdict=result["report"]["verdict"])

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
        self.runner, self._ready = Runner(self.scratch), False


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
        if self._pressed == 0 and waited > self._grace:
            self._pressed = 1
            self._runner.terminate()
        elif self._pressed == 1 and waited > 2 * self._grace:
            self._pressed = 2
            self._runner.strike()


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
