"""What benign accounts write: messages and tools of one request, by the kind of the account.

In: an account and one of its events. Out: messages, newest turn last, and tools. Earlier turns are
made again from the session's seed, so that nothing is kept between requests. What a firm's keys, a
class or a product have in common follows from the group's seed. Cover traffic is made here too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stillhouse.guard.simulate_accounts import KINDS, LANGUAGES, Accounts
from stillhouse.guard.simulate_traffic import ANSWER_BYTES, HISTORY_TURNS
from stillhouse.guard.simulate_words import Writer, mix, pieces

__all__ = ["Asked", "BenignText", "Turn"]

Message = dict[str, Any]

_KEPT = 20_000  # contexts of accounts kept; made again when needed
_CODES = {kind.name: code for code, kind in enumerate(KINDS)}
_TYPES = {
    "judge_pipeline": "judge", "nightly_batch": "enrich", "localisation": "translate",
    "synthetic_data": "generate", "benchmark": "benchmark",
}  # fmt: skip
_ANY_TYPE = ("support", "extraction", "classify", "summarise", "answer", "copy", "review", "query",
             "logs", "translate", "judge")  # fmt: skip
_WEIGHTS = (5, 5, 5, 4, 5, 2, 3, 3, 2, 2, 1)
_PIXEL = "data:image/png;base64,iVBORw0KGgo"
PEOPLE_OF_A_RESELLER = 400
PROMPTS_SHARE = 0.04
"""Of people's turns that are one of the prompts given, which are far fewer than turns."""


class Turn(NamedTuple):
    """What text needs to know of an event."""

    session: int
    number: int
    size: int
    item: int


class Asked(NamedTuple):
    """One request's content."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None


class _Context(NamedTuple):
    """What an account's requests have in common."""

    system: str
    lead: str
    mark: str
    tail: str
    payload: str
    tools: list[dict[str, Any]] | None


