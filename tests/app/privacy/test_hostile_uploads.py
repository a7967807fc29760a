"""Hostile uploads against a running server: each refused for what it is, in little memory, with nothing left behind."""

import gzip
import json
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.records import api_key as api_keys
from tests import hostile, pictures, tiny, tiny_pipelines
from tests.app.api.deployed import stored
from tests.hostile import GOOD, altered, described, image, png_of, safetensors, saved, tensor, zipped
from tests.running import Running, children, until

ENTRIES = 20_000
MEMORY_MB = 300  # of the server, and of a decoder
Files = Mapping[str, bytes]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    running = Server(tmp_path_factory.mktemp("hostile"))
    try:
        yield running
    finally:
        running.stop()


class Server:
    """A server as `lethe serve` runs it, with a temporary folder and a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.running, self.log, self.temporary = Running(folder / "lethe"), folder / "log", folder / "tmp"
        self.temporary.mkdir()
        self.folder, lethe = folder, self.running.lethe
        environment = self.running.environment | {"TMPDIR": str(self.temporary), "LETHE_MAX_ENTRIES": str(ENTRIES)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment, stderr=log)
        with lethe.store.write() as session:
            key = api_keys.issue(session, lethe.pepper, name="admin", role="admin", actor="test")[1]
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.running.port}", headers=headers, timeout=60)
        until(self._answers, "the server answers")
        assert self.upload("train", pictures.imagefolder(), "first").status_code == 201
        assert self.upload("forget", pictures.imagefolder()).status_code == 201

    def upload(self, role: str, body: bytes, name: str = "bad") -> httpx.Response:
        params = {"role": role} | ({} if role == "forget" else {"name": name})
        return self.http.post("/v1/datasets", params=params, content=body, headers={"Content-Type": "application/zip"})

    def register(self, archive: bytes, family: str) -> httpx.Response:
        answer = self.http.post("/v1/uploads", content=archive, headers={"Content-Type": "application/zip"})
        body = {"name": "bad", "family": family, "source": {"upload": answer.json()["id"]}}
        return self.http.post("/v1/models", json=body)

    def held(self) -> tuple[Any, list[str]]:
        """What is on the disk and in the database."""
        return stored(self.running.lethe), [path.name for path in self.temporary.rglob("*")]

    def peaks_mb(self) -> tuple[int, int]:
        """The most memory that the server and any of its decoders has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        own = re.search(r"VmHWM:\s+(\d+) kB", status)
        read = [json.loads(line) for line in self.log.read_text().splitlines() if '"decoder.read"' in line]
        assert own is not None and read
        return int(own[1]) >> 10, max(line["peak_mb"] for line in read)

    def decoding(self) -> list[int]:
        """Living processes below the one that starts decoders."""
        (starter,) = children(self.process.pid)
        return [pid for pid in children(starter) if "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.http.close()
        self.running.stop()

    def _answers(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


def check(
    server: Server, send: Callable[[], httpx.Response], status: int, kind: str, entries: int = 0
) -> dict[str, Any]:
    """The problem of a refusal that left nothing but so many entries of the history; the next upload finds a server that is
    as before."""
    before = server.held()
    before[0][0]["history"] += entries
    answer = send()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"urn:lethe:problem:{kind}", problem
    (error,) = problem["errors"]
    assert error["field"] and error["rule"] and error["remedy"]
    after = server.held()
    assert after == before and after[1] == []
    until(lambda: not server.decoding(), "no decoder is left", seconds=5)
    own, decoder = server.peaks_mb()
    assert own < MEMORY_MB and decoder < MEMORY_MB, (own, decoder)
    return problem


def encrypted() -> bytes:
    whole = hostile.patched(zipped({"0/a.png": GOOD}), b"PK\x01\x02", 8, "<H", 1)
    return hostile.patched(whole, b"PK\x03\x04", 6, "<H", 1)


SETS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "zip slip": (lambda: zipped({"0/../../up.png": GOOD}), 422, "archive-path"),
    "absolute name": (lambda: zipped({"/etc/a.png": GOOD}), 422, "archive-path"),
    "drive letter": (lambda: zipped({"C:/0/a.png": GOOD}), 422, "archive-path"),
    "backslashes": (lambda: zipped({"0\\..\\..\\a.png": GOOD}), 422, "archive-path"),
    "control character": (lambda: zipped({"0/a\x1b[2J.png": GOOD}), 422, "archive-path"),
    "tar slip": (lambda: hostile.tar_of(name="../../up.png"), 422, "archive-path"),
    "zip bomb": (lambda: zipped({"0/a.png": bytes(40 << 20)}, zipfile.ZIP_DEFLATED), 413, "archive-ratio"),
    "tar.gz bomb": (lambda: gzip.compress(hostile.tar_of(bytes(60 << 20))), 413, "archive-ratio"),
    "very many entries": (lambda: hostile.crowded(ENTRIES + 1), 413, "archive-too-many-entries"),
    "zip in a zip": (lambda: zipped({"0/a.zip": zipped({})}), 422, "archive-nested"),
    "symlink in a zip": (lambda: hostile.special(hostile.SYMLINK), 422, "archive-link"),
    "fifo in a zip": (lambda: hostile.special(hostile.FIFO), 422, "archive-link"),
    "device in a zip": (lambda: hostile.special(hostile.DEVICE), 422, "archive-link"),
    "symlink in a tar": (lambda: hostile.tar_of(type=tarfile.SYMTYPE, linkname="/etc/passwd"), 422, "archive-link"),
    "hard link in a tar": (lambda: hostile.tar_of(type=tarfile.LNKTYPE, linkname="0/b.png"), 422, "archive-link"),
    "fifo in a tar": (lambda: hostile.tar_of(type=tarfile.FIFOTYPE), 422, "archive-link"),
    "device in a tar": (lambda: hostile.tar_of(type=tarfile.CHRTYPE), 422, "archive-link"),
    "names that differ by case": (lambda: zipped({"0/A.png": GOOD, "0/a.png": GOOD}), 422, "archive-duplicate"),
    "names that differ by Unicode form": (
        lambda: zipped({"0/\u00e9.png": GOOD, "0/e\u0301.png": GOOD}), 422, "archive-duplicate"),
    "one name, twice": (
        lambda: hostile.zip_of((zipfile.ZipInfo("0/a.png"), GOOD), (zipfile.ZipInfo("0/./a.png"), GOOD)), 422, "archive-duplicate"),
    "local and central header disagree": (
        lambda: zipped({"0/a.png": GOOD}).replace(b"0/a.png", b"0/b.png", 1), 422, "archive-mismatch"),
    "entries share their bytes": (hostile.overlapping, 422, "archive-overlap"),
    "huge declared size": (lambda: hostile.declaring(3 << 30), 413, "archive-too-large"),
    "more inside than declared": (lambda: hostile.declaring(10), 422, "archive-damaged"),
    "encrypted": (encrypted, 422, "archive-encrypted"),
    "rare compression": (lambda: zipped({"0/a.png": GOOD}, zipfile.ZIP_LZMA), 422, "archive-compression"),
    "negative size in a tar": (lambda: hostile.tar_with_size(b"\xff" * 12), 422, "archive-damaged"),
    "huge size in a tar": (lambda: hostile.tar_with_size(b"77777777777\0"), 413, "archive-too-large"),
    "gzip with trailing data": (lambda: gzip.compress(hostile.tar_of()) + b"more", 422, "archive-damaged"),
    "gzip of something else": (lambda: gzip.compress(b"hello" * 999), 422, "archive-damaged"),
    "no archive": (lambda: GOOD, 422, "archive-format"),
    "PNG that is a zip, too": (lambda: image(GOOD + zipped({"x.py": b"import os"})), 422, "image-polyglot"),
    "GIF as PNG": (lambda: image(saved("GIF")), 422, "image-format"),
    "pickle as PNG": (lambda: image(pickle.dumps({"a": 1})), 422, "image-format"),
    "SVG as PNG": (lambda: image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 422, "image-format"),
    "SVG": (lambda: image(b"<svg/>", "0/a.svg"), 422, "file-type"),
    "Python among images": (lambda: zipped({"0/a.png": GOOD, "0/a.py": b"import os"}), 422, "file-type"),
    "animated PNG": (lambda: image(hostile.animated("PNG")), 422, "image-animated"),
    "animated WEBP": (lambda: image(hostile.animated("WEBP"), "0/a.webp"), 422, "image-animated"),
    "truncated PNG": (lambda: image(saved("PNG")[:3000]), 422, "image-damaged"),
    "truncated JPEG": (lambda: image(saved("JPEG")[:2000], "0/a.jpg"), 422, "image-damaged"),
    "truncated WEBP": (lambda: image(saved("WEBP")[:2000], "0/a.webp"), 422, "image-damaged"),
    "odd mode, truncated": (lambda: image(saved("JPEG", mode="CMYK")[:2000], "0/a.jpg"), 422, "image-damaged"),
    "PNG of 100 megapixels": (lambda: image(png_of(10_000, 10_000)), 413, "image-too-large"),
    "PNG of 4 gigapixels by 4": (lambda: image(png_of(0x7FFFFFFF, 0x7FFFFFFF)), 413, "image-too-large"),
    "49 megapixels and no data": (lambda: image(png_of(7_000, 7_000)), 422, "image-damaged"),
    "text that unfolds": (
        lambda: image(png_of(8, 8, (b"zTXt", b"Note\0\0" + hostile.unfolding()))), 422, "image-metadata"),
    "profile that unfolds": (
        lambda: image(png_of(8, 8, (b"iCCP", b"Note\0\0" + hostile.unfolding()))), 422, "image-metadata"),
    "metadata in one endless line": (lambda: described(b"[]," * (10 << 20)), 413, "metadata-too-large"),
    "metadata of millions of lines": (
        lambda: described(b"".join(b'{"file_name":"%d"}\n' % at for at in range(ENTRIES + 1))), 413, "metadata-too-large"),
    "metadata nested without end": (lambda: described(b"[" * 60_000), 422, "metadata-format"),
    "metadata that is no number": (
        lambda: described(b'{"file_name": "a.png", "label": "x", "weight": NaN}'), 422, "metadata-format"),
    "metadata that is not UTF-8": (lambda: described(b'{"file_name": "\xff.png"}'), 422, "metadata-encoding"),
    "metadata that leaves its folder": (
        lambda: described(b'{"file_name": "../../etc/passwd", "label": 1}'), 422, "metadata-path"),
    "metadata for what is not there": (lambda: described(b'{"file_name": "b.png", "label": 1}'), 422, "metadata-unmatched"),
    "caption too long": (
        lambda: described(json.dumps({"file_name": "a.png", "label": 1, "text": "x" * 2001}).encode()), 422, "metadata-format"),
    "CSV field without end": (
        lambda: described(b'file_name,label\n"' + b"x\n" * 200_000, "metadata.csv"), 422, "metadata-format"),
}  # fmt: skip


@pytest.mark.parametrize("role", ["train", "forget"])
@pytest.mark.parametrize("case", SETS)
def test_a_hostile_set_is_refused_for_what_it_is(server: Server, case: str, role: str) -> None:
    make, status, kind = SETS[case]
    body = make()
    problem = check(server, lambda: server.upload(role, body), status, kind)
    assert role == "train" or not any(name in json.dumps(problem) for name in ("passwd", "up.png", "a.png", "b.png"))


def weights(content: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, "model.safetensors": content}


def config(**changes: Any) -> Callable[[Files], Files]:
    return lambda files: altered(files, **changes)


def added(name: str, content: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: content}


def pipeline(**changes: Any) -> Callable[[Files], Files]:
    return lambda files: altered(files, "model_index.json", **changes)


def regex(files: Files) -> Files:
    split = {"type": "Split", "pattern": {"Regex": r"((\p{L}+)\s?)+$"}, "behavior": "Isolated", "invert": False}
    return altered(files, "tokenizer.json", pre_tokenizer=split)


def named_twice(files: Files) -> Files:
    return {**files, "Config.JSON": b"{}"}


def with_tensor(**changes: Any) -> Callable[[Files], Files]:
    return weights(safetensors({"a": tensor(0, 8) | changes}, bytes(8)))


ONE = tensor(0, 8)
MODELS: dict[str, tuple[str, Callable[[Files], Files], int, str]] = {
    "pickle renamed": ("vit", weights(pickle.dumps({"a": 1})), 422, "pickle-refused"),
    "torch's zip of a pickle renamed": ("vit", weights(zipped({"data.pkl": b"x"})), 422, "pickle-refused"),
    "pickle by name": ("vit", added("pytorch_model.bin", pickle.dumps({})), 422, "pickle-refused"),
    "header of exabytes": ("vit", weights(safetensors(b"{}", length=1 << 62)), 422, "safetensors-header"),
    "header beyond the file": ("vit", weights(safetensors(b"{}", length=4096)), 422, "safetensors-header"),
    "header that is no JSON": ("vit", weights(safetensors(b"{,}")), 422, "safetensors-header"),
    "header nested without end": ("vit", weights(safetensors(b'{"a":' * 100_000)), 422, "safetensors-header"),
    "header that unfolds": (
        "vit", weights(safetensors(b"{" + b'"":[],' * 1_300_000 + b'"":[]}')), 422, "safetensors-header"),
    "one tensor, twice": (
        "vit", weights(safetensors(f'{{"a": {json.dumps(ONE)}, "a": {json.dumps(ONE)}}}'.encode(), bytes(8))), 422, "safetensors-header"),
    "tensors overlap": ("vit", weights(safetensors({"a": ONE, "b": tensor(4, 12)}, bytes(12))), 422, "safetensors-layout"),
    "a hole between tensors": (
        "vit", weights(safetensors({"a": ONE, "b": tensor(12, 20)}, bytes(20))), 422, "safetensors-layout"),
    "bytes after the last tensor": ("vit", weights(safetensors({"a": ONE}, bytes(999))), 422, "safetensors-layout"),
    "the file ends before its tensors": (
        "vit", weights(safetensors({"a": tensor(0, 4 << 40)}, bytes(8))), 422, "safetensors-layout"),
    "negative offsets": ("vit", with_tensor(data_offsets=[-8, 0]), 422, "safetensors-tensor"),
    "a shape of other bytes": ("vit", with_tensor(shape=[1 << 40, 1 << 40]), 422, "safetensors-tensor"),
    "unknown dtype": ("vit", with_tensor(dtype="O"), 422, "safetensors-tensor"),
    "dtype that is not trained": ("vit", with_tensor(dtype="F64", shape=[1]), 422, "weights-dtype"),
    "other weights than the config's": ("vit", config(hidden_size=32), 422, "config-mismatch"),
    "no such tensors": ("vit", with_tensor(), 422, "config-mismatch"),
    "index of shards that leaves the folder": (
        "vit",
        lambda files: {name: content for name, content in files.items() if name != "model.safetensors"}
        | {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../../keys/master"}}).encode()},
        422, "weights-files"),
    "a network of billions": ("vit", config(hidden_size=1 << 40), 422, "config-value"),
    "a diffusion network of billions": ("unet", config(block_out_channels=[1 << 40] * 2), 422, "config-value"),
    "config nested without end": ("vit", added("config.json", b'{"a":' * 100_000), 422, "config-format"),
    "config of a number without end": ("vit", added("config.json", b'{"a": ' + b"9" * 100_000 + b"}"), 422, "config-format"),
    "config that unfolds": ("vit", added("config.json", b'{"a": [' + b"[]," * (2 << 20) + b"[]]}"), 422, "config-too-large"),
    "vocabulary that unfolds": ("clip", added("vocab.json", b'{"a": [' + b"[]," * (4 << 20) + b"[]]}"), 422, "config-too-large"),
    "auto_map": ("vit", config(auto_map={"AutoModel": "evil.Model"}), 422, "code-refused"),
    "trust_remote_code": ("vit", config(trust_remote_code=True), 422, "code-refused"),
    "Python beside the weights": ("vit", added("modeling_vit.py", b"import os"), 422, "code-refused"),
    "a class off the list": ("vit", config(architectures=["BertModel"]), 422, "class-not-allowed"),
    "chat template in a classifier": ("vit", added("chat_template.jinja", b"{{ ''.__class__ }}"), 422, "file-not-allowed"),
    "chat template in a tokenizer": (
        "clip", lambda files: altered(files, "tokenizer_config.json", chat_template="{{ ''.__class__ }}"), 422, "code-refused"),
    "tokenizer of a class from elsewhere": (
        "clip", lambda files: altered(files, "tokenizer_config.json", tokenizer_class="os.system"), 422, "class-not-allowed"),
    "tokenizer whose pattern never ends": ("clip", regex, 422, "pattern-refused"),
    "pipeline of the module os": ("pipeline", pipeline(unet=["os", "system"]), 422, "class-not-allowed"),
    "pipeline of the module subprocess": ("pipeline", pipeline(vae=["subprocess", "Popen"]), 422, "class-not-allowed"),
    "pipeline of a class from elsewhere": ("pipeline", pipeline(_class_name="EvilPipeline"), 422, "class-not-allowed"),
    "custom_pipeline": ("pipeline", pipeline(custom_pipeline="someone/evil"), 422, "code-refused"),
    "names that differ by case": ("vit", named_twice, 422, "archive-duplicate"),
    "zip slip": ("vit", added("../config.json", b"{}"), 422, "archive-path"),
    "bomb": ("vit", added("README.md", bytes(60 << 20)), 413, "archive-ratio"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Files]]:
    """Directories that a server accepts, with their families."""
    folder = tmp_path_factory.mktemp("good")
    made = {name: (tiny.NETWORKS[name], tiny.write(name, folder / name)) for name in ("vit", "unet", "clip")}
    made["pipeline"] = ("text_to_image", tiny_pipelines.write_pipeline("sd", folder / "pipeline"))
    return {name: (family, hostile.files_of(directory)) for name, (family, directory) in made.items()}


@pytest.mark.parametrize("case", MODELS)
def test_a_hostile_model_is_refused_for_what_it_is(
    server: Server, good: dict[str, tuple[str, Files]], case: str
) -> None:
    name, change, status, kind = MODELS[case]
    family, files = good[name]
    archive = zipped(change(files), zipfile.ZIP_DEFLATED if kind == "archive-ratio" else zipfile.ZIP_STORED)
    check(server, lambda: server.register(archive, family), status, kind, entries=2)  # received, refused


def test_the_same_server_still_takes_what_is_good(server: Server, good: dict[str, tuple[str, Files]]) -> None:
    for name, (family, files) in good.items():
        body = {"name": name, "family": family, "source": {"upload": upload(server, zipped(files))}}
        answer = server.http.post("/v1/models", json=body)
        assert answer.status_code == 201, answer.text


def upload(server: Server, archive: bytes) -> str:
    answer = server.http.post("/v1/uploads", content=archive, headers={"Content-Type": "application/zip"})
    return str(answer.json()["id"])


def test_there_are_at_least_forty_uploads_and_as_many_kinds_as_faults() -> None:
    assert len(SETS) + len(MODELS) >= 40
    kinds = {kind for *_, kind in (*SETS.values(), *MODELS.values())}
    assert len(kinds) >= 30, sorted(kinds)
