"""/v1/models/{name}/checkpoints: lineage, reports, pictures, and files by whole, by range and as an archive."""

import base64
import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import ViTForImageClassification

from app import report as published
from app.main import create_app
from app.records.checkpoint import Status
from tests import reports
from tests.app.api.deployed import World, add_version, asked, audited, refused, stored

BASE = "/v1/models/digits/checkpoints"
FILE = "model.safetensors"


def test_the_lineage_is_listed_in_order(world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path)
    listed = world.requester.get(BASE, params={"limit": 200}).json()["data"]
    assert [each["number"] for each in listed] == list(range(1, number + 1))
    assert listed[0]["parent"] is None and listed[-1]["parent"] in range(1, number)
    version = world.requester.get(f"{BASE}/{number}").json()
    assert version == listed[-1] == world.requester.get(f"{BASE}/head").json()
    assert {file["path"]: file["sha256"] for file in version["files"]} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }
    assert version["changes"]["tensors_changed"] > 0 and version["pictures"] == ["grid.png"]


def test_versions_are_paged_in_order_and_know_parents_of_other_pages(world: World, tmp_path: Path) -> None:
    head = max(add_version(world, tmp_path)[0] for _ in range(3))
    seen, link = [], f"{BASE}?limit=1"
    while link:
        answer = world.requester.get(link)
        (version,) = answer.json()["data"]
        seen.append(version)
        assert answer.json()["has_more"] == ("link" in answer.headers) == (version["number"] < head)
        link = answer.links["next"]["url"] if "link" in answer.headers else ""
    assert seen == world.requester.get(BASE, params={"limit": 200}).json()["data"]
    assert [each["number"] for each in seen] == list(range(1, head + 1)) and seen[-1]["parent"] == head - 1
    for cursor in ("x", "-1", "²"):
        refused(world.requester.get(BASE, params={"after": cursor}), 422, "bad-cursor", "after")


@pytest.mark.parametrize("number", ["0", "99", "-1", "²", "x", "9" * 40, "1.0", "head2"])
def test_versions_that_are_not_there(world: World, number: str) -> None:
    for path in ("", "/report", "/archive", f"/files/{FILE}", "/pictures/grid.png"):
        refused(world.admin.get(f"{BASE}/{number}{path}"), 404, "not-found")


def test_report_and_pictures_of_a_version(world: World, tmp_path: Path) -> None:
    number, _ = add_version(world, tmp_path)
    assert world.requester.get(f"{BASE}/{number}/report").json()["verdict"] == "passed"
    refused(world.requester.get(f"{BASE}/{number}/pictures/grid.png"), 403, "missing-scope")
    picture = world.admin.get(f"{BASE}/{number}/pictures/grid.png")
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    refused(world.admin.get(f"{BASE}/{number}/pictures/other.png"), 404)
    refused(world.requester.get(f"{BASE}/1/report"), 404, "not-found")


def test_figures_by_label_are_for_keys_that_may_know_the_concept(world: World, tmp_path: Path) -> None:
    row = reports.figure("per_class_accuracy", 90.0, by_label={"3": 0.0})
    number, _ = add_version(world, tmp_path, report=reports.report(row))
    (shown,) = world.admin.get(f"{BASE}/{number}/report").json()["figures"]
    (hidden,) = world.requester.get(f"{BASE}/{number}/report").json()["figures"]
    assert shown["by_label"] == {"3": 0.0} and hidden == {name: row[name] for name in row if name != "by_label"}


def test_a_key_for_its_own_concepts_sees_nothing_of_what_another_asked(world: World, tmp_path: Path) -> None:
    """No role is such a key: each that has requests:concept has requests:admin, too."""
    scopes = ["models:read", "requests:create", "requests:read", "requests:concept"]
    made = world.admin.post("/v1/keys", json={"name": "own concepts", "scopes": scopes}).json()
    auth = {"Authorization": f"Bearer {made['key']}"}
    document = {"model": "digits", "forget": {"samples": ["0/0"]}, "method": "salun"}
    mine = world.admin.post("/v1/requests", json=document, headers=auth).json()
    row = reports.figure("per_class_accuracy", 90.0, by_label={"3": 0.0})
    for request, own in ((mine, True), (asked(world.stranger), False)):
        document = reports.report(row, pictures=["grid.png"])
        number, _ = add_version(world, tmp_path, report=document, request_id=request["id"])
        picture = world.admin.get(f"{BASE}/{number}/pictures/grid.png", headers=auth)
        page = world.admin.get(f"{BASE}/{number}/report.html", headers=auth)
        (shown,) = world.admin.get(f"{BASE}/{number}/report", headers=auth).json()["figures"]
        assert ("by_label" in shown) == ("<img" in page.text) == own
        assert picture.content.startswith(b"\x89PNG") if own else refused(picture, 404, "not-found")


