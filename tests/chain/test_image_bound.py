"""Copies of images stay within their bound through launches, and none goes that is used."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.compute import role as compute_role
from appliance.compute.subject import Subject
from appliance.images.cache import ImageCache, ImageSource
from appliance.images.store import ImageStore
from appliance.messages import FetchImage
from appliance.model import ImageGrant, ImageRef
from appliance.node import NodeParts
from appliance.store import images
from tests.chain.conftest import MakeChain
from tests.chain.harness import MIB, Chain, wait_until

LIMIT_BYTES = 2 * MIB + MIB // 2


class OtherNode:
    """A node that holds every image."""

    name = "other"

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def read(self, image: ImageRef) -> Iterator[bytes]:
        yield self.contents[image.sha256]


@pytest.fixture
def other() -> OtherNode:
    return OtherNode()


@pytest.fixture
def chain(make_chain: MakeChain, other: OtherNode, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A node that fetches what it lacks, as one of many does, and keeps little of it."""

    def make_cache(parts: NodeParts) -> ImageCache:
        return ImageCache(ImageStore(parts.config.images_dir), limit_bytes=LIMIT_BYTES)

    def sources(subject: Subject, sha256: str) -> list[ImageSource]:
        return [other]

    monkeypatch.setattr(compute_role, "_make_cache", make_cache)
    monkeypatch.setattr(Subject, "image_sources", sources)
    return make_chain()


def register(chain: Chain, other: OtherNode, name: str) -> images.Image:
    """Register an image of a MiB that this node does not hold; launches are of it from now on."""
    content = name.encode().ljust(MIB, b".")
    digest = hashlib.sha256(content).hexdigest()
    other.contents[digest] = content
    new = images.NewImage(
        project_id=chain.project_id,
        kind=images.MACHINE,
        name=name,
        format="raw",
        sha256=digest,
        size_bytes=MIB,
        virtual_size_bytes=MIB,
    )
    made: images.Image = chain.node.store.transaction(lambda tx: images.create(tx, new))
    chain.image = made
    return made


def launch(chain: Chain) -> str:
    (instance_id,) = chain.run_instances()
    chain.wait_for("running", instance_id)
    return instance_id


def copy_of(chain: Chain, image: images.Image) -> Path:
    return chain.config.images_dir / image.sha256


def test_the_next_launch_evicts_what_no_instance_uses(
    chain: Chain, other: OtherNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    original = copy_of(chain, chain.image)
    used = register(chain, other, "used")
    launch(chain)
    unused = register(chain, other, "unused")
    ended = launch(chain)
    chain.terminate(ended)
    chain.wait_for("terminated", ended)
    assert copy_of(chain, unused).exists(), "it is kept while there is room"

    new = register(chain, other, "new")
    launch(chain)
    there = [copy_of(chain, image).exists() for image in (used, unused, new)]
    assert there == [True, False, True]
    assert original.exists(), "nobody else has it"
    (said,) = [one.getMessage() for one in caplog.records if "evicted" in one.msg]
    assert unused.sha256 in said
    assert said.endswith("copies take 2 of 2 MiB, 1 MiB are to come")

    register(chain, other, "one too many")
    (refused,) = chain.run_instances()
    (ended_as,) = chain.wait_for("terminated", refused)
    assert ended_as.reason is not None
    assert "images in use take 2 of 2 MiB" in ended_as.reason.message
    chain.assert_clean()


def test_a_start_trims_what_is_too_much(chain: Chain, other: OtherNode) -> None:
    used = register(chain, other, "used")
    launch(chain)
    chain.stop()
    store = ImageStore(chain.config.images_dir)
    for name in ("old", "older", "oldest"):
        content = name.encode().ljust(MIB, b".")
        digest = hashlib.sha256(content).hexdigest()
        ref = ImageRef(image_id=name, sha256=digest, format="raw", size_bytes=MIB)
        store.receive(ref, [content])
    chain.start()
    copies = {file.sha256 for file in store.list()} - store.originals()
    assert used.sha256 in copies
    assert sum(file.allocated_bytes for file in store.list() if file.sha256 in copies) <= (
        LIMIT_BYTES
    )


def test_a_second_copy_evicts_nothing(
    chain: Chain,
    other: OtherNode,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else nodes would evict and fetch each other's images in turn, for ever."""
    caplog.set_level(logging.INFO)
    compute = chain.node.roles["compute"].hears[FetchImage].__self__  # type: ignore[attr-defined]
    member = SimpleNamespace(client_context=None)
    monkeypatch.setattr(compute, "_parts", dataclasses.replace(compute._parts, cluster=member))
    monkeypatch.setattr(compute_role, "sources_of", lambda *_: [other])
    wanted = [register(chain, other, name) for name in ("one", "two", "three")]
    for image in wanted:
        grant = ImageGrant(sha256=image.sha256, holders=(), ticket="")
        compute.fetch_image(FetchImage(image=ref_of(image), grant=grant))
        words = (f"image {image.image_id} is here now", f"no second copy of image {image.image_id}")
        wait_until(partial(has_said, caplog, words), "it is decided")
    assert [copy_of(chain, image).exists() for image in wanted] == [True, True, False]
    assert not [one for one in caplog.records if "evicted" in one.msg]


def has_said(caplog: pytest.LogCaptureFixture, words: tuple[str, ...]) -> bool:
    return any(one.getMessage().startswith(words) for one in caplog.records)


def ref_of(image: images.Image) -> ImageRef:
    return ImageRef(
        image_id=image.image_id,
        sha256=image.sha256,
        format=image.format,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
    )
