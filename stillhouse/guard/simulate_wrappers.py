"""What campaigns write: a wrapper that asks for more than an answer, around prompts from one list.

In: a campaign's settings and seed, and an exchange's number, size and seed. Out: the messages. A
prompt follows from its number alone, so that asking it again asks the same; the wrapper from the
level of paraphrase. The pieces of wrappers lie in `simulate_attacks.yaml`, apart from the templates
of innocent programs and from every detector.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from stillhouse.guard.simulate_settings import CampaignSettings
from stillhouse.guard.simulate_words import Writer, mix, pieces

__all__ = ["CampaignText"]

_PIXEL = "data:image/png;base64,R0lGODlhAQAB"
_TOP = 1 << 64
# How a known answer or a candidate stands by its question: drawn for each prompt, since a mark that
# all prompts have would be a wrapper of its own.
_KNOWN = (" [{}]", " = {}", " ({})", "\n{}", "\nA: {}", " -> {}", "; {}.", "")
_CANDIDATE = ("\n=> ", "\n\n", "\nA: ", "\n- ", "\n1) ", " // ", '\n"', "\n* ")


class CampaignText:
    """Writes the exchanges of one campaign."""

    def __init__(self, settings: CampaignSettings, seed: int, prompts: tuple[str, ...]) -> None:
        """Nothing is written yet.

        Args:
            settings: of the campaign.
            seed: of its wrappers and prompts.
            prompts: real prompts; it works through them in an order of its own, then goes on with
                synthetic ones.
        """
        self.settings, self.seed, self.writer = settings, seed, Writer()
        self._order = sorted(range(len(prompts)), key=lambda at: mix(seed, at))
        self._prompts = prompts
        total, self._languages = 0.0, list[tuple[float, str]]()
        for code, weight in settings.languages.items():
            total += weight
            self._languages.append((total, code))
        self._total = total
        self._structured = settings.structured_tools and settings.capability in (
            "tool_use", "computer_use",
        )  # fmt: skip
        self._fixed: dict[tuple[int, str], tuple[str, str]] = {}

    def asked(self, number: int, size: int, seed: int) -> list[dict[str, Any]]:
        """The messages of one exchange.

        Args:
            number: of the prompt in the campaign's list.
            size: bytes the whole should have, about.
            seed: of the exchange, for its wording.
        """
        language = self.language(number)
        before, after = self._wrapper(language, seed)
        room = size - (len(before) + len(after)) * self.writer.width(language)
        self.writer.seed(self.seed, number, 1)
        text = before + self._prompt(number, language, max(room, 40)) + after
        if self.settings.capability != "vision":
            return [{"role": "user", "content": text}]
        image = {"type": "image_url", "image_url": {"url": f"{_PIXEL}{mix(self.seed, number)}"}}
        return [{"role": "user", "content": [{"type": "text", "text": text}, image]}]

    @cached_property
    def tools(self) -> list[dict[str, Any]] | None:
        """Tool definitions sent as parameters, where the settings ask for that."""
        if not self._structured:
            return None
        return [
            {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
            for name in self._names(0)
        ]

    def language(self, number: int) -> str:
        """The language of a prompt."""
        at = mix(self.seed, number, 2) / _TOP * self._total
        return next((code for edge, code in self._languages if at < edge), self._languages[-1][1])

    # ---- wrappers ----

    def _wrapper(self, language: str, seed: int) -> tuple[str, str]:
        """What stands before the prompt, and after it."""
        level, writer = self.settings.paraphrase, self.writer
        if level == "rewriting":
            return self._rewritten(language, seed)
        wording = seed % self.settings.rewordings if level == "templates" else 0
        if level != "synonyms":
            found = self._fixed.get((wording, language))
            if found is None:
                writer.seed(self.seed, wording, 3)
                found = self._fixed[wording, language] = self._composed(language)
            return found
        writer.seed(self.seed, 0, 3)
        chosen = self._chosen(language)
        link = writer.one(pieces("attacks")["links"])
        writer.seed(self.seed, seed, 4)
        return self._joined(chosen, language) + link, ""

    def _chosen(self, language: str) -> list[str]:
        """A task, a manner and a form."""
        by_language = pieces("attacks")[self.settings.capability]
        parts = by_language.get(language, by_language["en"])
        return [self.writer.one(parts[name]) for name in ("task", "manner", "form")]

    def _joined(self, parts: list[str], language: str) -> str:
        space = "" if language in ("zh", "ja") else " "
        return space.join(self.writer.spin(part, language) for part in parts)

    def _composed(self, language: str) -> tuple[str, str]:
        text = self._joined(self._chosen(language), language)
        return text + self.writer.one(pieces("attacks")["links"]), ""

    def _rewritten(self, language: str, seed: int) -> tuple[str, str]:
        """Pieces, order, wording and place drawn for this exchange alone, sentences between."""
        writer = self.writer
        writer.seed(self.seed, seed, 5)
        parts = self._chosen(language)
        if writer.chance(0.6):
            parts.pop(writer.below(3))
        if writer.chance(0.5):
            parts.reverse()
        spun = [writer.spin(part, language) for part in parts]
        if writer.chance(0.5):
            spun.insert(writer.below(len(spun) + 1), writer.sentence(language).strip())
        if writer.chance(0.3):
            spun.insert(0, writer.word(language, "open").strip())
        space = "" if language in ("zh", "ja") else " "
        text, link = space.join(spun).strip(), writer.one(pieces("attacks")["links"])
        split = writer.below(3)
        if split == 0:
            return text + link, ""
        if split == 1:
            return "", link + text
        middle = len(spun) // 2
        return space.join(spun[:middle]).strip() + link, link + space.join(spun[middle:]).strip()

    # ---- prompts ----

    def _question(self, number: int, language: str) -> str:
        if language == "en" and number < len(self._prompts):
            return self._prompts[self._order[number]]
        writer = self.writer
        return writer.problem(language) if writer.chance(0.6) else writer.request(language)

    def _prompt(self, number: int, language: str, room: float) -> str:
        """What the wrapper is put around, made to fill the room left."""
        writer, capability = self.writer, self.settings.capability
        if capability == "code":
            task = writer.passage(language, room * 0.4)
            return f"{task}\n{writer.code(room - len(task.encode()))}"
        if capability == "data_analysis":
            return f"{writer.request(language)}\n{writer.table(room - 60)}"
        if capability == "sensitive_rewriting":
            text = writer.spin("{" + "|".join(pieces("attacks")["sensitive"]) + "}", language)
            return f"{text}. {self._filler(language, room - len(text))}".strip()
        if capability == "tool_use":
            names = writer.one((" [{}]", "\n{}\n", " ({}):", " - {};"))
            names = "" if self._structured else names.format(", ".join(self._names(number)[:3]))
            return f"{writer.passage(language, room - len(names) - 30)}{names} {writer.record(20)}"
        if capability == "computer_use":
            return f"{writer.sentence(language)}{self._screen(room - 90)}"
        text = self._question(number, language)
        if capability == "rubric_grading":
            left = room - len(text) * writer.width(language)
            return f"{text}{writer.one(_CANDIDATE)}{writer.passage(language, left - 10)}"
        if capability == "reasoning_elicitation":
            text += writer.one(_KNOWN).format(writer.number())
        left = room - len(text) * writer.width(language)
        return f"{text} {self._filler(language, left)}".strip()

    def _filler(self, language: str, room: float) -> str:
        return self.writer.passage(language, room - 30) if room > 60 else ""

    def _screen(self, room: float) -> str:
        lines, length = [], 0
        while length < room or not lines:
            line = (
                f"<{self.writer.one(('button', 'field', 'link', 'menu'))} {self.writer.number()} "
            )
            line += f"'{self.writer.firm()}' {self.writer.number()},{self.writer.number()}>"
            lines.append(line)
            length += len(line) + 1
        return "\n".join(lines)

    def _names(self, number: int) -> list[str]:
        """Tools of a task: another set for each prompt, unless they are sent as parameters."""
        verbs, nouns = pieces("apps")["tools"], pieces("apps")["keys"]
        drawn = [mix(self.seed, number, at, 6) for at in range(6)]
        return [f"{verbs[n % len(verbs)]}_{nouns[n // 99 % len(nouns)]}" for n in drawn]
