"""A Dockerfile carried out without Docker, in a folder that stands for the image's file system."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_SECONDS = 900
_IMAGE_PATHS = re.compile(r"(?<![\w.])/(?=(?:opt|src|tmp)\b)")
_NETWORK = re.compile(r"PIP_|SSL_|\w*_proxy$|REQUESTS_CA_BUNDLE$|HOME$", re.IGNORECASE)
_IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


class ImageError(Exception):
    """What the Dockerfile says does not work."""


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Instructions and what follows them, on one line each."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            yield instruction.upper(), " ".join(rest.split())


def sent_by_docker(source: str) -> bool:
    """Whether .dockerignore, which names what is sent, lets a path through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in lines if line.startswith("!")]
    return any(source == path or source.startswith(f"{path}/") for path in sent)


@dataclass
class Image:
    """A folder that stands for an image, and what its Dockerfile has said so far."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    workdir: str = "/"
    user: tuple[int, int] | None = None
    commands: dict[str, list[str]] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def root(self) -> Path:
        """The stage being built, always at the same place: virtual environments do not move."""
        return self.folder / "root"

    def inside(self, text: str) -> str:
        """A command or value with the absolute paths in it within the folder."""
        return _IMAGE_PATHS.sub(f"{self.root}/", text)

    def _path(self, path: str) -> Path:
        """A path of the image, within the folder; a relative one is from WORKDIR."""
        return self.root / (Path(self.workdir) / path).relative_to("/")

    def do(self, instruction: str, rest: str) -> None:
        """Carries out an instruction. Raises ImageError."""
        match instruction:
            case "FROM":
                self._begin_stage(rest)
            case "ARG" | "EXPOSE":
                pass
            case "WORKDIR":
                self.workdir = rest
                self._path(rest).mkdir(parents=True, exist_ok=True)
            case "ENV":
                for name, value in (part.split("=", 1) for part in shlex.split(rest)):
                    path = self.environment["PATH"]
                    self.environment[name] = self.inside(value).replace("$PATH", path)
            case "COPY":
                self._copy(rest)
            case "RUN":
                self._run(rest)
            case "USER":
                uid, gid = map(int, rest.split(":"))
                self.user = (uid, gid)
            case "STOPSIGNAL":
                self.stop_signal = signal.Signals[rest]
            case "ENTRYPOINT" | "CMD":
                self.commands[instruction] = [self.inside(word) for word in json.loads(rest)]
            case "HEALTHCHECK":
                _, _, command = rest.partition(" CMD ")
                self.commands[instruction] = json.loads(command)
            case _:
                raise ImageError(f"{instruction}: not known here")

    def _begin_stage(self, rest: str) -> None:
        if self.root.exists():
            self.root.rename(self.folder / self.stages[-1])
        self.stages.append(rest.partition(" AS ")[2] or "final")
        self.workdir = "/"
        (self.root / "tmp").mkdir(parents=True)
        (self.root / "tmp").chmod(0o1777)
        self.environment = {
            "PATH": f"{self.folder}/base/bin:/usr/local/bin:/usr/bin:/bin",
            "TMPDIR": self.inside("/tmp"),
        }

    def _copy(self, rest: str) -> None:
        options = [word for word in rest.split() if word.startswith("--")]
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            if options:
                path = self.folder / options[0].removeprefix("--from=") / source.lstrip("/")
            elif not sent_by_docker(source):
                raise ImageError(f"COPY {source}: .dockerignore keeps it out")
            else:
                path = ROOT / source
            to = self._path(target)
            if target.endswith("/"):
                to /= path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                ignored = shutil.ignore_patterns() if options else _IGNORED
                shutil.copytree(path, to, symlinks=True, ignore=ignored)
            else:
                shutil.copy2(path, to)

    def _run(self, command: str) -> None:
        network = {k: v for k, v in os.environ.items() if _NETWORK.match(k)}
        done = subprocess.run(
            ["/bin/sh", "-c", self.inside(command)],
            cwd=self._path(self.workdir),
            env=network | self.environment,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            raise ImageError(f"RUN {command}: exit code {done.returncode}")
