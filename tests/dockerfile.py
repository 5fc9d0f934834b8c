"""The Dockerfile, read: its stages and their instructions, so that tests run what it says and not a copy."""

import json
import re
import shlex
from dataclasses import dataclass, field

from tests.servers import ROOT


@dataclass
class Stage:
    """One stage: every instruction as (word, rest), in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """What stands behind each instruction of this kind."""
        return [rest for found, rest in self.instructions if found == word]

    def one(self, word: str) -> str:
        """What stands behind the only instruction of this kind."""
        (rest,) = self.all(word)
        return rest

    def pairs(self, word: str) -> dict[str, str]:
        """`KEY=value` of every ENV, LABEL or ARG."""
        said = (part for rest in self.all(word) for part in shlex.split(rest))
        return dict(part.split("=", 1) for part in said if "=" in part)

    def command(self, word: str) -> list[str]:
        """The words of an ENTRYPOINT, CMD or HEALTHCHECK in JSON."""
        words: list[str] = json.loads(self.one(word)[self.one(word).index("[") :])
        return words


def stages() -> list[Stage]:
    """The stages of the Dockerfile, in order."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append(Stage(rest.split()[0]))
        elif word and found:
            found[-1].instructions.append((word, rest.strip()))
    return found
