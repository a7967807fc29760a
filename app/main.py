"""The server on one screen: `create_app`, its routes and what runs beside them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.api import (
    aliases,
    attacks,
    audit,
    bulk,
    checkpoints,
    datasets,
    docs,
    downloads,
    estimates,
    health,
    holds,
    jobs,
    keys,
    models,
    openapi,
    overrides,
    problems,
    requests,
    retirements,
    reviews,
    schemas,
)
from app.audit.sequencer import sequencing
from app.deployment import Deployment, deploy
from app.settings import settings
from app.sweeper import sweeping

ABOUT = """Ask a model to forget, and get a new version with evidence.

1. `POST /v1/datasets` the retain, train and test sets, `POST /v1/uploads` a model directory, `POST /v1/models`.
2. `POST /v1/requests` what to forget; poll the `Location` until the status is completed, evaluation_failed, failed,
   cancelled, denied or expired; follow the job's `/events` meanwhile.
3. `GET /v1/models/{name}/checkpoints/{number}/report` (or `/report.html`), then `/archive` or `/files/{path}`; `number` may
   be `head` or an alias.
4. `PUT /v1/models/{name}/aliases/production` says which version serves, `POST .../rollback` takes it back.
5. `GET /v1/audit` says who did what when; `/v1/audit/export` gives it to `lethe audit verify`, which needs no server.

Every route needs `Authorization: Bearer <key>` but for the health routes, the catalogue and the schemas. Every error is an
`application/problem+json` document (RFC 9457) with a stable `type`, the `request_id` that the server's log has and,
where the input is at fault, `errors[]` naming field, rule and remedy. Lists are paged by cursor: pass `next` as `after`.
"""


def create_app(lethe: Deployment | None = None) -> FastAPI:
    """The ASGI application; `uvicorn --factory app.main:create_app`."""
    deployment = lethe or deploy(settings())

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        beside = (sweeping(deployment), sequencing(deployment.store), deployment.decoders)
        for each in beside:
            each.start()
        yield
        for each in beside:
            each.stop()
        deployment.store.close()

    app = FastAPI(title="Lethe", version="0.1.0", description=ABOUT, lifespan=run, docs_url=None, redoc_url=None)
    app.state.lethe = deployment
    problems.install(app, deployment)
    about_models = (datasets, models, aliases, checkpoints, overrides, retirements, downloads)
    about_requests = (bulk, estimates, requests, reviews, holds, attacks, jobs)  # the first two before {request_id}
    for resource in (*about_models, *about_requests, audit, keys, schemas, health):
        app.include_router(resource.router)
    docs.install(app)
    openapi.describe(app)
    return app
