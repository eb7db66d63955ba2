"""A Redis in a container, and the container engine that it needs."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from docker.errors import DockerException, ImageNotFound, NotFound
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host

from integration.server_base import STOP_TIMEOUT, OwnedServer, PortTaken, ServerError
from integration.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import docker
    from docker.models.containers import Container

IMAGE_VARIABLE = "COHERENT_CACHE_TEST_IMAGE"
LOCAL_IMAGE = "coherent-cache-redis:local"
OFFICIAL_IMAGE = "redis:7.4-alpine"
DEFAULT_ENGINE = "unix:///var/run/docker.sock"
REDIS_PORT = 6379  # inside a container
ENGINE_TIMEOUT = 60  # seconds for one call to the container engine; vfs copies the whole image for a container

# Images that could not be fetched, by engine, and why: a registry out of reach is waited for once, not in every test.
_UNREACHABLE: dict[tuple[str, str], str] = {}


class ContainerServer(OwnedServer):
    """A container with the port published on the loopback interface only.

    testcontainers' reaper is switched off: it is a container of its own, from an image that may not be reachable, and
    ``stop`` at the end of the tests does its work.
    """

    kind = "container"

    def __init__(
        self, *, config: Mapping[str, str] | None = None, durable: bool = False, image: str | None = None
    ) -> None:
        super().__init__(config=config, durable=durable)
        self._image = image
        self._wrapper: DockerContainer | None = None
        self._identity: str | None = None  # of the last container, kept after its removal for gone()

    @property
    def _container(self) -> Container:
        assert self._wrapper is not None, "not started"
        return self._wrapper.get_wrapped_container()

    def _status(self) -> str:
        """Return "running", "paused", "exited" or another word of the engine."""
        self._container.reload()
        return str(self._container.status)

    @property
    def running(self) -> bool:
        return self._wrapper is not None and self._status() in {"running", "paused"}

    def gone(self) -> bool:
        if self._wrapper is not None:
            return False
        if self._identity is None:
            return True
        with docker_engine() as engine:
            try:
                engine.containers.get(self._identity)
            except NotFound:
                return True
        return False

    def pause(self) -> None:
        self._container.pause()

    def resume(self) -> None:
        if self._wrapper is not None and self._status() == "paused":
            self._container.unpause()

    def kill(self) -> None:
        self.resume()  # older engines refuse to kill a paused container
        self._container.kill()
        wait_until(lambda: not self.running, STOP_TIMEOUT, "the container ends after SIGKILL")

    def _launch(self) -> None:
        try:
            if self._wrapper is None:
                self._create()
            else:
                self._container.start()
        except (DockerException, OSError) as error:  # OSError: a time-out of the call
            if "already allocated" in str(error) or "in use" in str(error):
                raise PortTaken(f"port {self.port} was taken by another program") from error
            raise ServerError(f"the container does not start: {error}") from error

    def _create(self) -> None:
        image = find_image(self._image)
        testcontainers_config.ryuk_disabled = True
        wrapper = DockerContainer(image, docker_client_kw={"timeout": ENGINE_TIMEOUT})
        # Not with_bind_ports(): that publishes on every interface, and the server asks for no password.
        wrapper.ports[f"{REDIS_PORT}/tcp"] = ("127.0.0.1", self.port)  # type: ignore[assignment]
        wrapper.with_command(["redis-server", "--protected-mode", "no", "--dir", "/data", *self._arguments()])
        try:
            wrapper.start()
        except BaseException:
            wrapper.stop()  # the container may have been made before the start failed
            raise
        self._wrapper = wrapper
        self._identity = self._container.id

    def _terminate(self) -> None:
        if self.running:
            self._container.stop(timeout=int(STOP_TIMEOUT))

    def _erase(self) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._wrapper is None:
            return
        with contextlib.suppress(NotFound):
            self._wrapper.stop()  # removes the container and its volume, closes the client
        self._wrapper = None

    def _log(self) -> str:
        return self._container.logs(tail=20).decode(errors="replace")


def find_image(named: str | None = None) -> str:
    """Return the image to use: the named one, the environment's, the local one if the engine has it, the official one.

    The engine has it afterwards.

    Raises:
        ServerError: no engine answers, or it has no image and cannot fetch one.
    """
    named = named or os.environ.get(IMAGE_VARIABLE)
    with docker_engine() as engine:
        for image in [named] if named else [LOCAL_IMAGE, OFFICIAL_IMAGE]:
            with contextlib.suppress(ImageNotFound):
                engine.images.get(image)
                return image
        _fetch(engine, image)
    return image


def _fetch(engine: docker.DockerClient, image: str) -> None:
    place = (engine.api.base_url, image)
    if place not in _UNREACHABLE:
        try:
            engine.images.pull(image)
        except (DockerException, OSError) as error:  # OSError: a time-out of the call
            _UNREACHABLE[place] = str(error)
        else:
            return
    raise ServerError(
        f"the engine does not have the image {image} and cannot fetch it ({_UNREACHABLE[place]}); make one from the "
        f"installed redis-server with compose/build-redis-image.sh, or name another one in {IMAGE_VARIABLE}"
    )


@contextlib.contextmanager
def docker_engine() -> Iterator[docker.DockerClient]:
    """Give a client of the container engine.

    Raises:
        ServerError: no engine answers.
    """
    place = get_docker_host() or DEFAULT_ENGINE
    try:
        if place.startswith("unix://"):
            # Tried by hand, because the client leaves its socket open when there is nobody to answer.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(place.removeprefix("unix://"))
        engine = DockerClient(timeout=ENGINE_TIMEOUT).client
        engine.ping()
    except (DockerException, OSError) as error:
        raise ServerError(
            f"no Docker engine answers at {place}; start yours, or a private one with compose/engine.sh start"
        ) from error
    with contextlib.closing(engine):
        yield engine


def has_docker_engine() -> bool:
    """Whether a container engine answers."""
    try:
        with docker_engine():
            return True
    except ServerError:
        return False