def test_a_report_is_served_as_it_was_stored_and_meets_the_published_schema(world: World, tmp_path: Path) -> None:
    stored_report = reports.of_a_generator(later="a field of another version")
    number, _ = add_version(world, tmp_path, report=stored_report)
    served = world.admin.get(f"{BASE}/{number}/report").json()
    assert served == stored_report
    answer = TestClient(create_app(world.lethe)).get("/v1/schemas/report")
    assert answer.headers["content-type"] == "application/schema+json"
    assert answer.json() == json.loads(json.dumps(published.schema()))
    documented = world.admin.get("/openapi.json").json()["components"]["schemas"]["Report"]
    assert documented["required"] == answer.json()["required"]


def test_the_page_shows_each_key_what_it_may_know(world: World, tmp_path: Path) -> None:
    made = asked(world.requester, concept="zaphod beeblebrox", recipe={"mask_fraction": 0.25})
    document = reports.of_a_generator(pictures=["grid.png"])
    number, _ = add_version(world, tmp_path, report=document, request_id=made["id"])
    url = f"{BASE}/{number}/report.html"
    mine, whole, foreign = (client.get(url) for client in (world.requester, world.admin, world.stranger))
    for answer in (mine, whole, foreign):
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["cache-control"] == "no-store"
        assert "zaphod" not in answer.text and "97.50" in answer.text and "by_label" not in answer.text
    shown = base64.b64encode(world.admin.get(f"{BASE}/{number}/pictures/grid.png").content).decode()
    assert shown in whole.text and "<img" not in mine.text + foreign.text
    assert "mask_fraction=0.25" in mine.text and "mask_fraction=0.25" in whole.text
    assert made["id"] not in foreign.text and "mask_fraction" not in foreign.text
    refused(world.requester.get(f"{BASE}/1/report.html"), 404, "not-found")
    refused(world.requester.get(f"{BASE}/999/report.html"), 404, "not-found")


def test_each_file_of_each_version_is_what_save_pretrained_wrote(world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path)
    for version, folder in ((1, world.directory), (number, directory)):
        for path in folder.iterdir():
            answer = world.requester.get(f"{BASE}/{version}/files/{path.name}")
            content = path.read_bytes()
            assert answer.status_code == 200 and answer.content == content
            digest = hashlib.sha256(content)
            assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
            assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
            assert answer.headers["content-length"] == str(len(content)) and answer.headers["accept-ranges"] == "bytes"
    for absent in ("absent", "../digits/config.json", "", "config.json/x"):
        assert world.requester.get(f"{BASE}/{number}/files/{absent}").status_code == 404


