"""Decisions: one event, counted at once, with its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tests.oracle import AHEAD, home
from tests.scenarios.move import Move
from tests.scenarios.script import Occurrence  # noqa: TC001  # msgspec reads the annotations
from tests.scenarios.world import Mismatch

if TYPE_CHECKING:
    from tests.scenarios.draft import Draft
    from tests.scenarios.world import World


class Decide(Move, frozen=True):
    """A producer decides an event; everything before it is counted first, so that the verdict is certain.

    Attributes:
        event: The event.
    """

    weight: ClassVar[int] = 2

    host: ClassVar[str] = "app"

    event: Occurrence

    @classmethod
    def draw(cls, draft: Draft) -> Decide | None:
        """Return an event of a metric that can be decided."""
        metrics = [name for name, rule in draft.rules.metric.items() if rule.exact and not rule.spread]
        event = draft.event(metrics)
        if event is None or event.at is None:
            return None if event is None else cls(event)
        rule = draft.rules.metric[event.metric]
        late = rule.late_seconds if event.id is None or not rule.keeps_ids else rule.id_late_seconds
        return None if late is not None and draft.elapsed - event.at > late - 120 else cls(event)

    def play(self, world: World) -> None:
        """Decide the event, and compare the verdict with the model's."""
        model, event = world.model, self.event
        if event.metric not in model.rules.metric or event.metric in model.changed:
            return
        world.count()
        rule = model.rules.metric[event.metric]
        before = model.books
        _, tops = world.placed([])
        fields = event.fields(world.start)
        at = fields.get("at", world.now(self.host))
        verdict = self._ask(world, fields)
        late = rule.late_seconds if event.id is None or not rule.keeps_ids else rule.id_late_seconds
        too_late = late is not None and world.now() - at > late
        last = tops[home(event.subject, len(tops))] if tops else 0.0
        too_early = at > max(world.now(), last) + AHEAD or at > world.now(self.host) + AHEAD
        if ("refused" in verdict) != (too_late or too_early):
            raise Mismatch(f"decide {event}: {verdict}, but late: {too_late}, ahead: {too_early}")
        if "refused" in verdict:
            return
        world.record(event, at, tops, packed=False)
        world.count()
        counted = {name: model.books.ledger[name] - before.ledger[name] for name in ("counted", "duplicate")}
        total = model.floored(event.metric, model.books.totals[event.metric, event.subject])
        if rule.max_subjects is None and verdict["total"] != total:
            raise Mismatch(f"decide {event}: total {verdict['total']}, expected {total}")
        if rule.once is None and verdict["accepted"] != (counted["counted"] == 1):
            raise Mismatch(f"decide {event}: {verdict}, but the model counts {counted}")

    def _ask(self, world: World, fields: dict[str, Any]) -> dict[str, Any]:
        """Decide the event, and return the decision, or the error as `refused`."""
        answer: dict[str, Any] = world.ask("app", "decide", url=world.url, producer="p1", event=fields)
        return answer


class DecideHttp(Decide, frozen=True):
    """A client of the read service decides an event over HTTP."""

    weight: ClassVar[int] = 1
    host: ClassVar[str] = "reader"

    def _ask(self, world: World, fields: dict[str, Any]) -> dict[str, Any]:
        reply = world.ask("reader", "http", config=world.config, requests=[["POST", "/v1/decide", fields]])
        ((status, answer),) = reply["answers"]
        return answer if "accepted" in answer else {"refused": f"status {status}: {answer}"}