class BenignText:
    """Writes for all kinds of benign accounts."""

    def __init__(self, seed: int, prompts: tuple[str, ...]) -> None:
        """Nothing is written yet.

        Args:
            seed: of the range, for what everybody has in common.
            prompts: real prompts used beside synthetic text.
        """
        self.seed, self.prompts, self.writer = seed, prompts, Writer()
        self._contexts: dict[tuple[int, int, int], _Context] = {}

    def asked(self, accounts: Accounts, row: int, turn: Turn) -> Asked:
        """The request an event stands for."""
        kind = int(accounts.kind[row])
        context = self.context(accounts, row)
        messages: list[Message] = []
        if context.system:
            messages.append({"role": "system", "content": context.system})
        for number in range(max(0, turn.number - HISTORY_TURNS), turn.number):
            earlier = Turn(turn.session, number, min(turn.size // 2, 200), -1)
            messages += self._newest(accounts, row, kind, context, earlier)
            self.writer.seed(turn.session, number, 77)
            language = LANGUAGES[int(accounts.language[row])]
            answer = self.writer.passage(language, ANSWER_BYTES - 60)
            messages.append({"role": "assistant", "content": answer})
        messages += self._newest(accounts, row, kind, context, turn)
        return Asked(messages, context.tools)

    def context(self, accounts: Accounts, row: int) -> _Context:
        """What the account's requests have in common: a firm's keys share it."""
        kind, shared = int(accounts.kind[row]), int(accounts.group_seed[row])
        key = (kind, shared, int(accounts.seed[row]) if kind in _PERSONAL else 0)
        found = self._contexts.get(key)
        if found is None:
            if len(self._contexts) >= _KEPT:
                self._contexts.clear()
            made = self._personal if kind in _PERSONAL else self._program
            found = self._contexts[key] = made(accounts, row, kind)
        return found

    # ---- contexts ----

    def _personal(self, accounts: Accounts, row: int, kind: int) -> _Context:
        """People: the system prompt of one of forty chat programs, or words of their own."""
        size = int(accounts.system_bytes[row])
        system = ""
        if size:
            product = int(accounts.seed[row]) % 100
            own = product >= 40
            self.writer.seed(*((int(accounts.seed[row]), 5) if own else (self.seed, product, 5)))
            firm = self.writer.firm()
            system = f"You are {firm}, a chat assistant. "
            language = LANGUAGES[int(accounts.language[row])] if own else "en"
            system = self._grown(system, size if own else 260, language, own)
        return _Context(system, "", "", "", "", None)

    def _grown(self, text: str, size: int, language: str, sentences: bool) -> str:
        rules = pieces("apps")["rules"]
        while len(text.encode()) < size:
            if sentences and (language != "en" or self.writer.chance(0.3)):
                text += self.writer.sentence(language)
            else:
                text += self.writer.spin(self.writer.one(rules)) + " "
        return text.rstrip()

    def _program(self, accounts: Accounts, row: int, kind: int) -> _Context:
        """Programs: one system prompt and one template, drawn from the group's seed."""
        name, writer = KINDS[kind].name, self.writer
        apps = pieces("apps")
        writer.seed(int(accounts.group_seed[row]), 6)
        language = LANGUAGES[int(accounts.language[row])]
        size = int(accounts.system_bytes[row])
        if name == "agent_client":
            system = writer.spin(writer.one(apps["assistants"]))
            return _Context(self._grown(system, size, "en", False), "", "", "", "", self._tools())
        if name == "reseller":
            return _Context(self._grown("", size, "en", True) if size else "", "", "", "", "", None)
        chosen = _TYPES.get(name)
        if chosen is None:
            chosen = writer.random.choices(_ANY_TYPE, _WEIGHTS)[0]
        form = apps["types"][chosen]
        system = ""
        if size:
            system = f"You are the {writer.spin(writer.one(form['role']))} of {writer.firm()}, "
            system += writer.spin(writer.one(apps["trades"])) + ". "
            system = self._grown(system, size, language, language != "en")
        lead = writer.spin(writer.one(form["ask"]))
        if language != "en" and writer.chance(0.7):  # the template is in the firm's language
            lead = writer.word(language, "work") + " " + writer.sentence(language).strip()
        if chosen == "translate":
            target = apps["targets"][(int(accounts.member[row]) + int(accounts.seed[row]) % 3) % 10]
            lead = f"[{target}] {lead}"
        tail = "\n" + writer.spin(writer.one(apps["rules"])) if writer.chance(0.3) else ""
        return _Context(system, lead, writer.one(apps["marks"]), tail, form["payload"], None)

    def _tools(self) -> list[dict[str, Any]]:
        writer = self.writer
        names = pieces("apps")["tools"]
        first = writer.below(len(names))
        return [
            {
                "type": "function",
                "function": {
                    "name": names[(first + 5 * at) % len(names)],
                    "description": writer.spin("{Takes|Needs} {key} and {key}{, returns {key}|}."),
                    "parameters": {"type": "object", "properties": {
                        writer.spin("{key}"): {"type": "string"}}},
                },
            }
            for at in range(4)
        ]  # fmt: skip

    # ---- newest turns ----

    def _newest(
        self, accounts: Accounts, row: int, kind: int, context: _Context, turn: Turn
    ) -> list[Message]:
        writer, name = self.writer, KINDS[kind].name
        language = LANGUAGES[int(accounts.language[row])]
        writer.seed(turn.session, turn.number)
        if context.lead:
            return [_user(self._from_program(accounts, row, name, context, turn, language))]
        if name == "agent_client":
            return self._agent_turn(language, turn)
        if name == "class_hackathon" and turn.item >= 0:
            return [_user(self._assignment(accounts, row, turn, language))]
        if name == "release_rush" and turn.item >= 0:
            writer.seed(self.seed, turn.item, 9)
            return [_user(writer.request(language))]
        habits = int(accounts.seed[row])
        if name == "reseller":  # somebody of its customers
            habits = mix(habits, turn.session % PEOPLE_OF_A_RESELLER)
            if habits % 5 == 0:
                language = LANGUAGES[habits // 5 % len(LANGUAGES)]
        return [self._person(language, turn, habits)]

    def _from_program(
        self, accounts: Accounts, row: int, name: str, context: _Context, turn: Turn, language: str
    ) -> str:
        writer = self.writer
        if name == "localisation":  # one document for all target languages
            writer.seed(int(accounts.group_seed[row]), turn.item)
        size = max(turn.size - len(context.lead) - len(context.tail), 40)
        payload = self._payload(
            context.payload, language, size, turn, int(accounts.group_seed[row])
        )
        return context.lead + context.mark + payload + context.tail

    def _payload(self, sort: str, language: str, size: float, turn: Turn, shared: int) -> str:
        writer = self.writer
        if sort == "item":  # of one of three public benchmarks
            bench = shared % 3
            if self.prompts:
                return self.prompts[(turn.item * 3 + bench) % len(self.prompts)]
            writer.seed(bench, turn.item, 8)
            return writer.problem("en") + " " + writer.passage("en", size / 3)
        if sort == "code":
            return writer.code(size)
        if sort == "table":
            return writer.table(size)
        if sort == "logs":
            return writer.logs(size)
        if sort == "record":
            return writer.record(size)
        if sort == "product":
            return f"{writer.firm()} {writer.number()}: {writer.record(size)}"
        if sort == "candidate":
            question, answer = writer.request(language), writer.passage(language, size * 0.7)
            return f"Q: {question}\nA: {answer}"
        if sort == "question":
            return writer.problem(language) + " " + writer.passage(language, size * 0.7)
        if sort == "passages":
            parts = [f"[{at}] {writer.passage(language, size / 3)}" for at in (1, 2)]
            return "\n".join([*parts, writer.request(language)])
        if sort == "ticket":
            return f"{writer.passage(language, size * 0.8)} {writer.name(language)}"
        return writer.passage(language, size)

    def _agent_turn(self, language: str, turn: Turn) -> list[Message]:
        writer = self.writer
        if turn.number == 0 or writer.chance(0.3):
            text = writer.word(language, "code") if writer.chance(0.5) else writer.request(language)
            return [_user(text + " " + writer.passage(language, turn.size - len(text)))]
        name = f"call_{writer.below(10**9)}"
        made = writer.code if writer.chance(0.6) else writer.logs
        tool = writer.one(pieces("apps")["tools"])
        call = {
            "id": name,
            "type": "function",
            "function": {"name": tool, "arguments": writer.record(20)},
        }
        return [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": name, "content": made(turn.size)},
        ]

    def _assignment(self, accounts: Accounts, row: int, turn: Turn, language: str) -> str:
        """A task of the class: as it was handed out, or in the student's words."""
        writer, shared = self.writer, int(accounts.group_seed[row])
        verbatim, own = writer.chance(0.55), writer.sentence(language)
        writer.seed(shared, turn.item, 4)
        if self.prompts:
            task = self.prompts[mix(shared, turn.item) % len(self.prompts)]
        else:
            task = f"{writer.problem(language)} {writer.passage(language, 120)}"
        return task if verbatim else f"{own}{task[len(task) // 3 :]}"

    def _person(self, language: str, turn: Turn, habits: int) -> Message:
        writer = self.writer
        roll = writer.random.random()
        if turn.number > 0 and roll < 0.4:  # a follow-up
            text = writer.word(language, "angle").strip() + " " + writer.word(language, "close")
            text = f"{text.strip()} {writer.sentence(language)}" if writer.chance(0.7) else text
        elif roll < PROMPTS_SHARE and self.prompts:
            text = self.prompts[int(len(self.prompts) * writer.random.random() ** 2)]
        elif roll < 0.10:
            text = f"{writer.word(language, 'code')}\n```\n{writer.code(turn.size - 40)}\n```"
        elif roll < 0.15:
            text = f"{writer.word(language, 'table')}\n{writer.table(turn.size - 40)}"
        elif roll < 0.33:
            text = f"{writer.word(language, 'work')} {writer.passage(language, turn.size - 30)}"
        elif roll < 0.38:
            text = f"{writer.problem(language)} {writer.word(language, 'close')}"
        elif roll < 0.41:
            text = f"{writer.request(language)}\n{writer.logs(turn.size - 60)}"
        else:
            text = writer.request(language)
            left = turn.size - len(text) * writer.width(language)
            if left > 60:
                text += " " + writer.passage(language, left - 40)
        text = _in_their_way(text.strip() or writer.request(language), habits, writer)
        if roll > 0.96:
            image = {"type": "image_url", "image_url": {"url": _PIXEL + str(turn.session)}}
            return {"role": "user", "content": [{"type": "text", "text": text}, image]}
        return _user(text)


_PERSONAL = frozenset(
    _CODES[name] for name in ("light_user", "class_hackathon", "office", "release_rush")
)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _in_their_way(text: str, habits: int, writer: Writer) -> str:
    """A quarter never use capitals, a tenth mistype, a sixth leave out full stops."""
    if habits % 4 == 0:
        text = text.lower()
    if habits % 10 == 3 and len(text) > 8:
        at = 1 + writer.below(len(text) - 3)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if habits % 6 == 5:
        text = text.rstrip(".。?!")
    return text