def test_ranges_are_the_bytes_asked_for(world: World) -> None:
    content = (world.directory / FILE).read_bytes()
    size, url = len(content), f"{BASE}/1/files/{FILE}"
    for header, start, end in (
        ("bytes=0-0", 0, 1), ("bytes=0-", 0, size), ("bytes=7-1000", 7, 1001), (f"bytes={size - 1}-", size - 1, size),
        ("bytes=-5", size - 5, size), (f"bytes=-{size + 9}", 0, size), (f"bytes=10-{size + 99}", 10, size), ("Bytes=3-4", 3, 5),
        (f"bytes=10-{'9' * 5000}", 10, size),
    ):  # fmt: skip
        answer = world.requester.get(url, headers={"Range": header})
        assert answer.status_code == 206, header
        assert answer.content == content[start:end]
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.headers["content-length"] == str(end - start)
    for ignored in ("bytes=5-3", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=²-"):
        answer = world.requester.get(url, headers={b"Range": ignored.encode()})
        assert (answer.status_code, answer.content) == (200, content), ignored


def test_a_range_beyond_the_file(world: World) -> None:
    size, before = (world.directory / FILE).stat().st_size, stored(world.lethe)
    for header in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0", f"bytes={'9' * 5000}-"):
        answer = world.requester.get(f"{BASE}/1/files/{FILE}", headers={"Range": header})
        refused(answer, 416, "range-not-satisfiable")
        assert answer.headers["content-range"] == f"bytes */{size}"
    assert stored(world.lethe) == before


def test_consecutive_ranges_join_to_the_whole_file(world: World) -> None:
    content = (world.directory / FILE).read_bytes()
    url, spans = f"{BASE}/1/files/{FILE}", range(0, len(content), 1000)
    assert (
        b"".join(world.requester.get(url, headers={"Range": f"bytes={at}-{at + 999}"}).content for at in spans)
        == content
    )


def test_conditions_on_the_etag(world: World) -> None:
    url, content = f"{BASE}/1/files/config.json", (world.directory / "config.json").read_bytes()
    etag = world.requester.get(url).headers["etag"]
    for condition in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = world.requester.get(url, headers={"If-None-Match": condition})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert world.requester.get(url, headers={"If-None-Match": '"x"'}).content == content
    ranged = world.requester.get(url, headers={"Range": "bytes=2-4", "If-Range": etag})
    assert (ranged.status_code, ranged.content) == (206, content[2:5])
    for other in ('"x"', f"W/{etag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        whole = world.requester.get(url, headers={"Range": "bytes=2-4", "If-Range": other})
        assert (whole.status_code, whole.content) == (200, content)


def test_head_tells_the_size_and_reads_nothing(world: World) -> None:
    url, size = f"{BASE}/1/files/{FILE}", (world.directory / FILE).stat().st_size
    for headers in ({}, {"Range": "bytes=0-3"}, {"Range": f"bytes={size}-"}):
        answer = world.requester.head(url, headers=headers)
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", str(size))
        assert answer.headers["etag"] and answer.headers["accept-ranges"] == "bytes"
    assert world.requester.head(f"{BASE}/1/files/absent").status_code == 404


def test_the_archive_opens_with_plain_from_pretrained(world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path)
    answer = world.requester.get(f"{BASE}/{number}/archive")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="digits-{number}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "pulled")
    assert {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()} == {
        path.name: path.read_bytes() for path in directory.iterdir()
    }
    pulled, saved = (ViTForImageClassification.from_pretrained(folder) for folder in (tmp_path / "pulled", directory))
    assert all(
        torch.equal(a, b) for a, b in zip(pulled.state_dict().values(), saved.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("status", [Status.QUARANTINED, Status.SUPERSEDED])
def test_versions_that_are_not_released_need_scope_and_reason_and_leave_a_trace(
    world: World, tmp_path: Path, status: Status
) -> None:
    number, directory = add_version(world, tmp_path, status)
    version = world.admin.get(f"{BASE}/{number}").json()
    assert version["status"] == status and world.admin.get(f"{BASE}/head").json()["number"] != number
    for path in (f"files/{FILE}", "archive"):
        url, before = f"{BASE}/{number}/{path}", stored(world.lethe)
        refused(world.requester.get(url, params={"reason": "audit"}), 403, "missing-scope")
        refused(world.admin.get(url), 422, "reason-missing", "reason")
        for blank in ("", " ", "\t\u00a0"):
            refused(world.admin.get(url, params={"reason": blank}), 422, "invalid-input", "query.reason")
        assert stored(world.lethe) == before
        answer = world.admin.get(url, params={"reason": " audit 7 "})
        assert answer.status_code == 200
        entries = audited(world, action="checkpoint.downloaded", resource=version["id"])
        assert entries[-1]["details"] == {"status": status, "reason": "audit 7"} and entries[-1]["actor"].startswith(
            "key:"
        )
    assert (
        world.admin.get(f"{BASE}/{number}/files/{FILE}", params={"reason": "x"}).content
        == (directory / FILE).read_bytes()
    )


def test_asking_without_getting_bytes_leaves_no_download_in_the_history(world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path, Status.QUARANTINED)
    url, params, before = f"{BASE}/{number}/files/{FILE}", {"reason": "x"}, stored(world.lethe)
    size = (directory / FILE).stat().st_size
    assert world.admin.head(url, params=params).status_code == 200
    assert world.admin.get(url, params=params, headers={"If-None-Match": "*"}).status_code == 304
    refused(world.admin.get(url, params=params, headers={"Range": f"bytes={size}-"}), 416)
    assert stored(world.lethe) == before


def test_a_completed_request_supersedes_what_came_before(world: World, tmp_path: Path) -> None:
    number, _ = add_version(world, tmp_path, supersede=True)
    statuses = {each["number"]: each["status"] for each in world.admin.get(BASE, params={"limit": 200}).json()["data"]}
    assert statuses.pop(number) == "released" and "released" not in statuses.values()
    refused(world.requester.get(f"{BASE}/1/files/{FILE}"), 403, "missing-scope")
    assert world.requester.get(f"{BASE}/head/files/{FILE}").status_code == 200
